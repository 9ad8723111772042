"""Results of the examination of a data file."""

from dataclasses import dataclass

from .checks import Composition, Finding, Floats, Ints, IsolatedFigures, References
from .consistency import BondTest, NeighbourTest, PairTest, PotentialTest


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Measured quantities; arrays run over the usable frames."""

    usable: Ints
    """Indices in the file of the frames with finite values and valid elements, without isolated
    atoms."""
    labels: dict[str, int]
    """Number of frames with each kind of label."""
    config_types: str
    """Number of frames of each config_type, as text."""
    compositions: list[Composition]
    isolated: IsolatedFigures
    references: References
    residuals: Floats
    """(usable) energies minus reference energies, eV."""
    closest: Floats
    """(usable) shortest distance in Å; NaN if no atoms are close to each other."""
    contacts: Floats
    """(usable) shortest distance relative to the sum of covalent radii; NaN as above."""
    largest_force: Floats
    """(usable with forces) eV/Å; empty without forces."""
    rms_force: float
    net_force: float
    """RMS of |ΣF| relative to that of √Σ|F|²; 1 for uncorrelated forces."""
    net_torque: float
    """The same for Σ r × F about the centre of each frame."""
    stiffness: float
    """Mean square force component divided by kT from the energy distribution, eV/Å²; NaN if
    unknown."""
    pairs: PairTest | None
    potential: PotentialTest | None
    bonds: BondTest | None
    neighbours: NeighbourTest | None
    """Its suspects are indices in the file."""


@dataclass(frozen=True)
class Report:
    """Result of :func:`diagnose`."""

    findings: tuple[Finding, ...]
    n_frames: int
    figures: Figures | None
    """None if no frame is usable."""

    @property
    def faulty(self) -> bool:
        """Whether there is a fault, as opposed to notes only."""
        return any(finding.severity == "fault" for finding in self.findings)
