"""A leading ~ in every path that a user may write."""

import ast
import json
import logging

import ase.io
import pytest

from lkm_calc import LKMCalculator, load_model, save_model
from lkm_calc.__main__ import main as lkm_calc
from lkm_calc.files.paths import expanded
from lkm_calc.files.program_files import cache_folder
from lkm_calc.md.ensembles import MDSettings
from lkm_calc.md.simulation import Simulation
from lkm_calc.potential.checkpoint import read_header
from lkm_calc.uncertainty.collection import Collection
from train.__main__ import main as lkm_train
from train.download import download
from train.formats.hdf5 import read_hdf5, write_hdf5
from train.formats.read import read_frames

from ..support import ROOT, SMALL, rattled, rmd17_arrays, small_model, write_npz


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder that is not the working folder, which must stay as it is."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_only_a_leading_tilde_is_expanded(home):
    assert expanded("~/x") == home / "x"
    for path in ("x~", "a/~/b", "~no-such-user/x", "rmd17-ethanol"):
        assert str(expanded(path)) == path


def soft_model():
    """Return a model whose forces are small, so that MD with it goes on."""
    model = small_model()
    model.scale.mul_(0.001)
    return model


def test_models(home):
    save_model(small_model(), "~/models/m.safetensors")
    assert names(home / "models") == {"m.safetensors"}
    path = "~/models/m.safetensors"
    assert read_header(path)["architecture"] == "dimenet++"
    atoms = rattled()
    energy = LKMCalculator(small_model()).get_potential_energy(atoms)
    assert LKMCalculator(path).get_potential_energy(atoms) == energy
    assert LKMCalculator([path, load_model(path)]).get_potential_energy(atoms) == energy


def test_simulations(home):
    atoms = rattled(amplitude=0.02)
    atoms.calc = LKMCalculator(soft_model())
    settings = MDSettings()
    Simulation(atoms, settings, "~/runs/md").run(2)
    assert names(home / "runs" / "md") == {"restart.json", "log.csv", settings.trajectory}
    Collection("~/new/outside.extxyz").add(atoms, {})
    assert names(home / "new") == {"outside.extxyz"}


def test_lkm_calc(home):
    save_model(soft_model(), home / "m.safetensors")
    rattled(amplitude=0.02).write(home / "a.xyz")
    model, atoms = "~/m.safetensors", "~/a.xyz"
    assert lkm_calc(["info", model]) == 0
    assert lkm_calc(["md", model, f"{atoms}@0", "--steps", "2", "--output=~/md"]) == 0
    assert lkm_calc(["evaluate", model, atoms, "--output=~/new/e.xyz"]) == 0
    arguments = ["--output=~/r.xyz", "--trajectory=~/r.traj", "--steps", "2"]
    lkm_calc(["relax", model, atoms, *arguments])
    assert (
        lkm_calc(["vib", model, atoms, "--fmax", "9", "--output=~/v.json", "--modes=~/v.xyz"]) == 0
    )
    made = {"md", "new", "r.xyz", "r.traj", "v.json", "v.xyz"}
    assert names(home) == made | {"m.safetensors", "a.xyz"}


def test_lkm_train(home, caplog):
    caplog.set_level(logging.INFO)
    write_npz(home / "d.npz", **rmd17_arrays(30))
    (home / "c.toml").write_text(
        "[data]\ntrain = '~/d.npz'\ntest = '~/d.npz'\nn_train = 20\nn_validation = 8\n"
        "[model]\nname = 'dimenet++'\n"
        f"hypers = {{{', '.join(f'{k} = {v}' for k, v in SMALL['dimenet++'].items())}}}\n"
        "[optimiser]\nepochs = 1\n[run]\ndirectory = '~/run'\ndevice = 'cpu'\nkernels = 'off'\n"
    )
    assert lkm_train(["fit", "~/c.toml"]) == 0
    assert json.loads((home / "run" / "config.json").read_text())["data"]["train"] == "~/d.npz"
    model = "~/run/model.safetensors"
    tuned = ["--finetune", model, "--run.directory", "~/tuned"]
    assert lkm_train(["fit", "~/c.toml", *tuned]) == 0
    assert lkm_train(["evaluate", model, "~/d.npz"]) == 0
    assert lkm_train(["calibrate", model, "~/d.npz"]) == 0
    assert lkm_train(["check-data", "~/d.npz", "--output=~/d.png"]) in (0, 1)
    assert names(home) == {"d.npz", "c.toml", "run", "tuned", "d.png"}


def test_data_files(home):
    ase.io.write(home / "a.extxyz", [rattled(seed=s) for s in range(2)])
    atoms = ase.io.read(home / "a.extxyz", ":")
    for s, image in enumerate(atoms):
        image.info["energy"] = float(s)
    ase.io.write(home / "a.extxyz", atoms)
    frames = read_frames("~/a.extxyz", check_units=False)
    write_hdf5(frames, "~/a.h5")
    assert len(read_hdf5("~/a.h5", check_units=False)) == 2
    write_npz(home / "md17_ethanol.npz", **rmd17_arrays(4))
    assert download("md17-ethanol", "~") == home / "md17_ethanol.npz"


def test_the_cache(home, monkeypatch):
    monkeypatch.setenv("LKM_CACHE", "~/cache")
    assert cache_folder() == home / "cache"


@pytest.mark.parametrize("package", ["lkm_calc", "train"])
def test_options_that_are_paths_are_expanded(package):
    found = []
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "type":
                found += [ast.unparse(node.value)]
    assert "Path" not in found
    assert "expanded" in found
