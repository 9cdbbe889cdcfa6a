"""Read-only measurements of a training loop: gradients of every term, the push on every class,
drift.

A probe is a context manager with one verb, `look`, called after the loss is computed and before
`backward()`. It works in `train` (by name), and in a loop of your own, on a `Clip` or on any
open_clip model:

    with Gradients(model) as probe:
        ...
        probe.look({"task": loss})
    probe.table()

A probe changes nothing: parameters, their `.grad`, random numbers and modes are after a look as
they were before.

What SIT's paper (arXiv 2405.15155) plots is not known: the released code calls a routine that it
does not hold, with the features, labels and candidate classes of each step. So the analysis is of
features, per class. What is measured here follows from the loss (`Classes`); norms and angles of
parameter gradients (`Gradients`) and `Drift` go beyond.
"""
from clstudy.probes.class_gradients import Classes, Seen, pulls, reachable
from clstudy.probes.drift import Drift
from clstudy.probes.parameter_gradients import Gradients, where

__all__ = ["Classes", "Drift", "Gradients", "Seen", "pulls", "reachable", "where"]
