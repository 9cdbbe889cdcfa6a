"""Tables → figures. Nothing here computes a result; `save` writes a PDF, a PNG and the runs behind
it to `figures/`."""
from clstudy.plots.accuracy import accuracy_matrices, live, matrix, roles, series, stream_curves
from clstudy.plots.comparisons import buffers, differences, frontier, over
from clstudy.plots.design_space import design_space_map
from clstudy.plots.domains import domain_matrices, style_grid
from clstudy.plots.gradients import anatomy, bands
from clstudy.plots.images import bars, pictures, similarity
from clstudy.plots.rehearsal import class_weights, look
from clstudy.plots.streams import arrivals
from clstudy.plots.style import LOOKS, METHODS, VOCABULARIES, save

__all__ = ["LOOKS", "METHODS", "VOCABULARIES", "accuracy_matrices", "anatomy", "arrivals", "bands",
           "bars", "buffers", "class_weights", "design_space_map", "differences",
           "domain_matrices", "frontier", "live", "look", "matrix", "over",
           "pictures", "roles", "save", "series", "similarity", "stream_curves",
           "style_grid"]
