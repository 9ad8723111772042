"""Frames of molecular dynamics with a cheap reference method, for pretraining."""

from .calculators import make_calculator as make_calculator
from .dynamics import sample_frames as sample_frames
