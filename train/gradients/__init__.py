"""The loss of a batch and its gradients: ordinary, recorded on a GPU, or compiled."""

from .compiled import CompiledGradients as CompiledGradients
from .compiled import Programs as Programs
from .compiled import program_key as program_key
from .first_order import KernelGradients as KernelGradients
from .isolated import as_trained as as_trained
from .loss import Losses as Losses
from .loss import training_loss as training_loss
from .mixing import LearnedTeacher as LearnedTeacher
from .mixing import learned_teacher as learned_teacher
from .mixing import teacher_of as teacher_of
from .recorded import RecordedGradients as RecordedGradients
