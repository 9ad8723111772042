"""The page of a run: what it shows, in a browser too, and what is refused."""

import json
import logging
import re
from pathlib import Path

import ase
import numpy as np
import pytest
import torch

from lkm_calc import LKMCalculator
from lkm_calc.page import PageError, write_page
from lkm_calc.units import KCAL_PER_MOL
from train.__main__ import main
from train.config import Config, DataConfig, ModelConfig, OptimiserConfig, RunConfig, to_table
from train.data import Frames, GraphFrames
from train.fit import fit, record
from train.report import Held, Measured, Run, write_run_page
from train.report.evaluate import LayerStatistics, Pair, Predictions
from train.report.run_page import run_page

from ...page.browser import opened
from ...page.test_page import data_of
from ...support import SMALL, rattled, rmd17_arrays, small_model, write_npz
from ..data.test_loader import frames_of
from .test_card import ERRORS, header

graph_objects = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
pytest.importorskip("chemiscope", reason="chemiscope is not installed")


def config_of(folder, test=True, **data):
    return Config(
        data=DataConfig(
            train=str(folder / "springs.npz"),
            test=str(folder / "test.npz") if test else "",
            n_train=30,
            n_validation=25,
            **data,
        ),
        model=ModelConfig("dimenet++", SMALL["dimenet++"]),
        optimiser=OptimiserConfig(epochs=2),
        run=RunConfig(directory=str(folder / "run"), device="cpu"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_npz(folder / "springs.npz", **rmd17_arrays(60))
    write_npz(folder / "test.npz", **rmd17_arrays(25, seed=9))
    assert fit(config_of(folder)) is not None
    return folder


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_a_finished_run_has_a_page_of_its_test_frames(folder):
    data = data_of((folder / "run" / "report.html").read_text())
    assert len(data["dataset"]["structures"]) == 25
    energies, forces, expected, *curves = data["plots"]
    assert len(curves) == 4
    arrays = rmd17_arrays(25, seed=9)
    calculator = LKMCalculator(folder / "run" / "model.safetensors")
    labels = arrays["forces"] * KCAL_PER_MOL
    for structure, _, number, error in energies["data"][1]["customdata"]:
        atoms = calculator_atoms(arrays, number)
        found = calculator.evaluate([atoms])[0]
        reference = arrays["energies"][number] * KCAL_PER_MOL
        assert error == pytest.approx(found["energy"] - reference, rel=6e-3)
        largest = np.linalg.norm(found["forces"] - labels[number], axis=1).max()
        shown = re.search(r"force error ([\d.]+) meV/Å", data["captions"][structure])[1]
        assert float(shown) == pytest.approx(1000 * largest, rel=1e-3)
    numbers = [point[2] for point in energies["data"][1]["customdata"]]
    assert sorted(numbers) == list(range(25))
    assert sum(len(t["x"]) for t in forces["data"][1:]) == 25 * 9 * 3
    assert sum(len(t["x"]) for t in expected["data"][:-1]) == 25 * 9


def calculator_atoms(arrays, number):
    return ase.Atoms(arrays["nuclear_charges"], arrays["coords"][number])


def test_plotly_accepts_the_figures(folder):
    for plot in data_of((folder / "run" / "report.html").read_text())["plots"]:
        graph_objects.Figure({"data": plot["data"], "layout": plot["layout"]})


def test_the_command_writes_the_same_page(folder, tmp_path, messages):
    path = tmp_path / "new.html"
    assert main(["report", str(folder / "run"), "--output", str(path)]) == 0
    assert str(path) in messages.text
    old, new = (p.read_text() for p in (folder / "run" / "report.html", path))
    assert data_of(new)["captions"] == data_of(old)["captions"]
    assert "25 test frames" in new
    assert "lkm-train fit config.json --data.train springs.npz" in new
    assert "<td>optimiser.epochs</td><td>2</td><td>150</td>" in new
    assert str(folder) not in new


def test_other_frames_and_validation_frames(folder, tmp_path, messages):
    other = write_npz(tmp_path / "other.npz", **rmd17_arrays(22, seed=3))
    command = ["report", str(folder / "run"), "--output", str(tmp_path / "x.html"), "--data"]
    assert main([*command, str(other)]) == 0
    assert "22 other.npz frames" in (tmp_path / "x.html").read_text()
    assert main([*command, str(folder / "springs.npz")]) == 0
    text = (tmp_path / "x.html").read_text()
    assert "25 validation frames" in text
    with np.load(folder / "run" / "split.npz") as split:
        numbers = [p[2] for p in data_of(text)["plots"][0]["data"][1]["customdata"]]
        assert sorted(numbers) == split["validation"].tolist()


def test_the_page_is_opened(folder, tmp_path, monkeypatch, messages):
    addresses = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(addresses.append(url)))
    command = ["report", str(folder / "run"), "--output", str(tmp_path / "x.html"), "--open"]
    assert main(command) == 0
    assert addresses == [(tmp_path / "x.html").as_uri()]
    assert "No browser was found. Open" in messages.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run / "none", "none is not a folder"),
        (lambda run: run.parent, r"does not contain config.json.*for example .*run"),
        (lambda run: without(run, "model.safetensors"), "no model.safetensors yet"),
        (lambda run: written(run, "config.json", "{"), "config.json is not valid JSON"),
        (lambda run: with_test(run, "gone.npz"), r"data.test of the run, gone.npz.*--data"),
        (lambda run: with_test(run, None), r"test.npz, has changed: its SHA-256 is .*--data"),
    ],
)
def test_refusals(folder, tmp_path, change, message, messages):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (run / name).write_bytes((folder / "run" / name).read_bytes())
    assert main(["report", str(change(run))]) == 1
    said = messages.records[-1].getMessage()
    assert re.search(message, said)
    assert "\n" not in said
    assert not (run / "report.html").exists()


def without(run, name):
    (run / name).unlink()
    return run


def written(run, name, text):
    (run / name).write_text(text)
    return run


def with_test(run, name):
    table = json.loads((run / "config.json").read_text())
    if name is None:
        name = str(write_npz(run / "test.npz", **rmd17_arrays(5)))
    table["data"]["test"] = name
    return written(run, "config.json", json.dumps(table))


def test_without_the_packages_a_run_ends_with_one_line(tmp_path, monkeypatch, messages):
    def missing(*_):
        raise PageError("Pages need more: pip install lkm-calc[report].")

    monkeypatch.setattr(record, "write_run_page", missing)
    write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))
    assert fit(config_of(tmp_path, test=False)) is not None
    assert messages.text.count("report.html is not written. Pages need more: pip install") == 1
    assert not (tmp_path / "run" / "report.html").exists()


class Known(Measured):
    """Predictions that no model made."""

    def expected_errors(self):
        return None if self.predictions.forces is None else 0.01 * np.ones(len(self.frames.numbers))


def invented(n_frames=30, n_atoms=3, forces=True, seed=0, labelled=None):
    """Return frames with random labels and errors, of which those not in labelled lack forces."""
    rng = np.random.default_rng(seed)
    rows = n_frames * n_atoms
    labels = 2 * rng.normal(size=(rows, 3))
    if labelled is not None:
        labels[~np.repeat(labelled, n_atoms)] = np.nan
    frames = Frames(
        numbers=np.tile([1, 6, 8] * (n_atoms // 3), n_frames),
        positions=4 * rng.normal(size=(rows, 3)),
        energies=rng.normal(size=n_frames),
        starts=n_atoms * np.arange(n_frames + 1),
        forces=labels if forces else None,
    )
    energies = torch.from_numpy(frames.energies)
    known = torch.from_numpy(labels[np.isfinite(labels).all(1)])
    errors = 0.01 * torch.from_numpy(rng.normal(size=known.shape))
    predictions = Predictions(
        Pair(energies, energies + 0.01 * torch.from_numpy(rng.normal(size=n_frames))),
        Pair(known, known + errors) if forces else None,
        None,
        torch.from_numpy(frames.numbers),
        torch.full((n_frames,), n_atoms),
        LayerStatistics(0.0, 0.0, 0.0),
        torch.zeros(n_frames, dtype=torch.float64),
    )
    held = Held("test", frames, np.arange(n_frames) + 100)
    model = small_model()
    unused = GraphFrames(frames_of([rattled("H2O")]), model, model.device)
    return Known(model, held, unused, predictions, 16)


def run_in(folder, rows=100):
    curves = [
        {
            **{"step": k, "epoch": k, "seconds": 60 * k, "learning_rate": 1e-3},
            **{"train_forces": 1 / k, "train_energy": 2 / k},
        }
        for k in range(1, rows + 1)
    ]
    config = Config(DataConfig(train="water.npz", n_train=950, n_validation=50))
    described = header(test_errors=ERRORS, validation_errors=ERRORS)
    described["provenance"]["config"] = to_table(config)
    return Run(directory=folder, config=config, rows=curves, header=described)


def test_a_thousand_frames_of_21_atoms_take_at_most_5_mb(tmp_path):
    write_run_page(run_in(tmp_path), invented(1000, 21), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size <= 5e6


def test_the_worst_frames_come_first():
    found = invented()
    errors = found.predictions.forces.difference.norm(dim=1).view(30, 3).amax(1).numpy()
    assert found.ranking().tolist() == np.argsort(-errors).tolist()
    page = run_page(run_in(Path("run")), found)
    assert [row[1] for row in page.beside[-1].rows] == [
        str(100 + f) for f in np.argsort(-errors)[:20]
    ]
    assert page.scene.frames[0].caption.startswith(f"Frame {100 + errors.argmax()} (1 of 30")
    assert page.lead[-1] == "The run is not finished: 100 of 150 epochs."
    worst = page.scene.frames[0]
    assert worst.values["force error [meV/Å]"].max() == pytest.approx(1000 * errors.max())
    assert worst.focus == worst.values["force error [meV/Å]"].argmax()


def test_frames_without_forces_follow_by_their_energies(tmp_path):
    labelled = np.arange(30) % 2 == 0
    found = invented(labelled=labelled)
    ranking = found.ranking()
    assert set(ranking[:15]) == set(np.flatnonzero(labelled))
    energy = found.predictions.energies.difference.abs().numpy()
    assert np.all(np.diff(energy[ranking[15:]]) <= 0)
    page = run_page(run_in(Path("run")), found)
    assert "largest force error" not in page.scene.frames[15].caption
    assert page.beside[-1].rows[16][3:] == ["", "", ""]
    write_page(tmp_path / "page.html", page)
    with opened(tmp_path / "page.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        tab.locator("tr[data-structure]").last.click()
        tab.wait_for_function("window.page.shown.structure === 19")


def test_a_property_has_no_forces(tmp_path):
    page = run_page(run_in(Path("run")), invented(forces=False))
    energies, worst = page.beside
    assert energies.title.startswith("Energies: MAE")
    assert worst.title == "The worst 20 frames"
    assert worst.note == "By energy error."
    assert not page.scene.units
    write_page(tmp_path / "page.html", page)
    with opened(tmp_path / "page.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        tab.locator("tr[data-structure]").last.click()
        tab.wait_for_function("window.page.shown.structure === 19")


def test_large_sets_are_thinned_but_for_the_worst(monkeypatch):
    monkeypatch.setattr("train.report.run_page.MAX_FRAMES", 25)
    found = invented(200)
    page = run_page(run_in(Path("run")), found)
    assert len(page.scene.frames) == 25
    numbers = [point[2] - 100 for point in page.beside[0].figure["data"][1]["customdata"]]
    ranking = found.ranking().tolist()
    assert numbers[:20] == ranking[:20]
    assert numbers[-1] == ranking[-1]
    assert "25 of 200 frames" in page.beside[-1].note
    assert "(200 of 200 from the worst)" in page.scene.frames[-1].caption


def test_a_reader_clicks_a_force_and_sees_its_atom(folder):
    with opened(folder / "run" / "report.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        first = tab.text_content("#caption")
        before = tab.locator("#viewer").screenshot()
        place = tab.evaluate(
            """() => {
              const plot = window.page.linked[2], trace = plot.data[1];
              plot.scrollIntoView();
              const now = window.page.shown.structure;
              const k = trace.customdata.findIndex((link) => link[0] !== now);
              const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
              return [box.x + xaxis._offset + xaxis.d2p(trace.x[k]),
                      box.y + yaxis._offset + yaxis.d2p(trace.y[k])];
            }"""
        )
        tab.mouse.move(*place)
        tab.wait_for_timeout(300)
        tab.mouse.click(*place)
        tab.wait_for_function("window.page.shown.structure !== 0")
        assert tab.text_content("#caption") != first
        tab.wait_for_timeout(1000)
        assert tab.locator("#viewer").screenshot() != before
