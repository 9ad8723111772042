"""The page of a data report."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

from train.__main__ import main
from train.data import Frames
from train.doctor import diagnose
from train.doctor.page import report_page
from train.formats import read_frames

from ...page.browser import opened
from ...page.test_page import data_of
from ...support import rmd17_arrays, write_npz

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("chemiscope", reason="chemiscope is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    arrays = rmd17_arrays(100)
    arrays["coords"][17, 3] = arrays["coords"][17, 0] + [0.35, 0, 0]
    arrays["coords"][90] = arrays["coords"][91]
    return write_npz(tmp_path_factory.mktemp("data") / "faulty.npz", **arrays)


def test_findings_link_to_their_frames(data):
    frames = read_frames(data)
    report = diagnose(frames)
    assert {f.name: f.frames for f in report.findings}["too close"] == (17,)
    assert {f.name: f.frames for f in report.findings}["duplicates"] == (90, 91)
    page = report_page(frames, report, "faulty.npz")
    findings = page.beside[0]
    captions = [frame.caption for frame in page.scene.frames]
    for row, structure in zip(findings.rows, findings.structures, strict=True):
        if row[2].startswith("frame ") and row[2][6:].isdigit():
            assert captions[structure].startswith(f"Frame {row[2][6:]}, C2H6O: energy")
    close = captions[findings.structures[[row[1] for row in findings.rows].index("too close")]]
    assert close.startswith("Frame 17,")
    assert "Findings: too close" in close


def test_points_link_to_their_frames(data):
    page = report_page(frames := read_frames(data), diagnose(frames), "faulty.npz")
    assert [plot.title for plot in page.beside[1:]] == [
        "Energy minus reference energies", "Largest force", "Shortest distance"
    ]  # fmt: skip
    for plot in page.beside[1:]:
        others, found = plot.figure["data"]
        assert {17, 90, 91} <= set(found["x"])
        for trace in (others, found):
            for frame, (structure, _) in zip(trace["x"], trace["customdata"], strict=True):
                caption = page.scene.frames[structure].caption
                assert caption.startswith(f"Frame {frame},")


def test_large_files_are_thinned_but_for_what_was_found(data, monkeypatch):
    monkeypatch.setattr("train.doctor.page.MAX_FRAMES", 10)
    frames = read_frames(data)
    report = diagnose(frames)
    page = report_page(frames, report, "faulty.npz")
    concerned = {f for finding in report.findings for f in finding.frames[:20]}
    assert len(page.scene.frames) == 10 + len(concerned)
    assert page.lead[-1].startswith(f"The page contains {10 + len(concerned)} structures")
    links = [link[0] for trace in page.beside[1].figure["data"] for link in trace["customdata"]]
    assert links.count(-1) == 100 - len(page.scene.frames)


def test_frames_that_cannot_be_drawn_have_no_structure(data):
    frames = read_frames(data)
    positions = frames.positions.copy()
    positions[0] = np.nan
    numbers = frames.numbers.copy()
    numbers[9] = 200
    frames = replace(frames, positions=positions, numbers=numbers, forces=None)
    page = report_page(frames, diagnose(frames), "faulty.npz")
    rows = [row[2] for row in page.beside[0].rows]
    assert page.beside[0].structures[rows.index("frame 0")] == -1
    assert page.beside[0].structures[rows.index("frame 1")] == -1
    assert not page.scene.units
    nothing = replace(frames.select(np.arange(1)))
    assert report_page(nothing, diagnose(nothing), "x").scene is None


def test_isolated_atoms_and_crystals(tmp_path):
    cells = []
    for k in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=k)
        cells.append(atoms)
    numbers = [*cells, molecule("H2O"), ase.Atoms("H")]
    sizes = [len(atoms) for atoms in numbers]
    frames = Frames(
        numbers=np.concatenate([atoms.numbers for atoms in numbers]),
        positions=np.concatenate([atoms.positions for atoms in numbers]),
        energies=-1.0 * np.arange(6),
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        cells=np.stack([atoms.cell.array for atoms in numbers]),
        pbc=np.stack([atoms.pbc for atoms in numbers]),
    )
    page = report_page(frames, diagnose(frames), "mixed.extxyz")
    found = page.scene.dataset()["structures"]
    assert ["cell" in structure for structure in found].count(True) == 4
    assert len(found) == 6


def test_the_command_writes_a_page_in_which_a_fault_is_clicked(data, tmp_path, capsys):
    path = tmp_path / "faulty.html"
    assert main(["check-data", str(data), "--output", str(path)]) == 1
    assert "too close" in capsys.readouterr().out
    assert data_of(path.read_text())["dataset"]
    with opened(path) as tab:
        tab.wait_for_function("window.page && window.page.shown")
        tab.locator("tr[data-structure]", has_text="nearly coincide").click()
        tab.wait_for_function(
            "document.getElementById('caption').textContent.startsWith('Frame 17,')"
        )
