"""SHA-256 checksums of the contents of files, to detect damage."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum_of(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of JSON values and tensors on the CPU, in hexadecimal.

    It covers names, shapes, dtypes and every bit of the tensors, but does not depend on the order
    or white space in a file. It takes a few milliseconds for 4 MB.
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
    """Return the content of a file with its SHA-256 as an additional last line.

    Readers that search for the end of an archive, such as those of zip files, skip that line.
    """
    return content + _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unsealed(content: bytes) -> tuple[bytes, bool | None]:
    """Return the content given to :func:`sealed` and whether it is unchanged; None if unsealed."""
    before, seal = content[:-_SEAL], content[-_SEAL:]
    if not seal.startswith(_MARK):
        return content, None
    return before, sealed(before) == content
