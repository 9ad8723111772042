"""Detection of damaged files: model files, training states and restart files of MD.

Files of a tiny model are modified randomly (seeded) and read again. The script counts files that
are rejected with the documented error, files that give bitwise identical results, and others, of
which there should be none. ``--older`` uses files in the older formats without checksums, for which
other results are expected.

    python -m benchmarks.mutations --number 10000
"""

import argparse
import copy
import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io.jsonio import encode
from safetensors import safe_open
from safetensors.torch import save
from tqdm import tqdm

from lkm_calc import EnergyModel, build_model, load_model, save_model
from lkm_calc.files import checksum_of, unsealed
from lkm_calc.md import MDSettings, RestartError, Simulation
from lkm_calc.potential import ModelFileError
from train.config import OptimiserConfig
from train.state import StateError, TrainingState

CLEAR, SAME, OTHER_NUMBERS, OTHER_ERROR = OUTCOMES = (
    "clear error",
    "same numbers",
    "other numbers",
    "other error",
)

Change = Callable[[bytes, np.random.Generator], bytes]
"""Returns a changed content of a file."""


class Kind(NamedTuple):
    """Files of a kind."""

    content: bytes
    """Of a sound one."""
    edit: Change
    """Changes a value in it, and writes it as a sound file of its format."""
    load: Callable[[bytes], str]
    """Reads a content, and returns a checksum of all that is read."""
    error: type[Exception]
    """What reading raises for a damaged one."""


def flip(content: bytes, random: np.random.Generator) -> bytes:
    """Return the content with one bit flipped."""
    changed = bytearray(content)
    changed[random.integers(len(content))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def cut(content: bytes, random: np.random.Generator) -> bytes:
    """Return the first part of the content."""
    return content[: random.integers(len(content))]


def zero(content: bytes, random: np.random.Generator) -> bytes:
    """Return the content with a block of zeros."""
    start, length = _block(content, random)
    return content[:start] + bytes(length) + content[start + length :]


def repeat(content: bytes, random: np.random.Generator) -> bytes:
    """Return the content with a block twice, which moves all behind it."""
    start, length = _block(content, random)
    return content[: start + length] + content[start:]


def _block(content: bytes, random: np.random.Generator) -> tuple[int, int]:
    """Return start and length of a block of 1 byte to 4 kB within a content."""
    start = int(random.integers(len(content)))
    return start, min(int(2 ** random.uniform(0, 12)), len(content) - start)


DEEP = "nested a hundred thousand times"
"""Stands in JSON for what no recursion follows to the end."""
STRANGE: Sequence[Any] = (
    *(None, True, [], {}, "", "x", 0, -1, 7, 0.5, 10**30, float("inf"), float("nan")),
    *([["H"]], {"H": [1.0]}, {"x": {"y": []}}, "C" * 300, DEEP),
)
"""Values where others belong."""


def edited(values: Any, random: np.random.Generator) -> Any:
    """Return a copy of nested dictionaries and lists with one place edited.

    A value is replaced by a strange one, left out, exchanged with its neighbour or given another
    name.
    """
    values = copy.deepcopy(values)
    places = list(_places(values))
    container, key = places[random.integers(len(places))]
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    action = random.integers(4)
    if action == 0:
        other = keys[random.integers(len(keys))]
        container[key], container[other] = container[other], container[key]
    elif action == 1:
        del container[key]
    elif action == 2 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    else:
        container[key] = STRANGE[random.integers(len(STRANGE))]
    return values


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of all that is in nested dictionaries and lists."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield values, key
            yield from _places(value)


def _dumped(values: Any) -> str:
    """Return values as JSON, the deep one written out."""
    return json.dumps(values).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)


def edit_model(content: bytes, random: np.random.Generator) -> bytes:
    """Return a model file with its own header or that of the format edited."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if random.integers(4):
        own = json.loads(header["__metadata__"]["lkm_calc"])
        header["__metadata__"]["lkm_calc"] = _dumped(edited(own, random))
        text = json.dumps(header).encode()
    else:
        text = _dumped(edited(header, random)).encode()
    return len(text).to_bytes(8, "little") + text + data


def edit_state(content: bytes, random: np.random.Generator) -> bytes:
    """Return a training state with a value edited, and the checksum of before, if it has one."""
    packed = io.BytesIO()
    before, intact = unsealed(content)
    values = torch.load(io.BytesIO(before), weights_only=True)
    torch.save(edited(values, random), packed)
    return packed.getvalue() + (b"" if intact is None else content[len(before) :])


def edit_restart(content: bytes, random: np.random.Generator) -> bytes:
    """Return a restart file with a value edited."""
    return _dumped(edited(json.loads(content), random)).encode()


def tiny_model() -> EnergyModel:
    """Return the smallest model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(
            "dimenet++", hidden=4, num_blocks=1, triplet_dim=2, basis_dim=2, output_dim=4
        )
    model.calibrate(1.1, {1: -13.6, 6: -1037.1, 8: -2044.2}, [1, 6, 8])
    return model


def model_kind(folder: Path, older: bool = False) -> Kind:
    """Return model files."""
    path = folder / "model.safetensors"
    save_model(tiny_model(), path, {"seed": 1, "config": {"run": {"device": "cpu"}}})
    if older:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["lkm_calc"]) | {"format_version": 2}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        del header["sha256"]
        path.write_bytes(save(tensors, {"lkm_calc": json.dumps(header)}))
    content = path.read_bytes()

    def load(changed: bytes) -> str:
        path.write_bytes(changed)
        model = load_model(path)
        values = {"hypers": model.hypers, "provenance": model.provenance, "name": model.name}
        return checksum_of(values | {"cutoff": model.cutoff}, model.state_dict())

    return Kind(content, edit_model, load, ModelFileError)


def state_kind(folder: Path, older: bool = False) -> Kind:
    """Return training states, of a run of one step."""
    path, identity = folder / "state.pt", {"model": {"hidden": 4}, "optimiser": {"rate": 0.1}}
    state = TrainingState.create(tiny_model(), OptimiserConfig())
    for weight in state.trained.parameters():
        weight.grad = torch.ones_like(weight)
    for optimiser in state.optimisers:
        optimiser.step()
    state.counters.step = 1
    state.save(path, identity)
    if older:
        values = torch.load(path, weights_only=True)
        del values["format_version"]
        torch.save(values, path)
    content = path.read_bytes()

    def load(changed: bytes) -> str:
        path.write_bytes(changed)
        state.load(path, identity)
        again = folder / "again.pt"
        state.save(again, identity)
        values = torch.load(again, weights_only=True)
        return checksum_of({"state": _plain(values)}, dict(_tensors(values)))

    return Kind(content, edit_state, load, StateError)


def _plain(values: Any) -> Any:
    """Return nested values as those of JSON, without tensors."""
    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return None if isinstance(values, torch.Tensor) else values


def _tensors(values: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors among nested values, by the way to them."""
    if isinstance(values, torch.Tensor):
        yield name, values
    elif isinstance(values, dict | list | tuple):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _tensors(value, f"{name}.{key}")


def restart_kind(folder: Path, older: bool = False) -> Kind:
    """Return restart files, of MD of ethanol with a Nosé-Hoover thermostat."""

    def simulation() -> Simulation:
        atoms: ase.Atoms = molecule("CH3CH2OH")
        atoms.calc = EMT()
        return Simulation(atoms, MDSettings("nose-hoover"), folder / "md")

    simulation().run(3)
    files = {path: path.read_bytes() for path in (folder / "md").iterdir()}
    restart = folder / "md" / "restart.json"
    content = files[restart]
    if older:
        values = json.loads(content) | {"format_version": 1}
        del values["sha256"]
        content = json.dumps(values).encode()

    def load(changed: bytes) -> str:
        for path, kept in files.items():
            path.write_bytes(kept)
        restart.write_bytes(changed)
        run = simulation()
        run._save()
        return json.loads(restart.read_text(encoding="utf-8"))["sha256"] + encode(run.identity)

    return Kind(content, edit_restart, load, RestartError)


KINDS: dict[str, Callable[..., Kind]] = {
    "model file": model_kind,
    "training state": state_kind,
    "restart file": restart_kind,
}


def changes_of(kind: Kind) -> dict[str, Change]:
    """Return the ways in which files of a kind are changed."""
    return {
        "bit flipped": flip,
        "truncated": cut,
        "block zeroed": zero,
        "block repeated": repeat,
        "value edited": kind.edit,
    }


def outcome_of(kind: Kind, changed: bytes, sound: str) -> str:
    """Return what becomes of a changed file; ``sound`` is what a sound one gives."""
    try:
        found = kind.load(changed)
    except kind.error:
        return CLEAR
    except Exception as error:  # what kind is told
        logging.getLogger(__name__).info("%s: %s", type(error).__name__, error)
        return OTHER_ERROR
    return SAME if found == sound else OTHER_NUMBERS


def count(kind: Kind, number: int, seed: int = 0, name: str = "") -> dict[str, Counter[str]]:
    """Return how often there was each outcome, by change.

    Args:
        kind: The files.
        number: How many files are changed, in all ways in turn.
        seed: Of the changes.
        name: Of the progress bar; none where empty.
    """
    random, changes = np.random.default_rng(seed), changes_of(kind)
    sound = kind.load(kind.content)
    found = {change: Counter[str]() for change in changes}
    with quiet():
        for k in tqdm(range(number), name, disable=not name):
            change = list(changes)[k % len(changes)]
            changed = changes[change](kind.content, random)
            found[change][outcome_of(kind, changed, sound)] += 1
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what is logged of older files, once each time one is read."""
    loggers = [logging.getLogger(name) for name in ("lkm_calc", "lkm_train")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000, help="files in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--older", action="store_true", help="files without a checksum")
    parser.add_argument("--verbose", action="store_true", help="tell the other errors")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING)
    print(f"| file | change | {' | '.join(OUTCOMES)} |\n|---|---|{'---:|' * len(OUTCOMES)}")
    total = Counter[str]()
    for k, (name, make) in enumerate(KINDS.items()):
        share = options.number // len(KINDS) + (k < options.number % len(KINDS))
        with tempfile.TemporaryDirectory() as folder:
            kind = make(Path(folder), options.older)
            found = count(kind, share, options.seed, name)
        for change, counter in found.items():
            total += counter
            print(f"| {name} | {change} | {_row(counter)} |")
    print(f"| all | | {_row(total)} |")


def _row(counter: Counter[str]) -> str:
    return " | ".join(str(counter[outcome]) for outcome in OUTCOMES)


if __name__ == "__main__":
    main()
