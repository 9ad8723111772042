"""Training runs: training loop, optimisers, training state and output files."""

from .duration import parse_time as parse_time
from .duration import prolonged as prolonged
from .loop import TrainingDivergedError as TrainingDivergedError
from .loop import device_of as device_of
from .loop import fit as fit
from .loop import fit_members as fit_members
from .parallel import Stop as Stop
from .parallel import Workers as Workers
from .parallel import first_process as first_process
from .parallel import workers as workers
from .prepare import check_elements as check_elements
from .prepare import prepare_model as prepare_model
from .record import Record as Record
from .record import device_name as device_name
from .step import Stepper as Stepper
