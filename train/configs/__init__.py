"""Ready configurations."""

from pathlib import Path

CONFIGS = Path(__file__).parent
"""Folder of the configurations that come with the package."""
