"""Pages: files, data sets of structures, and what a reader sees in a browser."""

import base64
import gzip
import json
import re

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from lkm_calc.page import (
    Code,
    Page,
    PageError,
    Plot,
    Scene,
    SceneFrame,
    Table,
    page_text,
    write_page,
)
from lkm_calc.page import libraries as libraries_module
from lkm_calc.page.structures import round_down

from .browser import opened

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("chemiscope", reason="chemiscope is not installed")


def scene(*structures: ase.Atoms) -> Scene:
    rng = np.random.default_rng(0)
    return Scene(
        title="structures",
        frames=[
            SceneFrame(
                atoms=atoms,
                caption=f"This is {atoms.symbols}.",
                values={"size [Å]": np.arange(len(atoms)) / 3},
                vectors={"push": rng.normal(size=(len(atoms), 3))},
                focus=len(atoms) - 1,
            )
            for atoms in structures
        ],
        units={"push": "eV/Å"},
    )


def parity(count: int = 2) -> Plot:
    points = {
        "type": "scattergl",
        "mode": "markers",
        "x": [float(k) for k in range(count)],
        "customdata": [[k, -1, 0.5] for k in range(count)],
        "marker": {"size": 20},
    }
    meta = {"predicted": "predicted", "error": "error"}
    layout = {"meta": meta, "xaxis": {}, "yaxis": {}}
    return Plot(title="Parity", figure={"data": [points], "layout": layout}, parity=True)


def page(**changes: object) -> Page:
    table = Table(title="Rows", header=["name"], rows=[["a < b"], ["second"]], structures=[0, 1])
    return Page(
        **{
            "title": "A & B",
            "lead": ["What it is."],
            "beside": [parity(), table],
            "scene": scene(molecule("H2O"), molecule("CH3CH2OH")),
            "below": [Code(title="Repeat", text="command --x")],
        }
        | changes
    )


def data_of(text: str) -> dict:
    packed = re.search(r'id="pack-data">([^<]+)<', text)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_text_is_escaped_and_scripts_are_inside():
    text = page_text(page())
    assert "<title>A &amp; B</title>" in text
    assert "a &lt; b" in text
    assert not re.search(r"(src|href)=.(?!data:)", text)
    assert "pack-chemiscope" in text
    assert "pack-chemiscope" not in page_text(page(scene=None))


def test_structures_vectors_and_values_of_the_data_set():
    data = data_of(page_text(page()))
    found = data["dataset"]
    assert [s["size"] for s in found["structures"]] == [3, 9]
    assert found["properties"]["size"]["values"][:3] == [0, 0.3333, 0.6667]
    assert data["captions"] == ["This is OH2.", "This is C2OH6."]
    assert data["focus"] == [2, 8]
    arrows = np.array([a["vector"] for a in found["shapes"]["push"]["parameters"]["atom"]])
    assert arrows.shape == (12, 3)
    for rows, frame, (legend,) in zip(
        (slice(3), slice(3, 12)), page().scene.frames, data["legends"], strict=True
    ):
        per_unit = 1 / float(legend.removeprefix("push: 1 Å is ").removesuffix(" eV/Å"))
        np.testing.assert_allclose(arrows[rows], per_unit * frame.vectors["push"], atol=0.006)
        assert 1.2 <= np.linalg.norm(arrows[rows], axis=1).max() <= 3.01


def test_unknown_vectors_are_not_drawn():
    frame = SceneFrame(atoms=molecule("H2O"), caption="", vectors={"push": np.full((3, 3), np.nan)})
    found = Scene(title="", frames=[frame], units={"push": "eV/Å"}).dataset()
    assert found["shapes"]["push"]["parameters"]["atom"] == [{"vector": [0, 0, 0]}] * 3


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, 1.0), (4.99, 2.0), (0.07, 0.05), (60.0, 50.0)]
)
def test_round_numbers(value, expected):
    assert round_down(value) == pytest.approx(expected)


def test_without_the_packages_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    libraries_module.libraries.cache_clear()
    monkeypatch.setattr(libraries_module.importlib, "import_module", missing)
    with pytest.raises(PageError, match=r"No module named 'plotly.*pip install lkm-calc\[report\]"):
        page_text(page())


def test_a_reader_clicks_points_and_rows(tmp_path):
    write_page(tmp_path / "page.html", page())
    with opened(tmp_path / "page.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        assert tab.text_content("#caption") == "This is OH2."
        assert tab.evaluate("window.page.shown") == {"structure": 0, "atom": 2}
        before = tab.locator("#viewer").screenshot()
        # The second point, at the upper right of the plot.
        tab.evaluate("window.page.linked[0].scrollIntoView()")
        place = tab.evaluate(
            """() => {
              const plot = window.page.linked[0], box = plot.getBoundingClientRect();
              const { xaxis, yaxis } = plot._fullLayout;
              return [box.x + xaxis._offset + xaxis.d2p(1), box.y + yaxis._offset + yaxis.d2p(1.5)];
            }"""
        )
        tab.mouse.move(*place)
        tab.wait_for_timeout(300)
        tab.mouse.click(*place)
        tab.wait_for_function("window.page.shown.structure === 1")
        assert tab.text_content("#caption") == "This is C2OH6."
        tab.wait_for_timeout(1000)
        assert tab.locator("#viewer").screenshot() != before
        assert tab.locator("tr.selected").text_content() == "second"
        tab.locator("tr[data-structure]").first.click()
        tab.wait_for_function("window.page.shown.structure === 0")


def test_the_error_is_shown_instead_of_the_prediction(tmp_path):
    write_page(tmp_path / "page.html", page(beside=[parity(3)], scene=None))
    ordinates = "Array.from(window.page.linked[0].data[0].y)"
    with opened(tmp_path / "page.html") as tab:
        tab.wait_for_function("window.page")
        assert tab.evaluate(ordinates) == [0.5, 1.5, 2.5]
        tab.locator(".updatemenu-button", has_text="error").click()
        tab.wait_for_function(f"{ordinates}[2] === 0.5")
        assert tab.evaluate("window.page.linked[0].layout.yaxis.title.text") == "error"


def test_crystals_and_single_atoms_are_shown(tmp_path):
    structures = [bulk("Cu", cubic=True), ase.Atoms("H")]
    write_page(tmp_path / "page.html", page(scene=scene(*structures)))
    with opened(tmp_path / "page.html") as tab:
        tab.wait_for_function("window.page && window.page.shown")
        tab.locator("tr[data-structure]").last.click()
        tab.wait_for_function("window.page.shown.structure === 1")
        assert tab.text_content("#caption") == "This is H."
