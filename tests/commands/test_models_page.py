"""The page of lkm-calc models."""

import logging

import ase.io
import pytest

from lkm_calc.__main__ import main
from lkm_calc.commands.info import model_facts
from lkm_calc.commands.models_page import models_page
from lkm_calc.potential import bundled_models
from lkm_calc.potential.checkpoint import read_header

from ..page.browser import opened
from ..page.test_page import data_of

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("chemiscope", reason="chemiscope is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "models.html"
    assert main(["models", "--page", str(path)]) == 0
    return path


def test_errors_structures_and_training_data(page):
    text = page.read_text()
    data = data_of(text)
    mae, rmse = data["plots"][0]["data"]
    assert mae["y"] == rmse["y"] == list(bundled_models())
    for k, (name, path) in enumerate(bundled_models().items()):
        training = read_header(path)["provenance"]
        errors = training.get("test_errors") or training["validation_errors"]
        mark = "" if "test_errors" in training else "*"
        for key in ("energy_mae", "energy_rmse", "force_mae", "force_rmse"):
            assert f">{errors[key]:.2f}{mark}<" in text
        assert mae["x"][k] == pytest.approx(errors["force_mae"], abs=0.005)
        assert rmse["x"][k] == pytest.approx(errors["force_rmse"], abs=0.005)
        assert mae["customdata"][k] == [k, -1]
        assert training["date"] in text
        shown, atoms = data["dataset"]["structures"][k], ase.io.read(path.with_suffix(".xyz"))
        assert shown["names"] == atoms.get_chemical_symbols()
        assert shown["x"] == pytest.approx(atoms.positions[:, 0], abs=6e-4)
        caption = data["captions"][k]
        assert caption.startswith(f"{name}: {atoms.get_chemical_formula()}. Trained on ")
        assert " K." in caption, "the temperature of the training data"
        assert "\n" not in caption


def test_pretraining_is_told():
    facts = model_facts("rmd17-ethanol")
    first = {"calculator": "gfn2-xtb", "frames": 10000, "temperature": 700.0}
    facts["provenance"]["config"]["pretraining"] = first
    (frame,) = models_page([("mine", facts)]).scene.frames
    assert frame.caption.endswith(
        "in MD at 500 K. Pretrained on 10000 frames of MD at 700 K with gfn2-xtb."
    )


def test_a_page_to_open_is_named(caplog):
    assert main(["models", "--open"]) == 1
    assert "add --page models.html" in caplog.text


def test_the_page_is_opened(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    addresses = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(addresses.append(address)))
    path = tmp_path / "models.html"
    assert main(["models", "--page", str(path), "--open"]) == 0
    assert addresses == [path.as_uri()]
    assert "No browser was found" in caplog.text


def test_models_are_clicked(page):
    names = list(bundled_models())
    with opened(page) as tab:
        tab.wait_for_function("window.page && window.page.shown")
        before = tab.locator("#viewer").screenshot()
        tab.locator("tr[data-structure]", has_text="rmd17-ethanol").first.click()
        ethanol = names.index("rmd17-ethanol")
        tab.wait_for_function(f"window.page.shown.structure === {ethanol}")
        assert tab.text_content("#caption").startswith("rmd17-ethanol: C2H6O.")
        tab.wait_for_timeout(1000)
        assert tab.locator("#viewer").screenshot() != before
        # Both errors of the model are marked in the plot.
        assert tab.evaluate("Array.from(window.page.linked[0].data[2].y)") == ["rmd17-ethanol"] * 2
        tab.evaluate("window.page.linked[0].scrollIntoView()")
        place = tab.evaluate(
            """(name) => {
              const plot = window.page.linked[0], box = plot.getBoundingClientRect();
              const { xaxis, yaxis } = plot._fullLayout;
              return [box.x + xaxis._offset + 20, box.y + yaxis._offset + yaxis.d2p(name)];
            }""",
            "rmd17-uracil",
        )
        tab.mouse.move(*place)
        tab.wait_for_timeout(300)
        tab.mouse.click(*place)
        tab.wait_for_function(f"window.page.shown.structure === {names.index('rmd17-uracil')}")
        assert tab.text_content("#caption").startswith("rmd17-uracil: C4H4N2O2.")
        tab.locator("#below tr[data-structure]", has_text="rmd17-aspirin").click()
        tab.wait_for_function(f"window.page.shown.structure === {names.index('rmd17-aspirin')}")
        top = tab.evaluate("document.getElementById('viewer').getBoundingClientRect().top")
        assert 0 <= top < 900, "the viewer is in sight"
