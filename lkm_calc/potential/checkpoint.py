"""Model files: weights as safetensors, everything else as JSON in the header of the file.

Loading a file never runs code from it. The architecture that it names must be registered or
provided by an installed package, which is then imported; nothing else in a file causes an import.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..embeddings import LATENT_PREFIX, LatentSpace, latent_from_tensors
from ..files import checksum_of, expanded, replacing
from ..models import (
    MODELS,
    ArchitectureError,
    EnergyModel,
    build_model,
    check_hypers,
    is_registered,
    missing_text,
    origin_of,
)
from ..nn import MAX_NUMBER
from ..runtime import float32_by_default, own_settings
from ..uncertainty import CALIBRATION_ENTRY, Calibration

logger = logging.getLogger("lkm_calc")

FORMAT_VERSION = 3
"""Version of files written by this code. Version 2 added latent statistics, version 3 the checksum,
which is mandatory since."""

_KEY = "lkm_calc"
_CHECKSUM = "sha256"
_CALIBRATION = ("scale", "reference_energies", "known_elements")

_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda header: header | {"format_version": 2},
    2: lambda header: header | {"format_version": 3},
}
"""Functions that upgrade a header of the version given by the key to the next version."""


class ModelFileError(ValueError):
    """A model file cannot be used; the message says why and what to do."""


def bundled_models() -> dict[str, Path]:
    """Return the paths of the bundled models, by name."""
    folder = Path(str(resources.files("lkm_calc") / "pretrained"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def save_model(
    model: EnergyModel, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a model file with a checksum, atomically.

    Args:
        model: The model; its weights keep their dtype.
        path: Path of the file.
        provenance: JSON values describing the training (data, configuration, seed, test errors);
            ``model.provenance`` if None. The latent statistics of the model are written if it
            contains a calibration.

    Raises:
        ValueError: The class is not in :data:`lkm_calc.MODELS`, or its hypers are not its
            arguments, so the file could not be loaded.
    """
    if not is_registered(model):
        raise ValueError(
            f"{model.name!r} is not one of the architectures {', '.join(MODELS)}, or "
            f"{type(model).__name__} is not its registered class, so the file could not be loaded. "
            "Register custom classes with register_model. For a model with ZBL repulsion, save "
            "its .model and call with_zbl again after loading."
        )
    check_hypers(model)
    energies = model.reference_energies.tolist()
    entries = dict(model.provenance if provenance is None else provenance)
    header = {
        "format_version": FORMAT_VERSION,
        "architecture": model.name,
        "hypers": model.hypers,
        "cutoff": model.cutoff,
        "dtype": str(model.dtype).removeprefix("torch."),
        "units": {"length": "Å", "energy": "eV", "forces": "eV/Å"},
        "elements": list(model.elements),
        "scale": model.scale.item(),
        "reference_energies": {s: energies[atomic_numbers[s]] for s in model.elements},
        "provenance": entries,
    }
    if model.isolated_elements:
        binding = model.binding_energies.tolist()
        symbols = [chemical_symbols[z] for z in model.isolated_elements]
        header["binding_energies"] = {s: binding[atomic_numbers[s]] for s in symbols}
    if origin := origin_of(type(model)):
        header["origin"] = origin
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name not in _CALIBRATION
    }
    if model.latent is not None and CALIBRATION_ENTRY in entries:
        weights |= model.latent.tensors()
    _write(path, weights, header)


def add_calibration(path: str | Path, calibration: Calibration, latent: LatentSpace) -> None:
    """Store a calibration and its latent statistics in a model file.

    The file is rewritten atomically; the weights are unchanged.

    Raises:
        ModelFileError: As for :func:`load_model`.
    """
    path = expanded(path)
    header, tensors = _read(path)
    weights = {name: tensors[name] for name in tensors if not name.startswith(LATENT_PREFIX)}
    header["provenance"] = header["provenance"] | {CALIBRATION_ENTRY: calibration.as_data()}
    _write(path, weights | latent.tensors(), header)


def renew_checksum(path: str | Path) -> None:
    """Update the checksum of a model file that was edited on purpose.

    The contents are not verified. The file is rewritten atomically.

    Raises:
        ModelFileError: As for :func:`load_model`, except for the checksum.
    """
    path = expanded(path)
    header, tensors = _read(path, check=False)
    _write(path, tensors, header)


def _write(
    path: str | Path, weights: Mapping[str, torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Write weights, header and their checksum to a file, atomically."""
    values = json.loads(json.dumps(header))  # as read back later
    values[_CHECKSUM] = checksum_of(values, weights)
    with replacing(path) as temporary:
        # save_file would create files that only their owner can read.
        temporary.write_bytes(save(dict(weights), metadata={_KEY: json.dumps(values)}))


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the header of a model file, upgraded to the current format.

    Raises:
        ModelFileError: As for :func:`load_model`.
    """
    return _read(expanded(path))[0]


@own_settings
def load_model(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> EnergyModel:
    """Load a model for inference.

    Args:
        source: Name of a bundled model or path of a model file.
        device: Device of the model.
        dtype: dtype of its weights; that of the file if None.

    Raises:
        ModelFileError: The model or file does not exist, its architecture is not installed, or
            the file is truncated, not a model file, of a newer format, or inconsistent with its
            checksum or header.
    """
    path = _resolve(source)
    header, weights = _read(path)
    latent = {name: weights.pop(name) for name in [*weights] if name.startswith(LATENT_PREFIX)}
    _find_architecture(header, path)
    try:
        with torch.random.fork_rng(devices=[]), float32_by_default():
            model = build_model(header["architecture"], **header["hypers"])
        model.to(getattr(torch, header["dtype"]))
        model.calibrate(
            header["scale"],
            {atomic_numbers[s]: e for s, e in header["reference_energies"].items()},
            [atomic_numbers[s] for s in header["elements"]],
            {atomic_numbers[s]: e for s, e in header.get("binding_energies", {}).items()},
        )
        calibration = {name: model.state_dict()[name] for name in _CALIBRATION}
        model.load_state_dict(weights | calibration)
        broken = [name for name, value in weights.items() if not value.isfinite().all()]
        if broken:
            raise ValueError(f"weights that are not finite: {', '.join(broken[:3])}")
        if latent:
            model.latent = latent_from_tensors(latent, model.elements)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelFileError(
            f"{path} is inconsistent with its header ({type(error).__name__}: {error}). It was "
            "edited or written by a different version; restore the original file."
        ) from error
    model.provenance = header["provenance"]
    model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    model.measure_isolated_atoms()
    return model


def _find_architecture(header: Mapping[str, Any], path: Path) -> None:
    """Raise a ModelFileError if the architecture named in a header is not available."""
    name = header["architecture"]
    if name not in MODELS:
        told = missing_text(name, header.get("origin"))
        raise ModelFileError(
            f"{path} contains a model of the unknown architecture {name!r}. {told}"
        )
    try:
        MODELS[name]
    except ArchitectureError as error:
        raise ModelFileError(f"{path} cannot be loaded: {error}") from error


def _resolve(source: str | Path) -> Path:
    """Return the path of a bundled model or of a file."""
    bundled = bundled_models()
    if str(source) in bundled:
        return bundled[str(source)]
    path = expanded(source)
    if path.is_file():
        return path
    raise ModelFileError(
        f"There is no file {str(source)!r} and no bundled model of that name; bundled models: "
        f"{', '.join(bundled) or 'none'}."
    )


def _read(path: Path, check: bool = True) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the header, upgraded to the current format, and the tensors of a model file.

    Args:
        path: The file.
        check: Whether to verify the checksum.

    Raises:
        ModelFileError: As for :func:`load_model`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _parse(file.metadata(), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelFileError(f"The model file {path} does not exist.") from error
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a readable model file ({error}). It is truncated or not a safetensors "
            "file; copy or download it again."
        ) from error
    written = header.pop(_CHECKSUM, None)
    if check:
        _check(written, header, tensors, path)
    return _upgraded(header, path), tensors


def _check(
    written: Any, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Raise a ModelFileError if the checksum of a file does not match its contents."""
    if written is None and header["format_version"] < 3:
        bundled = path.resolve() in [own.resolve() for own in bundled_models().values()]
        logger.log(
            logging.DEBUG if bundled else logging.WARNING,
            "%s was written before model files had a checksum; damage cannot be detected. Add one "
            "with lkm_calc.potential.renew_checksum(path).",
            path,
        )
        return
    try:
        right = written == checksum_of(header, tensors)
    except (RuntimeError, TypeError):  # tensors of dtypes that no model has
        right = False
    if not right:
        raise ModelFileError(
            f"{path} does not match its checksum: it was damaged or edited. Copy or download it "
            "again. If it was edited on purpose, run lkm_calc.potential.renew_checksum(path)."
        )


def _parse(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """Return the header of a file without upgrading it, if its format is supported."""
    try:
        header: dict[str, Any] = json.loads((metadata or {})[_KEY])
        version = header["format_version"]
        json.dumps(header)  # too deep nesting fails here at the latest
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is a safetensors file without the header of an lkm-calc model. Use a file "
            "written by lkm-train or save_model."
        ) from error
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(f"{path} has model format {version!r}; it must be at least 1.")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has model format {version}; this lkm-calc reads up to {FORMAT_VERSION}. "
            "Update it: pip install -U lkm-calc."
        )
    return header


def _upgraded(header: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the validated header, upgraded to the current format."""
    for old in range(header["format_version"], FORMAT_VERSION):
        header = _UPGRADES[old](header)
    problem = _find_damage(header)
    if problem:
        raise ModelFileError(f"{path} has a damaged header: {problem}. Restore the original file.")
    return {"provenance": {}, **header}


def _find_damage(header: Mapping[str, Any]) -> str:
    """Return what is wrong with a header, or an empty string."""
    kinds = {
        "architecture": str,
        "hypers": dict,
        "dtype": str,
        "elements": list,
        "scale": float,
        "reference_energies": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(header.get(name), kind):
            return f"{name} is {header.get(name)!r}"
    if not isinstance(header.get("provenance", {}), dict):
        return f"provenance is {header['provenance']!r}"
    known = chemical_symbols[1 : MAX_NUMBER + 1]
    binding = header.get("binding_energies", {})  # optional
    if not isinstance(binding, dict) or any(s not in header["elements"] for s in binding):
        return f"binding_energies is {binding!r}"
    named = [*header["elements"], *header["reference_energies"], *binding]
    strange = [symbol for symbol in named if symbol not in known]
    if strange:
        return f"unknown elements {strange}"
    energies = [*header["reference_energies"].values(), *binding.values()]
    numbers = all(type(e) in (int, float) and abs(e) < math.inf for e in energies)
    if not (numbers and math.isfinite(header["scale"])):
        return f"scale is {header['scale']!r}, and reference_energies are {energies!r}"
    if header["dtype"] not in ("float32", "float64"):
        return f"dtype is {header['dtype']!r}"
    return ""
