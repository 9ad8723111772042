"""The page of a simulation."""

import csv
import shutil

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from lkm_calc.__main__ import main
from lkm_calc.md import write_md_page

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
