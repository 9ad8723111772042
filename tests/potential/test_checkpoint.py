import json
import math
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lkm_calc import MODELS, energy_and_forces, load_model, save_model, with_zbl
from lkm_calc.embeddings.latent import LatentSpace
from lkm_calc.files.atomic import replacing
from lkm_calc.potential.checkpoint import (
    FORMAT_VERSION,
    ModelFileError,
    add_calibration,
    bundled_models,
    read_header,
    renew_checksum,
)
from lkm_calc.uncertainty.calibration import Calibration

from ..embeddings.test_latent import DATA
from ..support import graph_of, rattled, small_model


@pytest.fixture
def model(request):
    model = small_model(getattr(request, "param", "dimenet++"))
    model.calibrate(1.1, {1: -13.6, 6: -1037.123456789012, 8: -2044.2}, [1, 6, 8])
    return model


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path, {"seed": 7, "test_errors": {"force_mae": 1.5}})
    return path


def rewrite(path, change, version=None):
    """Write the file again with its header changed by a function, with the checksum of before.

    With a version, of before there was one.
    """
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lkm_calc"])
    if version is not None:
        header["format_version"] = version
        del header["sha256"]
    change(header)
    save_file(load_file(path), path, metadata={"lkm_calc": json.dumps(header)})


@pytest.mark.parametrize("model", sorted(MODELS), indirect=True)
def test_round_trip_is_exact(model, path):
    loaded = load_model(path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    graph = graph_of(rattled(), model)
    for found, expected in zip(
        energy_and_forces(loaded, graph)[:2], energy_and_forces(model, graph)[:2], strict=True
    ):
        assert torch.equal(found, expected)
    assert loaded.hypers == model.hypers
    assert loaded.elements == ("H", "C", "O")
    assert loaded.provenance["seed"] == 7
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_others_may_read_it_as_the_umask_says(path):
    plain = path.with_suffix(".txt")
    plain.write_text("x")
    assert path.stat().st_mode == plain.stat().st_mode


def test_loading_leaves_the_random_generator_alone(path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_model(path)
    assert torch.equal(torch.rand(3), expected)


def test_saving_a_loaded_model_keeps_its_provenance(path, tmp_path):
    again = tmp_path / "again.safetensors"
    save_model(load_model(path), again)
    assert read_header(again) == read_header(path)


def test_header_tells_what_the_file_is(path):
    header = read_header(path)
    assert header["format_version"] == FORMAT_VERSION
    assert header["architecture"] == "dimenet++"
    assert header["units"] == {"length": "Å", "energy": "eV", "forces": "eV/Å"}
    assert header["elements"] == ["H", "C", "O"]
    assert header["cutoff"] == 5.0
    assert header["reference_energies"]["C"] == -1037.123456789012
    assert header["provenance"]["test_errors"] == {"force_mae": 1.5}


def test_dtype_can_be_chosen(path):
    assert load_model(path).dtype == torch.float64
    assert load_model(path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -8])
def test_truncated_file(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="not a readable model file.*truncated"):
        load_model(path)


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_load_with_a_note(version, model, path, caplog):
    rewrite(path, lambda header: None, version)
    assert read_header(path)["format_version"] == FORMAT_VERSION
    caplog.clear()
    with caplog.at_level("DEBUG", "lkm_calc"):
        loaded = load_model(path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "written before model files had a checksum" in caplog.text
    assert "renew_checksum(path)" in caplog.text
    assert loaded.latent is None
    graph = graph_of(rattled(), model)
    assert torch.equal(loaded(graph).energy, model(graph).energy)


def test_newer_format(path):
    rewrite(path, lambda header: header.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(
        ModelFileError, match=r"model format 4; this lkm-calc reads up to 3.*Update"
    ):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("elements"), "damaged header: elements is None"),
        (lambda h: h.update(format_version=0), "it must be at least 1"),
        (lambda h: h.update(elements=["H", "Cm"]), r"unknown elements \['Cm'\]"),
        (lambda h: h.update(provenance=5), "provenance is 5"),
        (lambda h: h.update(elements=["H", "Xy"]), r"unknown elements \['Xy'\]"),
        (lambda h: h.update(dtype="object"), "dtype is 'object'"),
        (lambda h: h.update(architecture="other"), "unknown architecture 'other'"),
        (lambda h: h.update(elements=[["H"], "C"]), r"unknown elements \[\['H'\]\]"),
        (lambda h: h.update(scale=math.inf), "scale is inf"),
        (lambda h: h["reference_energies"].update(C=[1.0]), r"'?reference_energies are .*\[1.0\]"),
        (lambda h: h["hypers"].update(hidden=10**30), "is inconsistent with its header.*hidden"),
        (lambda h: h["hypers"].update(hidden=17), "is inconsistent with its header"),
        (lambda h: h["hypers"].update(wings=2), "is inconsistent with its header.*wings"),
        (lambda h: h["hypers"].update(hidden="x"), "is inconsistent with its header"),
    ],
    ids=[
        "missing",
        "version",
        "heavy",
        "provenance",
        "element",
        "dtype",
        "list",
        "infinite",
        "energies",
        "huge",
        "architecture",
        "width",
        "argument",
        "type",
    ],
)
def test_edited_header(path, change, message):
    """Of a file of before there was a checksum, or one that was renewed."""
    rewrite(path, change, version=2)
    with pytest.raises(ModelFileError, match=message):
        load_model(path)


def nested(text):
    return text.replace('"DEEP"', "[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize("text", ['"DEEP"', '{"format_version": 3, "provenance": {"a": "DEEP"}}'])
def test_nesting_without_end(path, text):
    save_file(load_file(path), path, metadata={"lkm_calc": nested(text)})
    with pytest.raises(ModelFileError, match="without the header of an lkm-calc model"):
        load_model(path)


def flipped(path, name, bit):
    """Flip a bit of the first number of a tensor."""
    content = bytearray(path.read_bytes())
    value = load_file(path)[name].numpy().tobytes()
    content[content.index(value) + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("read", [load_model, read_header])
def test_a_flipped_bit_of_a_weight_is_noticed(path, read):
    flipped(path, "embedding.radial.weight", 3)
    with pytest.raises(ModelFileError, match=r"model.safetensors does not match its checksum"):
        read(path)


def test_a_calibration_is_not_put_into_a_damaged_file(path):
    flipped(path, "embedding.radial.weight", 3)
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match="does not match its checksum"):
        add_calibration(path, Calibration(**DATA), LatentSpace({}))
    assert path.read_bytes() == before


def test_what_is_edited_on_purpose_is_refused_until_its_checksum_is_renewed(model, path):
    rewrite(path, lambda header: header["provenance"].update(author="me"))
    with pytest.raises(ModelFileError, match=r"edited. .*on purpose, .*renew_checksum\(path\)"):
        load_model(path)
    renew_checksum(path)
    loaded = load_model(path)
    assert loaded.provenance["author"] == "me"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_file_of_this_format_has_a_checksum(path):
    rewrite(path, lambda header: header.pop("sha256"))
    with pytest.raises(ModelFileError, match="does not match its checksum"):
        load_model(path)


def test_the_checksum_is_of_the_contents_not_of_their_order(path):
    def turn(header):
        for name in reversed([*header]):
            header[name] = header.pop(name)

    expected = read_header(path)
    rewrite(path, turn)
    assert read_header(path) == expected
    load_model(path)


def test_keys_that_are_numbers_are_those_of_json(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path, {"by_number": {2: "a", 10: "b"}, "pair": (1, 2)})
    assert load_model(path).provenance == {"by_number": {"2": "a", "10": "b"}, "pair": [1, 2]}


def test_bundled_models_load_without_a_note(caplog):
    with caplog.at_level("INFO", "lkm_calc"):
        for name, path in bundled_models().items():
            load_model(name)
            read_header(path)
    assert caplog.text == ""


def test_broken_weights(model, tmp_path):
    with torch.no_grad():
        model.embedding.radial.bias[0] = torch.nan
    save_model(model, tmp_path / "nan.safetensors")
    with pytest.raises(ModelFileError, match="not finite: embedding.radial.bias"):
        load_model(tmp_path / "nan.safetensors")


def test_foreign_files(tmp_path):
    foreign = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(ModelFileError, match="without the header"):
        load_model(foreign)
    with pytest.raises(ModelFileError, match="no file 'nowhere.safetensors' and no bundled"):
        load_model("nowhere.safetensors")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("loading a model ran code",))


def test_loading_never_runs_code(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelFileError):
        load_model(path)
    torch.save({"model": Bomb()}, path)
    with pytest.raises(ModelFileError):
        load_model(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(path):
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("disk full")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_model_that_cannot_be_described_writes_nothing(model, tmp_path):
    with pytest.raises(TypeError):
        save_model(model, tmp_path / "m.safetensors", {"when": object()})
    assert not list(tmp_path.iterdir())


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"'dimenet\+\+\+zbl' is not one of the architectures"):
        save_model(with_zbl(small_model(), {"H-H": 0.5}), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
