"""Files changed at random: refused with the error that is meant for it, or the same numbers."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.mutations import (
    CLEAR,
    KINDS,
    OTHER_ERROR,
    OTHER_NUMBERS,
    SAME,
    STRANGE,
    changes_of,
    count,
    edited,
    model_kind,
)

NUMBER = {"model file": 1500, "training state": 500, "restart file": 1000}


@pytest.mark.parametrize("name", KINDS)
def test_changed_files_are_refused_or_give_the_same_numbers(name, tmp_path):
    kind = KINDS[name](tmp_path)
    found = count(kind, NUMBER[name])
    total = sum(found.values(), Counter())
    assert total[OTHER_ERROR] == total[OTHER_NUMBERS] == 0, found
    assert total[CLEAR] + total[SAME] == NUMBER[name]
    assert total[SAME] < 0.1 * NUMBER[name]
    assert found.keys() == changes_of(kind).keys()


@pytest.mark.parametrize("name", KINDS)
def test_older_files_that_were_changed_are_refused_or_read(name, tmp_path):
    """Those of before there were checksums may give other numbers, and no other errors."""
    found = count(KINDS[name](tmp_path, older=True), 200)
    total = sum(found.values(), Counter())
    assert total[OTHER_ERROR] == 0, found
    assert total[CLEAR] > 80
    assert total[OTHER_NUMBERS] > 0, "so it would be noticed"


def test_headers_of_older_model_files(tmp_path):
    """Nested values and values of other types once ended in errors of Python."""
    kind, random = model_kind(tmp_path, older=True), np.random.default_rng(1)
    found = Counter()
    for _ in range(600):
        try:
            kind.load(kind.edit(kind.content, random))
            found["read"] += 1
        except kind.error:
            found["refused"] += 1
    assert found["refused"] > 300


def test_a_sound_file_gives_the_same_checksum_twice(tmp_path):
    for name, make in KINDS.items():
        folder = tmp_path / name
        folder.mkdir()
        kind = make(folder)
        assert kind.load(kind.content) == kind.load(kind.content)


def test_edits_reach_all_values_and_leave_the_original():
    values, random = {"a": [1, {"b": 2}], "c": "d"}, np.random.default_rng(0)
    seen = [edited(values, random) for _ in range(500)]
    assert values == {"a": [1, {"b": 2}], "c": "d"}
    assert any(
        "b" not in one["a"][1]
        for one in seen
        if isinstance(one.get("a"), list) and len(one["a"]) > 1 and isinstance(one["a"][1], dict)
    )
    assert any(one.get("c") in STRANGE[-2:] for one in seen)
