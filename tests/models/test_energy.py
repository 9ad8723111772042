import pytest
import torch

from lkm_calc import Graph, build_model
from lkm_calc.embeddings.lkm import lkm_loss

from ..support import graph_of, rattled, small_model


def test_atoms_sum_to_the_energy_with_reference_energies_in_float64():
    model = small_model().float()
    atoms = rattled()
    plain = model(graph_of(atoms, model))
    references = {1: -13.123456789012, 6: -1037.987654321098, 8: -2044.555555555555}
    model.calibrate(2.0, references, references)
    shifted = model(graph_of(atoms, model))
    assert shifted.energy.dtype == torch.float64
    expected = 2 * plain.energy.item() + sum(references[z] for z in atoms.numbers)
    # Float32 would be off by 1e-4 eV at this magnitude.
    assert shifted.energy.item() == pytest.approx(expected, abs=1e-9)
    assert shifted.atom_energies.sum().item() == pytest.approx(expected, abs=1e-9)


def test_calibration_stays_float64_through_casts_and_moves():
    model = small_model()
    energy = -1037.987654321098
    model.calibrate(1.2345678901234567, {6: energy}, [6])
    model = model.float().half().double()
    assert model.reference_energies[6].item() == energy
    assert model.scale.item() == 1.2345678901234567
    assert model.dtype == torch.float64


def test_known_elements():
    model = small_model()
    assert len(model.elements) == 94
    model.check_elements(range(1, 95))
    model.calibrate(1.0, {}, [1, 6])
    assert model.elements == ("H", "C")
    model.check_elements([1, 6, 6])
    with pytest.raises(ValueError, match="does not support O, Cl: it was trained on H, C"):
        model.check_elements([1, 8, 17])


def test_unknown_architecture_and_argument():
    with pytest.raises(ValueError, match=r"Unknown model 'schnet'; choose one of ace, dimenet\+\+"):
        build_model("schnet")
    with pytest.raises(ValueError, match="no argument widht; its arguments are hidden"):
        build_model("dimenet++", widht=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cutoff", -1.0),
        ("cutoff", float("inf")),
        ("hidden", 0),
        ("num_blocks", -1),
        ("num_spherical", 100),
        ("basis_dim", 0),
    ],
)
def test_impossible_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be"):
        build_model("dimenet++", **{name: value})


def test_the_narrowest_model_is_finite():
    model = build_model("dimenet++", hidden=1, triplet_dim=1, basis_dim=1, output_dim=1)
    assert all(p.isfinite().all() for p in model.parameters())


def test_defaults_take_any_element():
    model = build_model("dimenet++")
    graph = Graph.from_atoms(rattled(), model.cutoff)
    assert torch.isfinite(model(graph).energy).all()


def test_embeddings_feed_the_lkm_loss():
    model = small_model()
    loss = lkm_loss(model(graph_of(rattled(), model)).embeddings)
    loss.backward()
    assert loss > 0
    assert model.interactions[0].from_kj.weight.grad.any()
