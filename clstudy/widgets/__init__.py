"""Views of finished runs and models to play with in a notebook, each in a file of its own. Only
`live_training` trains, in another process. The keyboard reaches every control.

CLSTUDY_HEADLESS=1 (`clstudy run`, tests): a static figure is returned instead of a view."""
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
