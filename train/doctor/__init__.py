"""Examination of a data file (lkm-train check-data).

:func:`diagnose` runs all checks, one per module: checks of single frames are in :mod:`.checks`,
comparisons of energies and forces in :mod:`.consistency`.
"""

from .examine import diagnose as diagnose
from .figures import Report as Report
from .page import write_report_page as write_report_page
from .plots import plot_report as plot_report
from .report import report_text as report_text
