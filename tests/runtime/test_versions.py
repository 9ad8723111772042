import platform
from importlib import metadata

import pytest
import torch

from lkm_calc.__main__ import main as lkm_calc
from lkm_calc.runtime.versions import package_version
from train.__main__ import main as lkm_train


@pytest.mark.parametrize("command", [lkm_calc, lkm_train])
def test_both_commands_tell_their_versions(command, capsys):
    with pytest.raises(SystemExit) as done:
        command(["--version"])
    assert done.value.code == 0
    expected = f"torch {torch.__version__}, Python {platform.python_version()}\n"
    assert capsys.readouterr().out == f"lkm-calc {package_version()}, {expected}"


def test_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    assert package_version() != "not installed"
    monkeypatch.setattr(metadata, "version", missing)
    assert package_version() == "not installed"
