"""SHA-256 of what files hold, by which damage is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum_of(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of JSON values and tensors on the CPU, in hexadecimal.

    It is that of the contents: neither order nor white space of a file change it, and names,
    shapes, types and every bit of the tensors do. A file of 4 MB takes some milliseconds.
    """
    digest = hashlib.sha256(_line(values))
    for name, tensor in sorted(tensors.items()):
        digest.update(_line([name, str(tensor.dtype), *tensor.shape]))
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _line(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True).encode() + b"\n"


_MARK = b"\nSHA-256 "
_SEAL = len(_MARK) + 64 + 1


def sealed(content: bytes) -> bytes:
    """Return the content of a file with a last line that holds its SHA-256.

    Readers that look for the end of an archive, as those of zip files do, skip that line.
    """
    return content + _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unsealed(content: bytes) -> tuple[bytes, bool | None]:
    """Return what :func:`sealed` was given, and whether it is still the same; None if unsealed."""
    before, seal = content[:-_SEAL], content[-_SEAL:]
    if not seal.startswith(_MARK):
        return content, None
    return before, sealed(before) == content
