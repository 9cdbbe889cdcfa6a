"""Things to play with in a notebook, each in a file of its own. A widget looks at finished runs and at models; one
trains (`live_training`, in another process). Every control is reached by keyboard too.

CLSTUDY_HEADLESS=1 (`clstudy run`, tests): instead of the newer ones a static figure, their twin, is returned."""
from .board import Answers, answers, forgetting_board
from .compare import run_comparer
from .live import live_training
from .microscope import gradient_microscope
from .picture import picture_microscope
from .simple import chooser, map_walker
from .streams import stream_explorer
from .zero_shot import playground, probabilities

__all__ = ["Answers", "answers", "chooser", "forgetting_board", "gradient_microscope", "live_training", "map_walker",
           "picture_microscope", "playground", "probabilities", "run_comparer", "stream_explorer"]
