"""Metrics of continual learning: pure functions of accuracies. `METRICS` names each definition,
with divisor and source.

`R` is a float array of shape (T + 1, T): row 0 is the model before training, row s the model after
stage s, column t task t + 1, whose home stage is t + 1. So R[t + 1, t] is the accuracy on a task
when its home stage ends. In the formulas R_sj has s = 0 … T and j = 1 … T, as papers count. For the
state after stage p < T, pass R[:p + 1, :p]. NaN marks what was not measured, such as a task without
test images: it is left out of sums and divisors. A metric with nothing to average (forgetting of a
single task) is NaN. Accuracies may be shares or per cent. ValueError: a wrong shape, or an unknown
variant.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

Numbers = Sequence[float] | np.ndarray  # an array is no Sequence
Table = Sequence | np.ndarray  # rows of numbers; a wrong shape is refused with its name

EXAMPLE = np.array([[.30, .40, .50],   # before training; the matrix of the worked examples
                    [.80, .50, .40],   # after stage 1
                    [.90, .70, .40],   # after stage 2
                    [.60, .50, .90]])  # after stage 3

# ---- curves: accuracy over seen classes, one value per stage end or checkpoint


def a_avg(curve: Numbers) -> float:
    """Return A_avg = (1/T) Σ_s a_s over stage ends s = 1 … T: average incremental accuracy.

    >>> round(a_avg([.80, .70, .60]), 4)
    0.7
    """
    return _mean(_curve(curve))


def a_last(curve: Numbers) -> float:
    """Return A_last = a_T, the accuracy on all seen classes after the last stage.

    >>> a_last([.80, .70, .60])
    0.6
    """
    return float(_curve(curve)[-1])


def a_auc(curve: Numbers) -> float:
    """Return A_auc = (1/K) Σ_k a_k over the K checkpoints of a run: any-time accuracy.

    This is the plain mean, as in released code, not the trapezoid rule.

    >>> round(a_auc([.90, .80, .50, .60]), 4)
    0.7
    """
    return _mean(_curve(curve))


# ---- the accuracy matrix


def forgetting(R: Table, variant: str = "chaudhry2018") -> float:
    """Return the mean loss of accuracy over the T − 1 tasks before the last; higher is worse.

    Row 0 is not used. chaudhry2018 takes the best of the rows before the last, also those before
    the home stage, as printed, so it may be negative; clipped includes the last row, so it may not;
    first_minus_last is −BWT of lopez_paz2017.

    >>> {name: round(forgetting(EXAMPLE, name), 4) for name in FORGETTING}
    {'chaudhry2018': 0.25, 'clipped': 0.25, 'first_minus_last': 0.2}
    """
    return _variant(FORGETTING, variant)(_matrix(R))


def backward_transfer(R: Table, variant: str = "lopez_paz2017") -> float:
    """Return BWT, the change of earlier tasks since their home stage; negative is forgetting.

    Row 0 is not used. diaz_rodriguez2018 counts every row after the home stage. vr_lwf counts
    phases p = 0, 1, … and divides by p + 1 = T, so that the newest task counts as a zero.

    >>> {name: round(backward_transfer(EXAMPLE, name), 4) for name in BACKWARD_TRANSFER}
    {'lopez_paz2017': -0.2, 'diaz_rodriguez2018': -0.1, 'vr_lwf': -0.1333}
    """
    return _variant(BACKWARD_TRANSFER, variant)(_matrix(R))


def forward_transfer(R: Table, variant: str = "lopez_paz2017") -> float:
    """Return FWT, the accuracy on tasks before their home stage.

    lopez_paz2017 subtracts the baseline b_j, here row 0; no_baseline uses rows 1 … T − 1.

    >>> {name: round(forward_transfer(EXAMPLE, name), 4) for name in FORWARD_TRANSFER}
    {'lopez_paz2017': 0.0, 'no_baseline': 0.4333}
    """
    return _variant(FORWARD_TRANSFER, variant)(_matrix(R))


def transfer(R: Table) -> float:
    """Return ZSCL's Transfer = 1/(T−1) Σ_{j≥2} [1/(j−1) Σ_{1≤s<j} R_sj]: zero-shot ability.

    Row 0 is not used, as ZSCL's matrices start after the first stage. Every task counts once; in
    forward_transfer/no_baseline every entry does.

    >>> round(transfer(EXAMPLE), 4)  # (0.50 + (0.40 + 0.40) / 2) / 2
    0.45
    """
    R = _matrix(R)
    return _mean([_mean(R[1:t + 1, t]) for t in range(1, R.shape[1])])


def average(R: Table) -> float:
    """Return ZSCL's Avg = 1/T Σ_j [1/T Σ_{s=1…T} R_sj]: the mean over rows but row 0, then tasks.

    >>> round(average(EXAMPLE), 4)  # (2.30 + 1.70 + 1.70) / 9
    0.6333
    """
    R = _matrix(R)
    return _mean([_mean(R[1:, t]) for t in range(R.shape[1])])


def last(R: Table) -> float:
    """Return ZSCL's Last = 1/T Σ_j R_Tj, the mean of the last row.

    >>> round(last(EXAMPLE), 4)
    0.6667
    """
    return _mean(_matrix(R)[-1])


# ---- accuracies per class


def f_last(class_accuracy: Table) -> float:
    """Return F_last = (1/|C|) Σ_{c∈C} (max_{s<T} a_sc − a_Tc), C: classes above 0 before stage T.

    class_accuracy: (stages, classes) at stage ends, without the row before training; NaN where a
    class is not yet seen. F_last may be negative.

    >>> round(f_last([[.8, np.nan, 0.], [.6, .5, .0], [.5, .6, .9]]), 4)  # (0.3 − 0.1) / 2
    0.1
    """
    a = np.asarray(class_accuracy, dtype=float)
    if a.ndim != 2 or len(a) == 0:
        raise ValueError(f"class_accuracy: got shape {a.shape}; must be (stages, classes), one "
                         "stage or more")
    best = np.fmax.reduce(a[:-1], axis=0, initial=0.0)  # fmax passes over NaN
    return _mean((best - a[-1])[best > 0])


def worst_class(class_accuracy: Numbers) -> float:
    """Return min_c a_c over the classes measured: what robust weighting (GDRO) tries to raise.

    >>> worst_class([.8, np.nan, .3])
    0.3
    """
    return float(np.fmin.reduce(_curve(class_accuracy)))


def worst_fifth(class_accuracy: Numbers) -> float:
    """Return the mean accuracy of the worst ⌈C / 5⌉ classes: it moves where `worst_class` is 0.

    It is the conditional value at risk over classes (Rockafellar and Uryasev 2000).

    >>> round(worst_fifth([.8, np.nan, .3, .1, .9, .7, .5]), 4)  # two of six: (.1 + .3) / 2
    0.2
    """
    a = np.sort(_curve(class_accuracy))  # NaN last
    a = a[~np.isnan(a)]
    return _mean(a[:-(-len(a) // 5)])


def worst_domain(domain_accuracy: Numbers) -> float:
    """Return min_d a_d over the domains measured; a_d: accuracy on all classes in domain d.

    >>> worst_domain([.6, np.nan, .45])
    0.45
    """
    return float(np.fmin.reduce(_curve(domain_accuracy)))


# ---- variants by name. R is checked by then; column t has its home in row t + 1

Variants = dict[str, Callable[[np.ndarray], float]]
FORGETTING: Variants = {
    "chaudhry2018": lambda R: _mean(_best(R[1:-1, :-1]) - R[-1, :-1]),
    "clipped": lambda R: _mean(_best(R[1:, :-1]) - R[-1, :-1]),
    "first_minus_last": lambda R: _mean((_home(R) - R[-1])[:-1]),
}
BACKWARD_TRANSFER: Variants = {
    "lopez_paz2017": lambda R: _mean((R[-1] - _home(R))[:-1]),
    "diaz_rodriguez2018": lambda R: _mean((R[1:] - _home(R))[np.tril_indices(R.shape[1], k=-1)]),
    "vr_lwf": lambda R: _mean(R[-1] - _home(R)),  # the last task adds 0, and 1 to the divisor
}
FORWARD_TRANSFER: Variants = {
    "lopez_paz2017": lambda R: _mean((np.diagonal(R) - R[0])[1:]),  # R[t, t]: before the home
    "no_baseline": lambda R: _mean(R[1:][np.triu_indices(R.shape[1], k=1)]),
}


# ---- helpers


def _mean(values: Numbers) -> float:
    """Return the mean of what is not NaN; NaN, without a warning, where nothing is left."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _best(rows: np.ndarray) -> np.ndarray:
    return np.fmax.reduce(rows, axis=0, initial=np.nan)  # fmax passes over NaN


def _home(R: np.ndarray) -> np.ndarray:
    return np.diagonal(R[1:])


def _matrix(R: Table) -> np.ndarray:
    R = np.asarray(R, dtype=float)
    if R.ndim != 2 or R.shape[0] != R.shape[1] + 1 or R.shape[1] == 0:
        raise ValueError(f"R: got shape {R.shape}; must be (T + 1, T), row 0 being the model "
                         "before training")
    return R


def _curve(values: Numbers) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values: got shape {values.shape}; must be one-dimensional with at least "
                         "one value")
    return values


def _variant(variants: Variants, variant: str) -> Callable[[np.ndarray], float]:
    if variant not in variants:
        raise ValueError(f"variant={variant!r}: must be one of {', '.join(variants)}")
    return variants[variant]


# ---- the registry


@dataclass(frozen=True)
class Metric:
    """A named definition, so that a report can say which one it used."""

    name: str  # with its variant, as "forgetting/clipped"
    symbol: str  # short label for tables and axes
    function: Callable[..., float]
    # what `function` is given
    takes: Literal["matrix", "stage_curve", "checkpoint_curve", "class_matrix", "class_vector",
                   "domain_vector"]
    direction: Literal["higher", "lower"]  # which is better
    source: str
    definition: str  # one line, with the divisor


_GEM = "Lopez-Paz and Ranzato 2017, arXiv 1706.08840"
_DIAZ = "Díaz-Rodríguez et al. 2018, arXiv 1810.13166"
_ZSCL = "ZSCL, Zheng et al. 2023, arXiv 2303.06628"
_SIT = "SIT, Wang et al. 2024, arXiv 2405.15155"
_WORST = "Sagawa et al. 2020, arXiv 1911.08731"

_LISTED = (
    ("a_avg", "A_avg", a_avg, "stage_curve", "higher",
     "iCaRL, Rebuffi et al. 2017, arXiv 1611.07725",
     "mean over the T stage ends of the accuracy on all classes seen so far"),
    ("a_last", "A_last", a_last, "stage_curve", "higher", _SIT,
     "accuracy on all seen classes after the last stage; no divisor"),
    ("a_auc", "A_auc", a_auc, "checkpoint_curve", "higher",
     "CLIB, Koh et al. 2022, arXiv 2110.10031",
     "mean over the K checkpoints of the accuracy on all classes seen so far"),
    ("forgetting/chaudhry2018", "F", forgetting, "matrix", "lower",
     "RWalk, Chaudhry et al. 2018, arXiv 1801.10112",
     "Σ_{j<T} (max_{1≤s<T} R_sj − R_Tj), divided by T − 1"),
    ("forgetting/clipped", "F clipped", forgetting, "matrix", "lower", "code of Mammoth and PILOT",
     "Σ_{j<T} (max_{1≤s≤T} R_sj − R_Tj), divided by T − 1"),
    ("forgetting/first_minus_last", "F first−last", forgetting, "matrix", "lower",
     "code of Avalanche", "Σ_{j<T} (R_jj − R_Tj), divided by T − 1"),
    ("backward_transfer/lopez_paz2017", "BWT", backward_transfer, "matrix", "higher", _GEM,
     "Σ_{j<T} (R_Tj − R_jj), divided by T − 1"),
    ("backward_transfer/diaz_rodriguez2018", "BWT all rows", backward_transfer, "matrix", "higher",
     _DIAZ, "Σ_{s>j} (R_sj − R_jj), divided by T(T − 1)/2"),
    ("backward_transfer/vr_lwf", "BWT p+1", backward_transfer, "matrix", "higher",
     "code of VR-LwF, arXiv 2207.09248", "Σ_{j<T} (R_Tj − R_jj), divided by T"),
    ("forward_transfer/lopez_paz2017", "FWT", forward_transfer, "matrix", "higher", _GEM,
     "Σ_{j>1} (R_{j−1,j} − R_0j), divided by T − 1"),
    ("forward_transfer/no_baseline", "FWT no baseline", forward_transfer, "matrix", "higher", _DIAZ,
     "Σ_{1≤s<j} R_sj, divided by T(T − 1)/2"),
    ("transfer", "Transfer", transfer, "matrix", "higher", _ZSCL,
     "Σ_{j>1} (mean of R_sj over 1≤s<j), divided by T − 1"),
    ("average", "Avg", average, "matrix", "higher", _ZSCL,
     "Σ_j (mean of R_sj over s = 1 … T), divided by T"),
    ("last", "Last", last, "matrix", "higher", _ZSCL, "Σ_j R_Tj, divided by T"),
    ("f_last", "F_last", f_last, "class_matrix", "lower", f"code of {_SIT}",
     "Σ_c (max_{s<T} a_sc − a_Tc), divided by the number of classes once above 0"),
    ("worst_class", "A_worst", worst_class, "class_vector", "higher", _WORST,
     "smallest accuracy of a class; no divisor"),
    ("worst_fifth", "A_fifth", worst_fifth, "class_vector", "higher",
     "Curi et al. 2020, arXiv 1910.12511",
     "mean over the ⌈C/5⌉ classes of smallest accuracy"),
    ("worst_domain", "A_domain", worst_domain, "domain_vector", "higher", _WORST,
     "smallest accuracy of a domain, over all its classes; no divisor"),
)


def _metric(name: str, symbol: str, function: Callable[..., float], *rest: str) -> Metric:
    variant = name.partition("/")[2]
    return Metric(name, symbol, partial(function, variant=variant) if variant else function, *rest)


METRICS: dict[str, Metric] = {row[0]: _metric(*row) for row in _LISTED}
