"""Tables → figures. Nothing here computes a result; `save` writes a PDF, a PNG and the runs behind
it to `figures/`."""
from clstudy.plots.accuracy import (
    accuracy_matrices,
    changes,
    live,
    loss_curves,
    matrix,
    roles,
    series,
    stream_curves,
    trade,
)
from clstudy.plots.comparisons import buffers, differences, frontier, over
from clstudy.plots.design_space import design_space_map
from clstudy.plots.domains import domain_gains, domain_matrices, style_grid
from clstudy.plots.gradients import anatomy, bands, by_block, scatter
from clstudy.plots.images import bars, pictures, similarity
from clstudy.plots.rehearsal import class_weights, estimates, look, payers, sizes
from clstudy.plots.streams import arrivals
from clstudy.plots.style import LOOKS, METHODS, VOCABULARIES, save

__all__ = ["LOOKS", "METHODS", "VOCABULARIES", "accuracy_matrices", "anatomy", "arrivals", "bands",
           "bars", "buffers", "by_block", "changes", "class_weights",
           "design_space_map", "differences", "domain_gains", "domain_matrices",
           "estimates", "frontier", "live", "look", "loss_curves", "matrix", "over",
           "payers", "pictures", "roles", "save", "scatter", "series",
           "similarity", "sizes", "stream_curves", "style_grid", "trade"]
