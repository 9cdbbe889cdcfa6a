"""Things to play with in a notebook, each in a file of its own. A widget looks at finished runs and
at models; one trains (`live_training`, in another process). Every control is reached by keyboard
too.

CLSTUDY_HEADLESS=1 (`clstudy run`, tests): instead of the newer ones a static figure, their twin, is
returned."""
from clstudy.widgets.accuracy_matrix import Answers, answers, forgetting_board
from clstudy.widgets.choosers import chooser, map_walker
from clstudy.widgets.explorer import stream_explorer
from clstudy.widgets.live import live_training
from clstudy.widgets.microscope import gradient_microscope
from clstudy.widgets.picture_gradients import picture_microscope
from clstudy.widgets.run_comparison import run_comparer
from clstudy.widgets.zero_shot import playground, probabilities

__all__ = [
    "Answers", "answers", "chooser", "forgetting_board", "gradient_microscope", "live_training",
    "map_walker", "picture_microscope", "playground", "probabilities", "run_comparer",
    "stream_explorer"
]
