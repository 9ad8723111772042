"""Where kernels come from: the compiler, the folder, and what happens without them."""

import importlib.machinery
import logging
import os
import sys
import types
import warnings

import pytest
import torch

from lkm_calc import energy_and_forces
from lkm_calc.kernel_forces import KernelForces
from lkm_calc.kernels import Kernel, build

from .support import graph_of, rattled, small_model


def test_it_is_built_once(tmp_path, caplog, monkeypatch):
    model, place = small_model(), tmp_path / "new"
    with caplog.at_level(logging.WARNING):
        Kernel(model, place)
        assert caplog.text.count("Compiled in") == 1
        monkeypatch.setattr(build, "_build", None)  # calling it would fail
        Kernel(model.float(), place)
    assert len(list(place.iterdir())) == 1
    monkeypatch.setattr(build, "processor", lambda: "another one")
    build._fingerprint.cache_clear()
    with pytest.raises(TypeError):
        Kernel(model, place)
    build._fingerprint.cache_clear()


def computes_in_the_ordinary_way(match, model, **options):
    """Check that there is one warning, and the model's numbers."""
    forces, graph = KernelForces(model, **options), graph_of(rattled(), model)
    with pytest.warns(UserWarning, match=match):
        found = forces(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forces(graph)
    assert not forces.used
    assert torch.equal(found.forces, energy_and_forces(model, graph).forces)


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setenv("CXX", "none-either")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    computes_in_the_ordinary_way(
        r"no C\+\+ compiler.*Install", small_model(), folder=tmp_path / "a"
    )


def test_the_compiler_of_pypi_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setenv("CXX", "none-either")
    installed = types.ModuleType("ziglang")
    installed.__spec__ = importlib.machinery.ModuleSpec("ziglang", None)
    monkeypatch.setitem(sys.modules, "ziglang", installed)
    assert build._compiler() == (sys.executable, "-m", "ziglang", "c++")
    monkeypatch.setenv("CXX", sys.executable)
    assert build._compiler() == (sys.executable,)


def test_with_a_compiler_that_fails(tmp_path, monkeypatch):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no space left >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    computes_in_the_ordinary_way("failed: no space left", small_model(), folder=tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users to tell apart")
def test_one_that_others_can_write_is_not_loaded(tmp_path):
    tmp_path.chmod(0o777)
    computes_in_the_ordinary_way("LKM_CACHE", small_model(), folder=tmp_path)


def test_a_damaged_one_is_told_of(tmp_path, monkeypatch):
    def write_nothing(name, compiler, path):
        path.touch(mode=0o600)
        path.write_bytes(b"no program")

    monkeypatch.setattr(build, "_build", write_nothing)
    place = tmp_path / "a"
    computes_in_the_ordinary_way("the program cannot be used", small_model(), folder=place)
