"""Active learning: simulate, label what is outside the training distribution, retrain."""

from .labels import label_structures as label_structures
from .page import write_learning_page as write_learning_page
from .rounds import LearnSettings as LearnSettings
from .rounds import Round as Round
from .rounds import learn as learn
