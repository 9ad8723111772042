"""Optimisers and the training state, from which a run is resumed."""

from .muon import Muon as Muon
from .optimiser import make_optimisers as make_optimisers
from .state import StateError as StateError
from .state import TrainingState as TrainingState
from .state import average_decay as average_decay
from .state import learning_rate as learning_rate
