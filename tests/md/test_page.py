"""The page of a simulation."""

import csv
import shutil

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from lkm_calc.__main__ import main
from lkm_calc.md import write_md_page
from lkm_calc.md.extrapolation import ExtrapolationLog

from ..page.browser import opened
from ..page.test_page import data_of

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("chemiscope", reason="chemiscope is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("md")
    molecule("CH3CH2OH").write(folder / "ethanol.xyz")
    command = ["md", "rmd17-ethanol", str(folder / "ethanol.xyz"), "--output", str(folder / "run")]
    command += ["--steps", "60", "--log-every", "2", "--frame-every", "10", "--ensemble", "nve"]
    assert main([*command, "--trajectory", "run.xyz", "--page"]) == 0
    return folder / "run"


def test_curves_and_structures(folder):
    data = data_of((folder / "md.html").read_text())
    frames = ase.io.read(folder / "run.xyz", ":")
    assert len(frames) == len(data["dataset"]["structures"]) == 7
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    temperature, potential, total, drift = (plot["data"][0] for plot in data["plots"])
    np.testing.assert_allclose(
        temperature["y"], [float(row["temperature_K"]) for row in rows], rtol=1e-6
    )
    lowest = min(float(row["potential_eV"]) for row in rows)
    expected = [float(row["total_eV"]) - lowest for row in rows]
    np.testing.assert_allclose(total["y"], expected, rtol=1e-6)
    assert min(potential["y"]) == 0
    assert len(drift["x"]) == 31
    for time, (structure, _) in zip(temperature["x"], temperature["customdata"], strict=True):
        assert abs(2000 * time - 10 * structure) <= 5
    for k, atoms in enumerate(frames):
        assert data["captions"][k].startswith(f"{0.005 * k:.4g} ps: potential energy")
        assert f"{atoms.get_potential_energy():.4f} eV" in data["captions"][k]
        assert data["dataset"]["structures"][k]["x"] == pytest.approx(
            atoms.positions[:, 0], abs=6e-4
        )


def test_arrows_have_one_scale(folder):
    assert len({text for (text,) in data_of((folder / "md.html").read_text())["legends"]}) == 1


def test_long_trajectories_are_thinned(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lkm_calc.md.page.MAX_FRAMES", 3)
    page = tmp_path / "md.html"
    write_md_page(folder / "log.csv", folder / "run.xyz", 10, page, "MD")
    data = data_of(page.read_text())
    assert [caption.split()[0] for caption in data["captions"]] == ["0", "0.015", "0.03"]
    assert "3 frames of run.xyz, one in 3" in page.read_text()


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    """A run that leaves the training distribution."""
    folder = tmp_path_factory.mktemp("hot")
    molecule("CH3CH2OH").write(folder / "ethanol.xyz")
    command = ["md", "rmd17-ethanol", str(folder / "ethanol.xyz"), "--output", str(folder / "run")]
    command += ["--steps", "60", "--temperature", "2500", "--on-extrapolation", "save", "--page"]
    assert main([*command, "--trajectory", "run.xyz", "--frame-every", "10"]) == 0
    return folder / "run"


def test_steps_outside_the_training_distribution_are_marked(hot):
    page = (hot / "md.html").read_text()
    rows = ExtrapolationLog(hot / "extrapolation.csv").rows()
    steps = sorted({row.step for row in rows})
    assert 0 < len(steps) < 61
    assert f"guard: {len(steps)} steps are outside" in page
    assert f"the first at {rows[0].time_ps:.4g} ps." in page
    for plot in data_of(page)["plots"]:
        curve, marks = plot["data"]
        assert marks["x"] == pytest.approx([0.0005 * step for step in steps])
        expected = np.interp(marks["x"], curve["x"], curve["y"])
        np.testing.assert_allclose(marks["y"], expected, rtol=1e-6)
        worst = {row.step: row.atoms[0] for row in reversed(rows)}
        for step, text, (frame, atom) in zip(
            steps, marks["text"], marks["customdata"], strict=True
        ):
            assert abs(step - 10 * frame) <= 5
            assert atom == worst[step]
            assert text.startswith(f"step {step} (")
            values = {row.measure: f"{row.value:.3g}" for row in rows if row.step == step}
            assert all(value in text for value in values.values())


def test_many_steps_outside_are_thinned(hot, tmp_path, monkeypatch):
    monkeypatch.setattr("lkm_calc.md.page.MAX_ROWS", 4)
    page, events = tmp_path / "md.html", hot / "extrapolation.csv"
    write_md_page(hot / "log.csv", hot / "run.xyz", 10, page, "MD", events)
    steps = len({row.step for row in ExtrapolationLog(events).rows()})
    stride = -(-steps // 4)
    assert f"of which one in {stride} is marked" in page.read_text()
    assert len(data_of(page.read_text())["plots"][0]["data"][1]["x"]) == -(-steps // stride)


def test_without_extrapolation_the_page_says_so(folder, tmp_path):
    assert "guard" not in (folder / "md.html").read_text().partition("<main")[0]
    log = ExtrapolationLog(tmp_path / "extrapolation.csv")
    log.begin()
    page = tmp_path / "md.html"
    write_md_page(folder / "log.csv", folder / "run.xyz", 10, page, "MD", log.path)
    assert "no step is outside the training distribution" in page.read_text()
    assert all(len(plot["data"]) == 1 for plot in data_of(page.read_text())["plots"])


def test_a_run_that_the_guard_stops_has_a_page(tmp_path, caplog):
    molecule("CH3CH2OH").write(tmp_path / "ethanol.xyz")
    command = ["md", "rmd17-ethanol", str(tmp_path / "ethanol.xyz"), "--temperature", "2500"]
    command += ["--steps", "60", "--log-every", "5", "--on-extrapolation", "stop", "--page"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 1
    assert "outside the training distribution" in caplog.text
    (step,) = {row.step for row in ExtrapolationLog(tmp_path / "run" / "extrapolation.csv").rows()}
    page = (tmp_path / "run" / "md.html").read_text()
    assert "guard: 1 step is outside" in page
    assert data_of(page)["plots"][0]["data"][1]["x"] == pytest.approx([0.0005 * step])
    assert (tmp_path / "run" / "md.png").stat().st_size > 10_000


def test_a_mark_is_clicked(hot, tmp_path):
    shutil.copy(hot / "md.html", tmp_path / "md.html")
    marks = data_of((hot / "md.html").read_text())["plots"][0]["data"][1]
    frame, atom = marks["customdata"][0]
    with opened(tmp_path / "md.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        place = tab.evaluate(
            """() => {
              const plot = window.page.linked[0], trace = plot.data[1];
              const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
              return [box.x + xaxis._offset + xaxis.d2p(trace.x[0]),
                      box.y + yaxis._offset + yaxis.d2p(trace.y[0])];
            }"""
        )
        tab.mouse.move(*place)
        tab.locator(".hoverlayer", has_text=marks["text"][0].split("<br>")[1]).wait_for()
        tab.mouse.click(*place)
        tab.wait_for_function(f"window.page.shown.structure === {frame}")
        assert tab.evaluate("window.page.shown.atom") == atom


def test_a_curve_is_clicked(folder, tmp_path):
    shutil.copy(folder / "md.html", tmp_path / "md.html")
    with opened(tmp_path / "md.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        place = tab.evaluate(
            """() => {
              const plot = window.page.linked[0], trace = plot.data[0];
              const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
              return [box.x + xaxis._offset + xaxis.d2p(trace.x[25]),
                      box.y + yaxis._offset + yaxis.d2p(trace.y[25])];
            }"""
        )
        tab.mouse.move(*place)
        tab.wait_for_timeout(300)
        tab.mouse.click(*place)
        tab.wait_for_function("window.page.shown.structure === 5")
        assert tab.text_content("#caption").startswith("0.025 ps")
