"""Atomic writing of text and JSON files, and checksums."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkm_calc.files import expanded, replacing


def checksum(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with expanded(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
