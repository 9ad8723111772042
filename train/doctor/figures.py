"""All that the examination of a data file finds."""

from dataclasses import dataclass

from .checks import Composition, Finding, Floats, Ints, IsolatedFigures, References
from .consistency import BondTest, NeighbourTest, PairTest, PotentialTest


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; arrays run over the usable frames."""

    usable: Ints
    """Indices in the file of the frames that are finite and made of elements, without isolated
    atoms."""
    labels: dict[str, int]
    """How many of them have which labels."""
    config_types: str
    """How many are of which config_type, in words."""
    compositions: list[Composition]
    isolated: IsolatedFigures
    references: References
    residuals: Floats
    """(usable) energies less those of their atoms, eV."""
    closest: Floats
    """(usable) shortest distance in Å; NaN where no atom is near another."""
    contacts: Floats
    """(usable) shortest distance over the sum of covalent radii; NaN as above."""
    largest_force: Floats
    """(usable with forces) eV/Å; empty without forces."""
    rms_force: float
    net_force: float
    """Root mean square of |ΣF| over that of √Σ|F|², 1 for unrelated forces."""
    net_torque: float
    """The same for Σ r × F, from the centre of each frame."""
    stiffness: float
    """Mean square force component over kT from the spread of energies, eV/Å²; NaN if unknown."""
    pairs: PairTest | None
    potential: PotentialTest | None
    bonds: BondTest | None
    neighbours: NeighbourTest | None
    """Its suspects are counted in the file."""


@dataclass(frozen=True)
class Report:
    """What `diagnose` found."""

    findings: tuple[Finding, ...]
    n_frames: int
    figures: Figures | None
    """None where no frame is usable."""

    @property
    def faulty(self) -> bool:
        """Whether there is a fault; notes do not count."""
        return any(finding.severity == "fault" for finding in self.findings)
