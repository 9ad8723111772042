"""Molecular dynamics with ASE: simulations, ensembles, output files, plots and pages."""

from .ensembles import ENSEMBLES as ENSEMBLES
from .ensembles import MDSettings as MDSettings
from .page import write_md_page as write_md_page
from .plots import plot_md as plot_md
from .record import LogRow as LogRow
from .record import RestartError as RestartError
from .simulation import MDError as MDError
from .simulation import Simulation as Simulation
