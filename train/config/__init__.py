"""Configuration of a training run: frozen dataclasses, read from TOML."""

from .checks import FEWEST_FRAMES as FEWEST_FRAMES
from .options import Config as Config
from .options import ConfigError as ConfigError
from .options import DataConfig as DataConfig
from .options import LossConfig as LossConfig
from .options import ModelConfig as ModelConfig
from .options import OptimiserConfig as OptimiserConfig
from .options import PretrainingConfig as PretrainingConfig
from .options import RunConfig as RunConfig
from .reading import FINETUNING_RATE as FINETUNING_RATE
from .reading import config_from_table as config_from_table
from .reading import merge as merge
from .reading import parse_overrides as parse_overrides
from .reading import read_config as read_config
from .reading import to_table as to_table
from .reading import told_of_old as told_of_old
