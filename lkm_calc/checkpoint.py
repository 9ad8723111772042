"""Model files: weights as safetensors, everything else as JSON in the file's header.

Reading one parses data and never runs code from it.
"""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .atomic import replacing
from .calibration import KEY, Calibration
from .device import own_default_device
from .energy import EnergyModel
from .latent import PREFIX, LatentSpace, latent_from_tensors
from .layers import MAX_NUMBER
from .models import MODELS, build_model

FORMAT_VERSION = 2
"""Version of the files that this code writes. With 2 came the latent statistics."""

_KEY = "lkm_calc"
_CALIBRATION = ("scale", "reference_energies", "known_elements")

_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda header: header | {"format_version": 2}
}
"""Functions from a header of the version that is the key to one of the next version."""


class ModelFileError(ValueError):
    """A model file cannot be used; the message says what is wrong and what to do."""


def bundled_models() -> dict[str, Path]:
    """Return the models that come with the package, by name."""
    folder = Path(str(resources.files("lkm_calc") / "pretrained"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def save_model(
    model: EnergyModel, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a model file, whole or not at all.

    Args:
        model: The model; its weights keep their dtype.
        path: Where to write.
        provenance: JSON values on how the model came to be (data, recipe, seed, test errors);
            those of ``model.provenance`` where None. The model's latent statistics are written
            if there is a calibration among them.

    Raises:
        ValueError: It is not a model of :data:`lkm_calc.MODELS`, and could not be loaded again.
    """
    if model.name not in MODELS:
        raise ValueError(
            f"{model.name!r} is none of the architectures {', '.join(MODELS)}, so a file of it "
            "could not be loaded. Of a model with a ZBL core save .model, and add the core again "
            "after loading."
        )
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
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name not in _CALIBRATION
    }
    if model.latent is not None and KEY in entries:
        weights |= model.latent.tensors()
    _write(path, weights, header)


def add_calibration(path: str | Path, calibration: Calibration, latent: LatentSpace) -> None:
    """Put a calibration and its latent statistics into a model file, and leave all else as it is.

    The file is written anew, whole or not at all; its weights stay the same bit for bit.

    Raises:
        ModelFileError: As for :func:`load_model`.
    """
    with _open(Path(path)) as file:
        header = _parse_header(file.metadata(), Path(path))
        names = [name for name in file.keys() if not name.startswith(PREFIX)]  # noqa: SIM118
        weights = {name: file.get_tensor(name) for name in names}
    header["provenance"] = header["provenance"] | {KEY: calibration.as_data()}
    _write(path, weights | latent.tensors(), header)


def _write(
    path: str | Path, weights: Mapping[str, torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Write weights and header to a file, whole or not at all."""
    with replacing(path) as temporary:
        # Not save_file, which makes files that only their owner can read.
        temporary.write_bytes(save(dict(weights), metadata={_KEY: json.dumps(header)}))


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the header of a model file, upgraded to the present format, without its weights.

    Raises:
        ModelFileError: As for :func:`load_model`.
    """
    with _open(Path(path)) as file:
        return _parse_header(file.metadata(), Path(path))


@own_default_device()
def load_model(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> EnergyModel:
    """Load a model for inference.

    Args:
        source: Name of a bundled model, or path of a model file.
        device: Where to put it.
        dtype: Type of its weights; that of the file where None.

    Raises:
        ModelFileError: No such model or file, or the file is truncated, of another kind, of a
            newer format, or does not fit its own header.
    """
    path = _resolve(source)
    with _open(path) as file:
        header = _parse_header(file.metadata(), path)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    latent = {name: weights.pop(name) for name in [*weights] if name.startswith(PREFIX)}
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(header["architecture"], **header["hypers"])
        model.to(getattr(torch, header["dtype"]))
        model.calibrate(
            header["scale"],
            {atomic_numbers[s]: e for s, e in header["reference_energies"].items()},
            [atomic_numbers[s] for s in header["elements"]],
        )
        calibration = {name: model.state_dict()[name] for name in _CALIBRATION}
        model.load_state_dict(weights | calibration)
        broken = [name for name, value in weights.items() if not value.isfinite().all()]
        if broken:
            raise ValueError(f"weights that are not finite: {', '.join(broken[:3])}")
        if latent:
            model.latent = latent_from_tensors(latent, model.elements)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelFileError(
            f"{path} does not fit its own header ({type(error).__name__}: {error}). It was edited "
            "or written by a different version; get the original file again."
        ) from error
    model.provenance = header["provenance"]
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _resolve(source: str | Path) -> Path:
    """Return the file of a bundled name or of a path."""
    bundled = bundled_models()
    if str(source) in bundled:
        return bundled[str(source)]
    if Path(source).is_file():
        return Path(source)
    raise ModelFileError(
        f"There is no file {str(source)!r} and no bundled model of that name; bundled are "
        f"{', '.join(bundled) or 'none'}."
    )


def _open(path: Path) -> Any:
    """Open a safetensors file, or raise a ModelFileError."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ModelFileError(f"The model file {path} does not exist.") from error
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a readable model file ({error}). It is truncated or of another kind; "
            "copy or download it again."
        ) from error


def _parse_header(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """Return the checked header of the present format version."""
    try:
        header = json.loads((metadata or {})[_KEY])
        version = header["format_version"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelFileError(
            f"{path} is a safetensors file without the header of an lkm-calc model. Name a file "
            "written by lkm-train or save_model."
        ) from error
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"{path} has model format {version!r}; formats count from 1.")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has model format {version}; this lkm-calc reads up to {FORMAT_VERSION}. "
            "Update it: pip install -U lkm-calc."
        )
    for old in range(version, FORMAT_VERSION):
        header = _UPGRADES[old](header)
    problem = _find_damage(header)
    if problem:
        raise ModelFileError(
            f"{path} has a damaged header: {problem}. Get the original file again."
        )
    return {"provenance": {}, **header}


def _find_damage(header: Mapping[str, Any]) -> str:
    """Describe what is wrong with a header, or return an empty text."""
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
    strange = {*header["elements"], *header["reference_energies"]} - {*known}
    if strange:
        return f"unknown elements {sorted(strange)}"
    if header["dtype"] not in ("float32", "float64"):
        return f"dtype is {header['dtype']!r}"
    return ""
