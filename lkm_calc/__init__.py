"""Machine-learned force fields trained with Layer-to-Layer Knowledge Mixing."""

from .calculator import LKMCalculator as LKMCalculator
from .embeddings import lkm_loss as lkm_loss
from .graph import Graph as Graph
from .models import MODELS as MODELS
from .models import EnergyModel as EnergyModel
from .models import Prediction as Prediction
from .models import build_model as build_model
from .models import register_model as register_model
from .potential import EnergyForces as EnergyForces
from .potential import energy_and_forces as energy_and_forces
from .potential import load_model as load_model
from .potential import save_model as save_model
from .potential import vibrations as vibrations
from .potential import with_zbl as with_zbl
from .uncertainty import ExtrapolationError as ExtrapolationError
from .uncertainty import ExtrapolationWarning as ExtrapolationWarning
from .uncertainty import Thresholds as Thresholds
