"""Machine-learned force fields trained with Layer-to-Layer Knowledge Mixing."""

from .calculator import LKMCalculator as LKMCalculator
from .checkpoint import load_model as load_model
from .checkpoint import save_model as save_model
from .energy import EnergyModel as EnergyModel
from .energy import Prediction as Prediction
from .forces import EnergyForces as EnergyForces
from .forces import energy_and_forces as energy_and_forces
from .graph import Graph as Graph
from .guards import ExtrapolationError as ExtrapolationError
from .guards import ExtrapolationWarning as ExtrapolationWarning
from .guards import Thresholds as Thresholds
from .hessian import vibrations as vibrations
from .lkm import lkm_loss as lkm_loss
from .models import MODELS as MODELS
from .models import build_model as build_model
from .models import register_model as register_model
from .zbl import with_zbl as with_zbl
