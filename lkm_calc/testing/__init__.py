"""Physics tests that every force field must pass, for custom architectures.

:func:`check_model` runs all of them; with pytest each check can be a separate test:

    @pytest.mark.parametrize("name", CHECKS)
    def test_physics(name):
        CHECKS[name](as_if_trained(build_model("my-model")))

The checks use molecules and crystals of H, C, N, O and Si, in float64 unless stated otherwise. They
raise a :class:`PhysicsError`, a subclass of AssertionError, with the property and the numbers.
pytest is not required.
"""

from .battery import CHECKS as CHECKS
from .battery import as_if_trained as as_if_trained
from .battery import check_model as check_model
from .derivatives import check_finite as check_finite
from .derivatives import check_forces as check_forces
from .derivatives import check_lone_atoms as check_lone_atoms
from .derivatives import check_second_derivatives as check_second_derivatives
from .derivatives import check_stress as check_stress
from .derivatives import check_training as check_training
from .files import check_copies as check_copies
from .files import check_device as check_device
from .files import check_file as check_file
from .files import check_float32 as check_float32
from .files import check_output as check_output
from .locality import check_batch as check_batch
from .locality import check_longer_edges as check_longer_edges
from .locality import check_neighbours as check_neighbours
from .locality import check_padding as check_padding
from .locality import check_size_consistency as check_size_consistency
from .measures import FINITE_DIFFERENCE as FINITE_DIFFERENCE
from .measures import ROUND_OFF as ROUND_OFF
from .measures import SINGLE as SINGLE
from .measures import SMOOTH as SMOOTH
from .measures import STEP as STEP
from .measures import PhysicsError as PhysicsError
from .measures import central_difference as central_difference
from .measures import energy_of as energy_of
from .measures import graph_of as graph_of
from .measures import numerical_forces as numerical_forces
from .measures import relative_error as relative_error
from .smoothness import check_smoothness as check_smoothness
from .smoothness import cutoffs_of as cutoffs_of
from .smoothness import roughness as roughness
from .structures import crystal as crystal
from .structures import crystals as crystals
from .structures import molecules as molecules
from .structures import rattled as rattled
from .symmetries import check_edge_order as check_edge_order
from .symmetries import check_permutation as check_permutation
from .symmetries import check_rigid_motions as check_rigid_motions
from .symmetries import check_supercell as check_supercell
from .symmetries import check_wrapping as check_wrapping
