"""The examination of a data file: what the checks make of its labels and units, as a report.

:func:`diagnose` runs the checks, a file each: those of single frames in :mod:`.checks`, those that
hold energies and forces against each other in :mod:`.consistency`.
"""

from .examine import diagnose as diagnose
from .figures import Report as Report
from .plots import plot_report as plot_report
from .report import report_text as report_text
