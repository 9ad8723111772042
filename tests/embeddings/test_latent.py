import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lkm_calc import LKMCalculator, load_model, save_model, with_zbl
from lkm_calc.embeddings.latent import FLOOR, KEPT, TINY, fit_latent
from lkm_calc.potential.checkpoint import ModelFileError, add_calibration, renew_checksum
from lkm_calc.uncertainty.calibration import Calibration, calibration_of

from ..support import graph_of, rattled, small_model

QUANTILES = {"50": 0.1, "95": 0.2, "99": 0.3, "99.9": 0.4, "max": 0.5}
CURVE = {"distance": [0.1, 0.3], "error": [0.02, 0.06]}
DATA = {
    "frames": 5,
    "force_error": QUANTILES,
    "expected_error": {"H": CURVE, "C": CURVE},
    "closest": {"H-H": 1.5, "H-C": 1.0, "C-C": 1.4},
}
"""A calibration of a model of hydrogen and carbon."""


def calibrated(seed=0, **hypers):
    """Return a model of hydrogen and carbon that has seen a few distorted molecules."""
    model = small_model(seed=seed, **hypers)
    model.calibrate(1.0, {}, [1, 6])
    model.provenance = {"calibration": DATA}
    seen = (graph_of(rattled("C2H6", seed), model) for seed in range(20))
    batches = ((graph.numbers, model(graph).embeddings) for graph in seen)
    model.latent = fit_latent(((z, [e.detach() for e in es]) for z, es in batches), [1, 6], 20)
    return model


def cloud(deviations, count=4000, seed=0):
    """Return vectors (count, dim) with these standard deviations about 2, in float64."""
    normal = np.random.default_rng(seed).normal(2, 1, (count, len(deviations)))
    return torch.from_numpy((normal - 2) * deviations + 2)


def test_against_the_covariance():
    layers = cloud([1.0, 0.5, 0.3, 0.02]).split(2, 1)
    numbers = torch.full((4000,), 6)
    parts = (slice(9), slice(9, None))
    space = fit_latent([(numbers[p], [layer[p] for layer in layers]) for p in parts], [6], 20)
    atoms = cloud([2.0, 2.0, 2.0, 2.0], 5, seed=1)
    x, all_ = atoms.numpy(), torch.cat(layers, 1).numpy()
    off = x - all_.mean(0)
    covariance = np.cov(all_.T, bias=True)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off))
    found = space.distance(np.full(5, 6), atoms.split(2, 1))
    np.testing.assert_allclose(found, expected, rtol=0.02)  # directions are kept in float16


def test_what_is_not_kept_shares_a_deviation():
    numbers = torch.ones(4000, dtype=torch.int64)
    features = cloud([1.0, 0.1, 0.004, 0.002, 0])
    one = fit_latent([(numbers, [features])], [1], 20).elements[1]
    assert one.deviations.tolist() == pytest.approx([1.0, 0.1], rel=0.05)
    assert len(one.directions) == 2, KEPT
    assert one.rest.item() == pytest.approx(np.sqrt((0.004**2 + 0.002**2) / 3), rel=0.05)
    flat = fit_latent([(numbers, [cloud([1.0, 0.0])])], [1], 20).elements[1]
    assert flat.rest.item() == pytest.approx(FLOOR * flat.deviations[0].item())
    off = torch.tensor([[2.0, 2.1]], dtype=torch.float64)
    assert flat.distance(off).item() == pytest.approx(100, rel=0.05), "leaves what is known"


def test_atoms_that_are_all_alike():
    numbers = torch.ones(30, dtype=torch.int64)
    alike = fit_latent([(numbers, [torch.ones(30, 3)])], [1], 20)
    assert alike.elements[1].rest == TINY
    assert alike.distance(np.array([1, 1]), [torch.ones(2, 3)]).tolist() == [0, 0]


def test_elements_apart_and_all_for_a_rare_one():
    light, heavy = cloud([1.0, 1.0], 100, 0), cloud([0.1, 0.1], 19, 1) + 5
    numbers = torch.tensor([1] * 100 + [6] * 19)
    both = torch.cat([light, heavy])
    apart = fit_latent([(numbers, [both])], [1, 6], 19)
    assert apart.elements[6].deviations.max() < 0.2
    np.testing.assert_allclose(apart.elements[1].mean, light.mean(0))
    pooled = fit_latent([(numbers, [both])], [1, 6], 20)
    np.testing.assert_allclose(pooled.elements[6].mean, both.mean(0))
    mixed = apart.distance(np.array([6, 1, 6]), [both[[100, 0, 101]]])
    assert mixed[0] == apart.distance(np.array([6]), [both[[100]]])
    assert mixed[1] == apart.distance(np.array([1]), [both[[0]]])


def test_scaled():
    model = calibrated()
    graph = graph_of(rattled("C2H6", 7), model)
    embeddings = model(graph).embeddings
    numbers = graph.numbers.cpu().numpy()
    before = model.latent.distance(numbers, embeddings)
    after = model.latent.scaled({1: 2.0, 6: 4.0}).distance(numbers, embeddings)
    factor = torch.where(graph.numbers == 6, 4.0, 2.0)
    torch.testing.assert_close(after * factor, before)


def test_embeddings_of_another_model():
    with pytest.raises(ValueError, match="have .* features per atom, but the model returned 3"):
        calibrated().latent.distance(np.array([6]), [torch.zeros(1, 3)])


@pytest.mark.parametrize("zbl", [False, True])
def test_the_calculator_tells_it_and_the_error_to_expect(zbl):
    model, atoms = calibrated(), rattled("C2H6", 99)
    atoms.calc = LKMCalculator(model, zbl=zbl)
    atoms.get_potential_energy()
    extras = atoms.calc.extras
    computed = with_zbl(model) if zbl else model
    embeddings = computed(graph_of(atoms, model)).embeddings
    expected = model.latent.distance(atoms.numbers, embeddings).detach().cpu().numpy()
    np.testing.assert_allclose(extras["latent_distance"], expected, rtol=1e-8)
    errors = Calibration(**DATA).force_errors(atoms.numbers, expected)
    np.testing.assert_allclose(extras["expected_force_error"], errors, rtol=1e-8)
    both = list(atoms.calc.iterate([rattled("CH4"), atoms]))
    np.testing.assert_allclose(both[1].extras["latent_distance"], expected, rtol=1e-8)
    assert both[0].extras["latent_distance"].shape == (5,)


def test_it_grows_away_from_what_was_seen():
    calc = LKMCalculator(calibrated())
    known, strange = calc.iterate([rattled("C2H6", 99), rattled("C2H2", 99)])
    assert strange.extras["latent_distance"].min() > known.extras["latent_distance"].max()


def test_in_float32():
    model, atoms = calibrated(), rattled("C2H6", 99)
    double, single = (
        next(LKMCalculator(model, dtype=dtype).iterate([atoms])).extras["latent_distance"]
        for dtype in ("float64", "float32")
    )
    np.testing.assert_allclose(single, double, rtol=1e-3)


def test_files_keep_it(tmp_path):
    model, path = calibrated(), tmp_path / "model.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    assert calibration_of(loaded) == Calibration(**DATA)
    for number, one in model.latent.elements.items():
        for name, value in vars(one).items():
            torch.testing.assert_close(
                getattr(loaded.latent.elements[number], name), value, rtol=0, atol=0
            )
    assert loaded.state_dict().keys() == model.state_dict().keys()
    save_model(loaded, path, {"seed": 1})
    assert load_model(path).latent is None, "a new training knows nothing of it"


def test_a_file_is_calibrated_anew(tmp_path):
    model, path = small_model(), tmp_path / "model.safetensors"
    model.calibrate(1.0, {}, [1, 6])
    save_model(model, path, {"seed": 1})
    assert load_model(path).latent is None
    for seed in (0, 1):
        latent = calibrated(seed).latent
        add_calibration(path, Calibration(**DATA), latent)
        loaded = load_model(path)
        assert torch.equal(loaded.latent.elements[6].mean, latent.elements[6].mean)
    assert loaded.provenance["seed"] == 1
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def drop(tensors):
    del tensors["latent.C.mean"]


def add(tensors):
    tensors["latent.O.mean"] = torch.zeros(3)


def shorten(tensors):
    tensors["latent.C.directions"] = tensors["latent.C.directions"][:, 1:].contiguous()


def poison(tensors):
    tensors["latent.H.directions"][0] = torch.nan


def negate(tensors):
    tensors["latent.H.rest"] *= -1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, "latent.C.mean"),
        (add, "latent.O.mean is not expected"),
        (shorten, "inconsistent shapes"),
        (poison, "not finite"),
        (negate, "not positive"),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    path = tmp_path / "model.safetensors"
    save_model(calibrated(), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    damage(tensors)
    save_file(tensors, path, metadata)
    renew_checksum(path)
    with pytest.raises(ModelFileError, match=f"is inconsistent with its header .*{message}"):
        load_model(path)


def test_what_a_calibration_tells():
    calibration = Calibration(**DATA)
    errors = calibration.force_errors(np.array([6, 1, 1]), np.array([0.2, 0.0, 9.0]))
    np.testing.assert_allclose(errors, [0.04, 0.02, 1.8])  # 0.06 · 9.0 / 0.3
    table = calibration.closest_table()
    assert table[1, 6] == table[6, 1] == 1.0
    assert table[6, 6] == 1.4
    assert table[8].max() == 0


def test_a_model_without_one():
    assert calibration_of(small_model()) is None
    (found,) = LKMCalculator(small_model()).iterate([rattled()])
    assert found.extras.keys() == {"layer_disagreement"}


@pytest.mark.parametrize(
    "change",
    [
        {"closest": {"H-H": 1.5}},
        {"force_error": {"50": 0.1}},
        {"force_error": QUANTILES | {"99": "much"}},
        {"force_error": QUANTILES | {"99": float("nan")}},
        {"expected_error": {"H": CURVE}},
        {"expected_error": {"H": CURVE, "C": {"distance": [1.0], "error": []}}},
        {"colour": 3},
    ],
)
def test_damage_is_named(change):
    model = calibrated()
    assert calibration_of(with_zbl(model)) == Calibration(**DATA)
    model.provenance = {"calibration": DATA | change}
    with pytest.raises(ValueError, match="calibration is damaged .*lkm-train calibrate"):
        calibration_of(model)


def test_half_a_calibration_is_damaged():
    model = calibrated()
    model.latent = None
    with pytest.raises(ValueError, match="damaged .*no latent statistics"):
        calibration_of(model)
