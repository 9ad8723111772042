"""Where kernels come from: the compiler, the folder, and what happens without them."""

import importlib.machinery
import logging
import os
import sys
import types

import pytest
import torch

from lkm_calc import energy_and_forces
from lkm_calc.compile.kernel_forces import KernelForces
from lkm_calc.compile.kernels import Kernel, build
from lkm_calc.files.program_files import CompileError

from ..support import graph_of, rattled, small_model, warnings_as_errors


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
    with warnings_as_errors():
        forces(graph)
    assert not forces.used
    assert torch.equal(found.forces, energy_and_forces(model, graph).forces)


def without_a_system_compiler(monkeypatch):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)


def test_without_a_compiler(tmp_path, monkeypatch):
    without_a_system_compiler(monkeypatch)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    computes_in_the_ordinary_way(
        r"no C\+\+ compiler.*Install", small_model(), folder=tmp_path / "a"
    )


def test_a_compiler_that_is_asked_for_and_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    computes_in_the_ordinary_way("CXX is no-such-compiler", small_model(), folder=tmp_path / "a")


def test_a_compiler_may_come_with_options(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -m64 'a b'")
    assert build._compiler() == (sys.executable, "-m64", "a b")


@pytest.mark.parametrize(("origin", "found"), [("ziglang/__init__.py", True), (None, False)])
def test_the_compiler_of_pypi_where_there_is_no_other(origin, found, monkeypatch):
    """A folder of its name, which has no origin, is none."""
    without_a_system_compiler(monkeypatch)
    installed = types.ModuleType("ziglang")
    installed.__spec__ = importlib.machinery.ModuleSpec("ziglang", None, origin=origin)
    monkeypatch.setitem(sys.modules, "ziglang", installed)
    if found:
        assert build._compiler() == (sys.executable, "-m", "ziglang", "c++")
    else:
        with pytest.raises(CompileError, match="pip install"):
            build._compiler()


def test_the_compiler_of_pypi_is_told_of_a_folder(tmp_path, monkeypatch):
    """Which it asks for where there is no home."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\necho "$ZIG_GLOBAL_CACHE_DIR" >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    with pytest.raises(CompileError, match=f"failed: {tmp_path}/a/zig"):
        Kernel(small_model(), tmp_path / "a")


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
