"""The constant in the energies of a model is found on training frames."""

import dataclasses

import pytest
import torch

from train.data.loader import GraphFrames
from train.fit.centring import MIN_FRAMES, centre_energies
from train.report import predict

from ...support import rattled, small_model
from ..data.test_loader import frames_of

CONSTANTS = {"CH3CH2OH": 0.3, "H2O": -0.2}


def labelled(model, molecules, per_molecule=MIN_FRAMES):
    """Frames whose labels are the model's energies and a constant for each molecule."""
    names = [name for name in molecules for _ in range(per_molecule)]
    frames = frames_of([rattled(name, seed=k) for k, name in enumerate(names)])
    energies = predict(model, GraphFrames(frames, model, model.device), 8).energies.predicted
    constants = torch.tensor([CONSTANTS.get(name, 1.0) for name in names], dtype=torch.float64)
    frames = dataclasses.replace(frames, energies=(energies + constants).numpy())
    return GraphFrames(frames, model, model.device)


@pytest.mark.parametrize("molecules", [["CH3CH2OH"], ["CH3CH2OH", "H2O"]])
def test_a_constant_for_each_composition_is_taken_away(molecules):
    model = small_model()
    data = labelled(model, molecules)
    assert predict(model, data, 8).energies.difference.abs().min() > 0.19
    centre_energies(model, data, 7)
    assert predict(model, data, 8).energies.difference.abs().max() < 1e-9


def test_energies_of_isolated_atoms_stay():
    model = small_model()
    model.calibrate(1.0, {1: -13.0, 6: -1000.0, 8: -2000.0}, [1, 6, 8], {8: -2.0})
    data = labelled(model, ["H2O"])
    centre_energies(model, data, 8)
    assert predict(model, data, 8).energies.difference.abs().max() < 1e-9
    assert model.reference_energies[8] == -2000.0
    assert model.binding_energies[8] != -2.0


def test_too_many_compositions_have_no_constants():
    model = small_model()
    data = labelled(model, ["CH3CH2OH", "H2O", "C6H6"], per_molecule=MIN_FRAMES - 1)
    before = model.reference_energies.clone()
    centre_energies(model, data, 8)
    assert torch.equal(model.reference_energies, before)
