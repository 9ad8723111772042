"""Functions for any model: forces and stress, Hessian, ZBL repulsion, model files."""

from .checkpoint import ModelFileError as ModelFileError
from .checkpoint import add_calibration as add_calibration
from .checkpoint import bundled_models as bundled_models
from .checkpoint import load_model as load_model
from .checkpoint import read_header as read_header
from .checkpoint import renew_checksum as renew_checksum
from .checkpoint import save_model as save_model
from .forces import EnergyForces as EnergyForces
from .forces import energy_and_forces as energy_and_forces
from .forces import volumes as volumes
from .second_derivatives import hessian as hessian
from .second_derivatives import hessian_of_atoms as hessian_of_atoms
from .second_derivatives import vibrations as vibrations
from .zbl import HeldGraph as HeldGraph
from .zbl import Pairs as Pairs
from .zbl import ZBLModel as ZBLModel
from .zbl import hold as hold
from .zbl import with_zbl as with_zbl
from .zbl import zbl_energy as zbl_energy
