from dataclasses import replace

import pytest
import torch

from lkm_calc import EnergyForces, Prediction, energy_and_forces
from train.config import LossConfig
from train.data.loader import Batch, GraphFrames
from train.gradients.loss import training_loss
from train.gradients.mixing import learned_teacher

from ...support import crystal, graph_of, rattled, small_model
from ..data.test_loader import frames_of

FORCES = torch.tensor([[0.0, 0, 0], [3, 0, 0]], dtype=torch.float64)


def predicted():
    embeddings = (torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [1.0]]))
    energy = torch.tensor([-17000.25, -17000.75], dtype=torch.float64)
    return EnergyForces(energy, FORCES.clone(), None, torch.zeros(2), embeddings)


def labels(energy=-17000.0, forces=0.0):
    """Return a batch of two atoms, one a structure, with constant labels."""
    model = small_model()
    graph = graph_of(rattled("H2O")[:1], model)
    graph = type(graph).collate([graph, graph])
    energies = torch.full((2,), energy, dtype=torch.float64)
    forces = torch.full_like(FORCES, forces)
    return Batch(graph, energies, forces, None, torch.tensor([1, 1]), 2)


@pytest.mark.parametrize(
    ("kind", "energy", "forces"),
    [("l1", (0.25 + 0.75) / 2, 3 / 6), ("l2", (0.0625 + 0.5625) / 2, 9 / 6)],
)
def test_hand_computed(kind, energy, forces):
    config = LossConfig(kind=kind, energy=2.0, forces=3.0, gamma=0.5)
    losses = training_loss(predicted(), labels(), config)
    # Embeddings of atom 0 lie 1 from their mean 1, those of atom 1 on it: mean square 0.5.
    assert losses.energy.item() == pytest.approx(energy, abs=1e-12)
    assert losses.forces.item() == pytest.approx(forces, abs=1e-12)
    assert losses.lkm.item() == pytest.approx(0.5)
    assert losses.total.item() == pytest.approx(2 * energy + 3 * forces + 0.5 * 0.5, abs=1e-12)


def test_each_term_may_have_its_kind():
    config = LossConfig(kind="l1", energy_kind="l2", gamma=0.0)
    losses = training_loss(predicted(), labels(), config)
    assert losses.energy.item() == pytest.approx((0.0625 + 0.5625) / 2)
    assert losses.forces.item() == pytest.approx(3 / 6)


def test_huber_is_quadratic_then_linear():
    config = LossConfig(kind="huber", huber_delta=0.5, gamma=0.01)
    losses = training_loss(predicted(), labels()._replace(forces=FORCES), config)
    assert losses.energy.item() == pytest.approx((0.5 * 0.25**2 + 0.5 * (0.75 - 0.25)) / 2)
    assert losses.forces.item() == 0


def test_gamma_zero_trains_without_mixing_but_logs_it():
    out = predicted()
    out.embeddings[0].requires_grad_()
    losses = training_loss(out, labels(0.0), LossConfig(gamma=0.0))
    assert losses.lkm.item() == pytest.approx(0.5)
    assert not losses.total.requires_grad


def test_energies_alone():
    out = predicted()
    prediction = Prediction(out.energy, out.atom_energies, out.embeddings)
    losses = training_loss(
        prediction, labels()._replace(forces=None), LossConfig(energy=2.0, gamma=0.01)
    )
    assert losses.forces.item() == 0
    assert losses.total.item() == pytest.approx(2 * 0.5 + 0.01 * 0.5)


def test_stress_counts_labelled_structures_only():
    model, config = small_model(), LossConfig(kind="l1", stress=1.0, gamma=0.01)
    graph = type(graph_of(crystal(), model)).collate([graph_of(crystal(), model)] * 2)
    out = energy_and_forces(model, graph, stress=True)
    stress = out.stress.clone() + 0.5
    stress[1] = float("nan")
    batch = Batch(graph, out.energy, out.forces, stress, torch.tensor([4, 4]), 8)
    losses = training_loss(out, batch, config)
    assert losses.stress.item() == pytest.approx(0.5)
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("distance", ["mse", "mae"])
@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("teacher", ["mean", "deeper", "neighbours", "learned", "error"])
def test_pieces_add_up_to_the_batch(distance, scale_free, teacher):
    model = small_model()
    frames = frames_of([rattled(seed=k) for k in range(3)] + [rattled("H2O"), rattled("C6H6")])
    data = GraphFrames(replace(frames), model, torch.device("cpu"))
    config = LossConfig(
        kind="l2",
        gamma=0.01,
        lkm_distance=distance,
        lkm_scale_free=scale_free,
        lkm_teacher=teacher,
    )
    learned = learned_teacher(config, model)
    parameters = [*model.parameters(), *(learned.parameters() if learned else ())]

    def gradients(pieces):
        totals = data.totals(torch.arange(5))
        for piece in pieces:
            batch = data.batch(torch.tensor(piece))
            out = energy_and_forces(model, batch.graph, create_graph=True)
            training_loss(out, batch, config, totals, learned=learned).total.backward()
        gradients = torch.cat([p.grad.flatten() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        return gradients

    whole, parts = gradients([[0, 1, 2, 3, 4]]), gradients([[0, 3], [4], [1, 2]])
    assert (whole - parts).abs().max() < 1e-10 * whole.abs().max()
