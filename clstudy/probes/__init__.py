"""Read-only measurements of a training loop: gradients of every term, the push on every class,
drift, exchanged towers.

A probe is a context manager with one verb, `look`. Call it after the loss is computed and before
`backward()`. Probes work in `train` (by name), and in a loop of your own, on a `Clip` or on any
open_clip model:

    with Gradients(model) as probe:
        ...
        probe.look({"task": loss})
    probe.table()

A probe changes nothing: a look leaves parameters, their `.grad`, random numbers and modes as they
are.

What SIT's paper (arXiv 2405.15155) plots is not known: the released code calls a routine that it
does not contain, with the features, labels and candidate classes of each step. So the analysis is
of features, per class. `Classes` measures what follows from the loss; norms and angles of parameter
gradients (`Gradients`) and `Drift` go beyond. `Towers` looks at evaluations instead: its verb is
`compare`.
"""
from clstudy.probes.class_gradients import Classes, Seen, pulls, reachable
from clstudy.probes.drift import Drift
from clstudy.probes.parameter_gradients import Gradients, where
from clstudy.probes.towers import Towers

__all__ = ["Classes", "Drift", "Gradients", "Seen", "Towers", "pulls", "reachable", "where"]
