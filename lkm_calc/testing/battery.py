"""All checks together."""

import copy
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import ase
import torch

from ..models import EnergyModel
from .derivatives import (
    check_finite,
    check_forces,
    check_lone_atoms,
    check_second_derivatives,
    check_stress,
    check_training,
)
from .files import check_copies, check_file, check_float32, check_output
from .locality import (
    check_batch,
    check_longer_edges,
    check_neighbours,
    check_padding,
    check_size_consistency,
)
from .measures import PhysicsError
from .smoothness import check_smoothness, cutoffs_of
from .structures import crystal, crystals, molecules, rattled
from .symmetries import (
    check_edge_order,
    check_permutation,
    check_rigid_motions,
    check_supercell,
    check_wrapping,
)

Check = Callable[[EnergyModel], None]


def _over(
    check: Callable[[EnergyModel, ase.Atoms], None], *sets: Callable[[], Mapping[str, ase.Atoms]]
) -> Check:
    """Return a check that runs over all structures of some sets."""

    def checks(model: EnergyModel) -> None:
        for structures in sets:
            for atoms in structures().values():
                check(model, atoms)

    return checks


def _ethanol() -> dict[str, ase.Atoms]:
    return {"rattled ethanol": rattled()}


def _small() -> dict[str, ase.Atoms]:
    return {"rattled water": rattled("H2O"), "CO2": molecules()["CO2"]}


def _lone() -> list[ase.Atoms]:
    return [molecules()[name] for name in ("C", "two atoms apart")]


def _mixed() -> list[ase.Atoms]:
    return [rattled(), crystal(), rattled("H2O"), ase.Atoms("C"), rattled("C6H6")]


def _crowded() -> dict[str, ase.Atoms]:
    return {"benzene": molecules()["C6H6"] + ase.Atoms("O", [[0, 3.0, 4.5]])}


def _paddings(model: EnergyModel) -> None:
    check_padding(model, [rattled("H2"), rattled("C6H6")])
    check_padding(model, [crystal(), crystal(pbc=[True, True, False])])


def _cutoffs(model: EnergyModel) -> None:
    for radius in cutoffs_of(model).values():
        check_smoothness(model, radius)


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "output": lambda model: check_output(model, _mixed()),
        "forces": _over(check_forces, _ethanol, crystals),
        "stress": _over(check_stress, crystals),
        "second derivatives": _over(check_second_derivatives, _small),
        "finite": _over(check_finite, molecules),
        "training": _over(check_training, molecules),
        "lone atoms": lambda model: check_lone_atoms(model, _lone()),
        "rotation, translation and parity": _over(check_rigid_motions, _ethanol),
        "permutation": _over(check_permutation, _ethanol),
        "order of edges": _over(check_edge_order, _ethanol, crystals),
        "supercells": _over(check_supercell, crystals),
        "periodic images": _over(check_wrapping, crystals),
        "batches": lambda model: check_batch(model, _mixed()),
        "padding": _paddings,
        "size consistency": lambda model: check_size_consistency(
            model, rattled(), rattled("H2O", seed=1)
        ),
        "longer edges": _over(check_longer_edges, _crowded),
        "all neighbours": check_neighbours,
        "smoothness": _cutoffs,
        "float32": _over(check_float32, _ethanol),
        "copies": _over(check_copies, _ethanol),
        "file": _over(check_file, _ethanol),
    }
)
"""All checks by name; each takes a model in float64, as returned by :func:`as_if_trained`."""


def check_model(model: EnergyModel, names: Iterable[str] | None = None) -> None:
    """Run the physics tests on a model, which need not be trained.

    A copy of the model is tested, see :func:`as_if_trained`. This takes seconds to minutes; use a
    small model.

    Args:
        model: A model that supports at least H, C, N, O and Si.
        names: Keys of :data:`CHECKS`; all of them if None.

    Raises:
        PhysicsError: One line per failed check, including exceptions raised by the model.
        ValueError: A name is not a key of :data:`CHECKS`.
    """
    chosen = list(CHECKS if names is None else names)
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        raise ValueError(f"There is no check {unknown[0]!r}; choose from {', '.join(CHECKS)}.")
    ready, failures = as_if_trained(model), list[Exception]()
    lines = []
    for name in chosen:
        try:
            CHECKS[name](ready)
        except PhysicsError as error:
            failures.append(error)
            lines.append(f"{name}: {error}")
        except Exception as error:  # custom models may raise anything
            failures.append(error)
            lines.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        text = f"{model.name} fails {len(lines)} of {len(chosen)} checks:"
        raise PhysicsError("\n".join([text, *lines])) from failures[0]


def as_if_trained(model: EnergyModel, seed: int = 0) -> EnergyModel:
    """Return a copy in float64 with generic weights, for the checks.

    In a new model, zero weights or initial frequencies for which functions happen to vanish at the
    cutoff can hide errors that appear after training. Weights that are all zero are therefore drawn
    at random, others are multiplied by random numbers from 1 to 1.1, and reference energies are set
    to zero. The device is unchanged.

    Args:
        model: The model.
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    ready = copy.deepcopy(model).double().eval().requires_grad_(True)
    with torch.no_grad():
        for weights in ready.parameters():
            if weights.any():
                drawn = 1 + 0.1 * torch.rand(weights.shape, generator=generator).double()
                weights.mul_(drawn.to(weights.device))
            else:
                drawn = 0.3 * torch.randn(weights.shape, generator=generator).double()
                weights.copy_(drawn)
        ready.reference_energies.zero_()
    return ready
