from dataclasses import replace

import numpy as np
import pytest
import torch

from lkm_calc.potential.forces import energy_and_forces
from train.config import Config, ConfigError, LossConfig, OptimiserConfig, RunConfig
from train.data.loader import GraphFrames
from train.fit.loop import fit
from train.fit.parallel import Stop, Workers
from train.fit.step import Stepper
from train.gradients import DoubleBackward, compiled
from train.state.state import TrainingState

from ...support import graph_of, rattled, relative_error, small_model
from ..fit.test_no_waiting import frames_of

FEW_LAYERS = dict(num_blocks=1, num_before_skip=0, num_after_skip=0, num_output_dense=0)
"""Compiling takes as long as there are operations."""


def labelled_by(model, structures):
    results = [energy_and_forces(model, graph_of(atoms, model)) for atoms in structures]
    return replace(
        frames_of(structures),
        energies=np.array([result.energy.item() for result in results]),
        forces=np.concatenate([result.forces.numpy() for result in results]),
    )


def steps(
    compile,
    batches=([0, 1, 2, 3], [4, 5, 0, 2], [5]),
    seed=0,
    gamma=0.1,
    programs=None,
    learnt=False,
):
    """Make a few steps and return the stepper, the weights and the losses.

    With `learnt` the labels are what the model gives.
    """
    structures = [rattled(seed=k) for k in range(6)]
    frames = frames_of(structures)
    frames = replace(frames, forces=frames.forces / 10)
    optimiser = OptimiserConfig(batch_size=4, accumulate=2)
    loss = LossConfig(gamma=gamma, gamma_warmup_steps=3)
    config = Config(loss=loss, optimiser=optimiser, run=RunConfig(compile=compile, kernels="off"))
    model = small_model(seed=seed, **FEW_LAYERS)
    model.calibrate(1.0 + seed, {6: float(seed)}, [1, 6, 8])
    if learnt:
        frames = labelled_by(model, structures)
    data = GraphFrames(frames, model, torch.device("cpu"))
    state = TrainingState.create(model, optimiser)
    stepper = Stepper(state, data, config, Workers(), total=10, programs=programs)
    for indices in batches:
        stepper.step(torch.tensor(indices), 1e-3, Stop([], Workers()))
    return stepper, torch.cat([p.detach().flatten() for p in model.parameters()]), state.loss_sums


def test_compiled_steps_are_ordinary_steps(monkeypatch):
    calls = []
    plain = DoubleBackward.__call__
    monkeypatch.setattr(
        DoubleBackward, "__call__", lambda self, *a: calls.append(1) or plain(self, *a)
    )
    batches = [0, 1, 2, 3], [4, 5, 0, 2], [1, 3, 5, 4]
    stepper, *found = steps(True, batches)
    assert len(stepper.gradients.programs) == 1
    assert len(calls) == 1, "to compare"
    _, *expected = steps(False, batches)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-8


def without_compiler(*arguments):
    raise RuntimeError("no compiler found\nand more")


def other_numbers(traced, inputs, options):
    return lambda *arguments: [2 * value for value in traced(*arguments)]


def rounded_otherwise(traced, inputs, options):
    """Return a program whose weights differ in the last digits, as if it summed differently."""

    def program(weight, *others):
        return traced(weight * (1 + 1e-12), *others)

    return program


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(without_compiler, "no compiler found"), (other_numbers, "off by")],
)
def test_trains_in_the_ordinary_way_where_compilation_fails(monkeypatch, compiler, reason):
    monkeypatch.setattr(compiled, "inductor_compile", compiler)
    with pytest.warns(UserWarning, match=reason) as caught:
        stepper, *found = steps(compile=True)
    assert sum(one.category is UserWarning for one in caught) == 1, "one warning, not one a step"
    assert stepper.gradients.failed
    _, *expected = steps(compile=False)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-8


def test_which_batches_are_compiled_does_not_depend_on_where_a_run_goes_on(monkeypatch):
    monkeypatch.setattr(compiled, "inductor_compile", lambda traced, inputs, options: traced)
    end, whole = [5, 4, 3], [0, 1, 2, 3]
    for batches in ([whole, end, whole], [end, whole, end]):
        stepper, *_ = steps(True, batches)
        assert [key[1][3] for key in stepper.gradients.programs] == [18], "two frames of nine atoms"


def test_runs_of_other_seeds_and_gammas_share_programs():
    programs = {}
    whole = [0, 1, 2, 3], [4, 5, 0, 2]
    steps(True, whole, programs=programs)
    assert len(programs) == 1
    for gamma in (0.0, 0.02, "auto"):
        stepper, *found = steps(True, whole, 1, gamma, programs)
        assert stepper.gradients.compiled == 0
        assert len(programs) == 1
        _, *expected = steps(False, whole, 1, gamma)
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < 1e-8


def test_a_model_that_has_learnt_its_frames_is_compiled(monkeypatch, recwarn):
    monkeypatch.setattr(compiled, "inductor_compile", rounded_otherwise)
    stepper, *_ = steps(True, learnt=True)
    assert stepper.gradients.compiled == 1
    assert not [one for one in recwarn if one.category is UserWarning]


def test_further_shapes_are_computed_in_the_ordinary_way(monkeypatch):
    monkeypatch.setattr(compiled, "inductor_compile", lambda traced, inputs, options: traced)
    monkeypatch.setattr(compiled, "MAX_PROGRAMS", 1)
    monkeypatch.setattr(Stepper, "_repeats", lambda self, totals: True)
    stepper, *_ = steps(True, ([0, 1], [0, 1, 2], [0, 1, 2, 3], [2, 3]))
    assert len(stepper.gradients.programs) == 1
    assert not stepper.gradients.failed


def test_is_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr("train.fit.loop.device_of", lambda *a: torch.device("cuda"))
    with pytest.raises(ConfigError, match="run.compile is for the CPU"):
        fit(Config(run=RunConfig(compile=True)))
