"""Evaluation of models: errors, calibration, model card and plots."""

from .calibration import calibrate_file as calibrate_file
from .calibration import own_split as own_split
from .card import model_card as model_card
from .compare import write_comparison as write_comparison
from .evaluate import Errors as Errors
from .evaluate import LayerStatistics as LayerStatistics
from .evaluate import errors_of as errors_of
from .evaluate import model_output as model_output
from .evaluate import predict as predict
from .plots import plot_learning_curves as plot_learning_curves
from .plots import plot_parity as plot_parity
from .plots import save_figure as save_figure
from .run_page import Measured as Measured
from .run_page import repeat_command as repeat_command
from .run_page import write_run_page as write_run_page
from .runs import Held as Held
from .runs import Run as Run
from .runs import held_frames as held_frames
from .runs import read_rows as read_rows
from .runs import read_run as read_run
from .writing import checksum as checksum
from .writing import write_json as write_json
from .writing import write_text as write_text
