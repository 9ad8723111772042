"""Teachers of LKM that training makes; what lkm_loss does with weights stands in test_lkm.py."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.early_exit import cut
from lkm_calc import MODELS, Prediction, energy_and_forces, lkm_loss
from lkm_calc.compile.padding import Capacity, pad, unpad
from lkm_calc.models.energy import LayerShares
from train.config import ConfigError, LossConfig, config_from_table
from train.data.loader import GraphFrames
from train.gradients.loss import training_loss
from train.gradients.mixing import LearnedTeacher, error_weights, learned_teacher, teacher_of

from ...support import ROUND_OFF, rattled, relative_error, small_model
from ..data.test_loader import frames_of

TAPS = [
    ("dimenet++", "state"),
    ("dimenet++", "head"),
    ("mxmnet", "state"),
    ("pamnet", "state"),
    ("pamnet", "global"),
    ("pamnet", "local"),
    ("pamnet", "head"),
]
TEACHERS = ["mean", "deeper", "neighbours", "learned", "error"]


def batch_of(model, molecules=("CH3CH2OH", "H2O", "CH3CH2OH"), seed=0):
    """Return structures of different sizes with labels that are not the model's."""
    frames = frames_of([rattled(name, seed + k) for k, name in enumerate(molecules)])
    return GraphFrames(frames, model, torch.device("cpu")).batch(torch.arange(len(molecules)))


def with_first_readout(model):
    """Return a copy of an ACE that reads the energy off its first interaction alone.

    Cut off there it would be another network: the last interaction has no tensors to hand on.
    """
    shorter = copy.deepcopy(model)
    for readout in shorter.readouts[1:]:
        for parameter in readout.value.parameters():
            torch.nn.init.zeros_(parameter)
    return shorter


@pytest.mark.parametrize("name", MODELS)
def test_shares_are_the_energies_that_a_cut_network_lacks(name):
    model = small_model(name)
    references = {1: -13.0, 6: -1037.0, 8: -2044.0}
    model.calibrate(2.5, references, references)
    batch = batch_of(model)
    out = model(batch.graph)
    shares = out.shares.energies()
    found = shares.sum(0) + model.reference_energies[batch.graph.numbers]
    torch.testing.assert_close(found, out.atom_energies, rtol=ROUND_OFF, atol=0)
    shorter = with_first_readout(model) if name == "ace" else cut(model, 1)
    # One layer is one share, and in DimeNet++ that before the first interaction as well; a layer of
    # PAMNet makes two of them.
    kept = {"ace": 1, "dimenet++": 2, "mxmnet": 1, "pamnet": 2}[name]
    expected = shorter(batch.graph).atom_energies - model.reference_energies[batch.graph.numbers]
    torch.testing.assert_close(shares[:kept].sum(0), expected, rtol=1e-9, atol=1e-9)


def test_shares_are_kept_for_training_alone():
    model = small_model()
    graph = batch_of(model).graph
    assert energy_and_forces(model, graph).shares is None
    assert energy_and_forces(model, graph, create_graph=True).shares is not None


@pytest.mark.parametrize(("name", "tap"), TAPS)
def test_weights_by_error_are_their_formula(name, tap):
    model = small_model(name, lkm_tap=tap)
    model.calibrate(2.5, {}, [1, 6, 8])
    batch = batch_of(model)
    capacity = Capacity.of(model.prepare(batch.graph), 0.2)
    padded = batch._replace(graph=pad(model.prepare(batch.graph), capacity, model.cutoff))
    out = unpad(model(padded.graph), len(batch.energies), batch.atoms)
    layers, values = len(out.embeddings), out.shares.values
    each = len(values) // layers
    expected = torch.zeros(1, layers, batch.atoms, dtype=torch.float64)
    for g in range(len(batch.energies)):
        here = batch.graph.graph_index == g
        inverse = []
        for j in range(layers):
            missing = sum(2.5 * v[here].sum().item() for v in values[(j + 1) * each :])
            inverse.append(1 / abs(out.energy[g].item() - missing - batch.energies[g].item()))
        for j in range(layers):
            expected[0, j, here] = inverse[j] / sum(inverse)
    found = error_weights(out, padded)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert not found.requires_grad


def test_untrained_layers_weigh_the_same():
    model = small_model()
    for output in model.outputs:
        torch.nn.init.zeros_(output.value.weight)
    batch = batch_of(model)
    out = model(batch.graph)
    exact = batch._replace(energies=out.energy.detach())
    uniform = torch.full((1, 3, 21), 1 / 3, dtype=torch.float64)
    for labelled in (batch, exact):
        torch.testing.assert_close(error_weights(out, labelled), uniform, rtol=1e-12, atol=0)


def test_the_layer_that_is_right_teaches():
    model = small_model()
    batch = batch_of(model)
    out = model(batch.graph)
    weights = error_weights(out, batch._replace(energies=out.energy + 1e-9))
    assert weights[0, -1].min() > 0.999
    assert weights.to(out.embeddings[0]).dtype == torch.float64
    narrow = out._replace(embeddings=tuple(layer.float() for layer in out.embeddings))
    assert error_weights(narrow, batch).dtype == torch.float32


@pytest.mark.parametrize("shares", [None, "one too few"])
def test_layers_without_shares_cannot_be_judged(shares):
    model = small_model()
    batch = batch_of(model)
    out = model(batch.graph)
    if shares is not None:
        shares = out.shares._replace(values=out.shares.values[1:])
    with pytest.raises(ValueError, match="needs an architecture that returns"):
        training_loss(
            out._replace(shares=shares), batch, LossConfig(gamma=0.01, lkm_teacher="error")
        )


@pytest.mark.parametrize(("name", "tap"), TAPS)
def test_weights_that_learn_start_at_the_mean_of_the_others(name, tap):
    model = small_model(name, lkm_tap=tap)
    teacher = learned_teacher(LossConfig(gamma=0.01, lkm_teacher="learned"), model)
    out = model(batch_of(model).graph)
    layers = len(out.embeddings)
    assert teacher.logits.shape == (layers, layers)
    weights = teacher()
    expected = (torch.ones(layers, layers) - torch.eye(layers)).double() / (layers - 1)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)


def test_weights_learn_which_layer_is_nearest():
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(6, 8, generator=generator)
    layers = [near, near + 0.1, torch.randn(6, 8, generator=generator)]
    teacher = LearnedTeacher(3)
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=0.1, weight_decay=0)
    losses = []
    for _ in range(50):
        optimiser.zero_grad()
        losses.append(lkm_loss(layers, teacher=teacher()))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    weights = teacher().detach()
    assert weights[0, 1] > 0.9
    assert weights[1, 0] > 0.9
    assert not weights.diagonal().any()
    restored = LearnedTeacher(3)
    restored.load_state_dict(teacher.state_dict())
    assert torch.equal(restored(), teacher())


def test_what_learns_is_no_part_of_the_model():
    model = small_model().float()
    before = set(model.state_dict())
    config = LossConfig(gamma=0.01, lkm_teacher="learned")
    teacher = learned_teacher(config, model)
    batch = batch_of(model)
    training_loss(model(batch.graph), batch, config, learned=teacher).total.backward()
    assert set(model.state_dict()) == before
    assert teacher.logits.dtype == torch.float32
    assert teacher.logits.grad.any()
    assert not teacher.logits.grad.diagonal().any()


@pytest.mark.parametrize("teacher", ["mean", "deeper", "neighbours", "error"])
def test_nothing_learns_with_other_teachers(teacher):
    assert learned_teacher(LossConfig(gamma=0.01, lkm_teacher=teacher), small_model()) is None


def test_weights_that_learn_must_be_given():
    model = small_model()
    batch = batch_of(model)
    with pytest.raises(ValueError, match="pass the weights from learned_teacher"):
        training_loss(model(batch.graph), batch, LossConfig(gamma=0.01, lkm_teacher="learned"))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_one_layer_trains_without_mixing(teacher):
    model = small_model("mxmnet", num_layers=1)
    config = LossConfig(gamma=0.01, lkm_teacher=teacher)
    batch = batch_of(model)
    learned = learned_teacher(config, model)
    losses = training_loss(model(batch.graph), batch, config, learned=learned)
    losses.total.backward()
    assert losses.lkm.item() == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_losses_can_be_traced(teacher):
    """What is traced with the numbers of one batch gives those of another one."""
    model = small_model("pamnet")
    config = LossConfig(gamma=1.0, lkm_teacher=teacher)
    learned = learned_teacher(config, model)
    batches = [batch_of(model, seed=seed) for seed in (0, 1)]
    totals = batches[0].totals()

    def gradients(energy, labels, *tensors):
        layers = [layer.detach().requires_grad_() for layer in tensors[:4]]
        shares = LayerShares(tensors[4:], model.scale)
        out = Prediction(energy, energy, tuple(layers), shares)
        batch = batches[0]._replace(energies=labels)
        losses = training_loss(out, batch, config, totals, learned=learned)
        inputs = [*layers, *(learned.parameters() if learned else ())]
        found = torch.autograd.grad(losses.total, inputs, materialize_grads=True)
        return torch.cat([losses.lkm.reshape(1), *(g.flatten() for g in found)])

    with torch.no_grad():
        outputs = [model(batch.graph) for batch in batches]
    arguments = [
        (out.energy, batch.energies, *out.embeddings, *out.shares.values)
        for out, batch in zip(outputs, batches, strict=True)
    ]
    traced = make_fx(gradients)(*arguments[0])
    found, expected = (function(*arguments[1]) for function in (traced, gradients))
    assert relative_error(found, expected) < ROUND_OFF


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teacher_is_pulled_by_nothing_it_teaches(teacher):
    """The gradients by the embeddings are those of a teacher that stands still."""
    model = small_model()
    config = LossConfig(gamma=0.01, lkm_teacher=teacher)
    learned = learned_teacher(config, model)
    batch = batch_of(model)
    out = model(batch.graph)
    layers = [layer.detach().requires_grad_() for layer in out.embeddings]
    out = out._replace(embeddings=tuple(layers))
    weights = teacher_of(out, batch, config, learned)
    lkm_loss(layers, teacher=weights).backward()
    last = layers[-1].grad
    assert (last is None or not last.any()) == (teacher == "deeper")
    assert model.outputs[0].value.weight.grad is None, "errors are judged, not trained on"


def test_a_property_without_forces_can_be_taught_by_error():
    model = small_model()
    batch = batch_of(model)._replace(forces=None)
    out = model(batch.graph)
    assert isinstance(out, Prediction)
    losses = training_loss(out, batch, LossConfig(gamma=0.01, lkm_teacher="error"))
    assert losses.lkm.item() > 0


def test_layers_are_not_judged_by_energies_that_are_not_fitted():
    table = {"data": {"train": "x.npz"}, "loss": {"lkm_teacher": "error"}}
    assert config_from_table(table).loss.lkm_teacher == "error"
    table["loss"]["energy"] = 0.0
    with pytest.raises(ConfigError, match="loss.energy is 0; this teacher needs"):
        config_from_table(table)


def test_pieces_of_a_batch_have_its_weights():
    model = small_model()
    frames = frames_of([rattled(seed=k) for k in range(3)])
    data = GraphFrames(replace(frames), model, torch.device("cpu"))
    weights = [
        error_weights(model(batch.graph), batch)
        for batch in (data.batch(torch.tensor(piece)) for piece in ([0, 1, 2], [0], [1, 2]))
    ]
    torch.testing.assert_close(weights[0], torch.cat(weights[1:], 2), rtol=1e-9, atol=0)
