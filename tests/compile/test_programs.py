"""Compiled programs: the same numbers, kept for the next process, and what happens without them."""

import logging
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write

from lkm_calc import Graph, LKMCalculator, committee, energy_and_forces
from lkm_calc.__main__ import main
from lkm_calc.compile import aot, protocol
from lkm_calc.compile.cuda_graphs import captured_forces
from lkm_calc.compile.padding import pad
from lkm_calc.compile.programs import ProgramForces
from lkm_calc.compile.protocol import UncompiledForces

from ..support import (
    ROUND_OFF,
    crystal,
    graph_of,
    rattled,
    relative_error,
    small_model,
    warnings_as_errors,
)
from ..train.fit.test_no_waiting import run_again


def programs_for(model, compile):
    """Choose programs also where there is a kernel."""
    return ProgramForces(model) if compile else UncompiledForces(model)


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """Take programs, faster or not, also where there is a kernel."""
    monkeypatch.setattr(ProgramForces, "_is_faster", lambda *arguments: True)
    monkeypatch.setattr(committee, "force_function", programs_for)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Programs are shared by the tests: each takes the compiler half a minute."""
    return tmp_path_factory.mktemp("programs")


def stand_in(self, graph, capacity, stress):
    """Make a program without the compiler: the model itself on padded graphs."""
    padded = pad(graph, capacity, self.model.cutoff)
    return capacity, captured_forces(self.model, padded, stress, run_again)


def assert_equal(found, expected, tolerance=ROUND_OFF):
    for name, value in expected._asdict().items():
        if isinstance(value, torch.Tensor):
            assert relative_error(getattr(found, name), value) < tolerance, name
    for layer, other in zip(found.embeddings, expected.embeddings, strict=True):
        assert relative_error(layer, other) < tolerance


SHALLOW = {"dimenet++": {"num_blocks": 1}, "pamnet": {"num_layers": 1}}
"""What the compiler sees in these tests: it takes as long as there are operations."""


@pytest.mark.parametrize("name", SHALLOW)
def test_a_program_computes_what_the_model_computes(name, folder, caplog):
    model = small_model(name, **SHALLOW[name])
    forces = ProgramForces(model, folder)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for seed in range(4):
            graph = graph_of(rattled(seed=seed, amplitude=0.02), model)
            assert_equal(forces(graph), energy_and_forces(model, graph))
    assert len(forces.choices) == 1
    assert f"cached in {folder}" in caplog.text


def test_a_program_is_kept_for_the_next_process(folder, caplog, monkeypatch):
    model = small_model(**SHALLOW["dimenet++"])
    graph = graph_of(rattled(), model)
    ProgramForces(model, folder)(graph)
    before = len(list(folder.iterdir()))
    monkeypatch.setattr(aot, "_compile", None)  # calling it would fail
    forces = ProgramForces(small_model(**SHALLOW["dimenet++"]), folder)
    graph = graph_of(rattled(seed=1, amplitude=0.02), model)
    assert_equal(forces(graph), energy_and_forces(model, graph))
    assert not forces.failed
    assert len(list(folder.iterdir())) == before


def test_a_damaged_program_is_told_of(tmp_path, monkeypatch):
    model = small_model()
    monkeypatch.setattr(aot, "_compile", lambda m, p, s, path: path.write_bytes(b"no program"))
    tmp_path.chmod(0o700)
    before = os.umask(0o022)
    try:
        with pytest.warns(UserWarning, match="the program cannot be used"):
            ProgramForces(model, tmp_path)(graph_of(rattled(), model))
    finally:
        os.umask(before)


def test_a_replay_that_does_nothing_is_found_out(monkeypatch):
    def capture_nothing(work, device):
        return work(), lambda: None

    def make(self, graph, capacity, stress):
        padded = pad(graph, capacity, self.model.cutoff)
        return capacity, captured_forces(self.model, padded, stress, capture_nothing)

    monkeypatch.setattr(ProgramForces, "_make", make)
    model = small_model()
    with pytest.warns(UserWarning, match="compiled forces are off by"):
        ProgramForces(model)(graph_of(rattled(), model))


def test_moving_a_model_to_where_it_is_leaves_its_constants():
    model = small_model()
    before = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    model.to("cpu").double()
    assert before == {name: buffer.data_ptr() for name, buffer in model.named_buffers()}


def test_other_weights_and_kinds_have_other_names():
    model, other = small_model(), small_model()
    with torch.no_grad():
        next(other.parameters()).add_(1e-9)
    graph, cell = (m.prepare(graph_of(a, m)) for a, m in ((rattled(), model), (crystal(), model)))
    names = {
        aot._fingerprint(m, g, stress)
        for m, g, stress in (
            (model, graph, False),
            (other, graph, False),
            (model, cell, False),
            (model, cell, True),
            (small_model().float(), graph, False),
        )
    }
    assert len(names) == 5
    assert aot._fingerprint(small_model(), graph, False) in names


def test_periodic_structures_with_stress(folder):
    model = small_model(**SHALLOW["dimenet++"])
    forces = ProgramForces(model, folder)
    for seed in range(2):
        graph = graph_of(crystal(seed), model)
        assert_equal(forces(graph, stress=True), energy_and_forces(model, graph, stress=True))
    assert not forces.failed


def test_the_calculator_follows_atoms_that_outgrow_a_program(monkeypatch):
    """With a stand-in for the compiler: which programs are made and used."""
    made = []

    def make(self, graph, capacity, stress):
        made.append(capacity.atoms)
        return stand_in(self, graph, capacity, stress)

    monkeypatch.setattr(ProgramForces, "_make", make)
    model = small_model()
    quick, plain = LKMCalculator(model, compile=True), LKMCalculator(model)
    spread = rattled()
    spread.positions *= 3
    # A molecule, one of fewer edges, the first again, another one, a crystal with its stress.
    for atoms in (spread, rattled(seed=1), spread, rattled("H2O"), crystal(), rattled(seed=2)):
        quick.calculate(atoms)
        plain.calculate(atoms)
        for name, value in plain.results.items():
            np.testing.assert_allclose(quick.results[name], value, rtol=1e-9, atol=1e-9)
    assert made == [11, 11, 5, 6]


def test_results_of_a_replay_are_copied(monkeypatch):
    model = small_model()
    calculator = LKMCalculator(model, compile=True)
    monkeypatch.setattr(ProgramForces, "_make", stand_in)
    first = calculator.get_forces(rattled())
    before = first.copy()
    calculator.get_forces(rattled(seed=1, amplitude=0.02))
    assert np.array_equal(first, before)


def test_without_a_compiler_one_warning_and_the_same_numbers(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(aot, "aoti_compile_and_package", fail)
    monkeypatch.setenv("LKM_CACHE", str(tmp_path / "cache"))
    model = small_model()
    calculator, expected = LKMCalculator(model, compile=True), LKMCalculator(model)
    with pytest.warns(UserWarning, match=r"No working C\+\+ compiler found.*is needed"):
        forces = calculator.get_forces(rattled())
    assert np.array_equal(forces, expected.get_forces(rattled()))
    with warnings_as_errors():
        calculator.get_forces(rattled(seed=1))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_program_that_computes_something_else_is_not_used(wrong, monkeypatch):
    model = small_model()

    def make(self, graph, capacity, stress):
        capacity, program = stand_in(self, graph, capacity, stress)

        def run(tensors):
            energy, forces, *others = program(tensors)
            return [energy, forces + wrong, *others]

        return capacity, run

    monkeypatch.setattr(ProgramForces, "_make", make)
    forces = ProgramForces(model)
    graph = graph_of(rattled(), model)
    with pytest.warns(UserWarning, match="compiled forces are off by"):
        found = forces(graph)
    assert_equal(found, energy_and_forces(model, graph))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users to tell apart")
def test_a_program_that_others_can_write_is_not_loaded(tmp_path, monkeypatch):
    model = small_model()
    monkeypatch.setattr(aot, "_compile", lambda m, p, s, path: path.write_bytes(b"code"))
    tmp_path.chmod(0o777)
    with pytest.warns(UserWarning, match="LKM_CACHE"):
        ProgramForces(model, tmp_path)(graph_of(rattled(), model))


def test_the_first_graph_may_have_no_edges(monkeypatch):
    model = small_model()
    forces = ProgramForces(model)
    monkeypatch.setattr(ProgramForces, "_make", stand_in)
    atom = rattled("H2O")[:1]
    assert not forces(Graph.from_atoms(atom, model.cutoff)).forces.any()
    assert not forces.failed


def test_the_command_compiles_for_a_structure(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ProgramForces, "_make", stand_in)
    path = tmp_path / "ethanol.xyz"
    write(path, rattled())
    with caplog.at_level(logging.INFO):
        assert main(["compile", "rmd17-ethanol", str(path)]) == 0
    assert "9 atoms" in caplog.text
    assert main(["compile", "rmd17-nothing", str(path)]) == 1
    assert "rmd17-nothing" in caplog.text
    assert main(["compile", "rmd17-ethanol", str(tmp_path / "none.xyz")]) == 1


def test_the_faster_way_is_taken(monkeypatch, caplog):
    monkeypatch.undo()
    model, calls = small_model(), []

    def make(self, graph, capacity, stress):
        capacity, program = stand_in(self, graph, capacity, stress)

        def slow(tensors):
            calls.append(1)
            time.sleep(0.2)
            return program(tensors)

        return capacity, slow

    monkeypatch.setattr(ProgramForces, "_make", make)
    forces = ProgramForces(model)
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            graph = graph_of(rattled(seed=seed, amplitude=0.02), model)
            assert_equal(forces(graph), energy_and_forces(model, graph))
    assert len(calls) == 1 + protocol.TRIALS
    assert caplog.text.count("without the compiled program") == 1


def test_a_change_of_any_source_makes_a_program_anew(monkeypatch):
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or read_bytes(self))
    model = small_model()
    aot._fingerprint(model, graph_of(rattled(), model), False)
    sources = {f"{path.parent.name}/{path.name}" for path in read}
    assert {"models/energy.py", "nn/layers.py", "potential/forces.py"} <= sources
