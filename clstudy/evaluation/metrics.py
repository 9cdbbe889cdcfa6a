"""Metrics of continual learning: pure functions of accuracies. `METRICS` names each definition,
with divisor and source.

`R` is a float array of shape (…, T + 1, T): row 0 is the model before training, row s the model
after stage s, column t task t + 1, whose home stage is t + 1. So R[t + 1, t] is the accuracy on a
task when its home stage ends. In the formulas R_sj has s = 0 … T and j = 1 … T, as papers count.
For the state after stage p < T, pass R[:p + 1, :p]. Axes before those named are replicates, as of a
bootstrap: the result has one value for each; without them it is a float. NaN marks what was not
measured, such as a task without test images: it is left out of sums and divisors. A metric with
nothing to average (forgetting of a single task) is NaN. Accuracies may be shares or per cent.
ValueError: a wrong shape, or an unknown variant.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

Numbers = Sequence[float] | np.ndarray  # an array is no Sequence
Table = Sequence | np.ndarray  # rows of numbers; a wrong shape is refused with its name
Value = float | np.ndarray  # an array where there are replicates
ENOUGH = 20  # test images of a group, so that `lowest_fifth` counts it

EXAMPLE = np.array([[.30, .40, .50],   # before training; the matrix of the worked examples
                    [.80, .50, .40],   # after stage 1
                    [.90, .70, .40],   # after stage 2
                    [.60, .50, .90]])  # after stage 3

# ---- curves: accuracy over seen classes, one value per stage end or checkpoint


def a_avg(curve: Numbers) -> Value:
    """Return A_avg = (1/T) Σ_s a_s over stage ends s = 1 … T: average incremental accuracy.

    >>> round(a_avg([.80, .70, .60]), 4)
    0.7
    """
    return _mean(_curve(curve))


def a_last(curve: Numbers) -> Value:
    """Return A_last = a_T, the accuracy on all seen classes after the last stage.

    >>> a_last([.80, .70, .60])
    0.6
    """
    return _value(_curve(curve)[..., -1])


def a_auc(curve: Numbers) -> Value:
    """Return A_auc = (1/K) Σ_k a_k over the K periodic checkpoints of a run: any-time accuracy.

    Periodic: every so many images, as in the code of Si-Blurry and SIT; stage ends do not count. It
    is the plain mean, not the trapezoid rule. NaN: there are no checkpoints.

    >>> round(a_auc([.90, .80, .50, .60]), 4)
    0.7
    """
    return _mean(_curve(curve, least=0))


def a_time(curve: Numbers, images_seen: Numbers) -> Value:
    """Return A_time = (1/x_K) Σ_k (x_k − x_{k−1}) a_k over all measured points, periodic and stage
    ends, x_k images seen, x_0 = 0: accuracy over time.

    Step rule: a_k stands for the images since the point before it, so that the whole stream counts,
    up to the first point too. At equal distances it is the plain mean.

    >>> round(a_time([.90, .50, .60], [10, 20, 40]), 4)  # (9 + 5 + 12) / 40
    0.65
    """
    a, x = _curve(curve), np.asarray(images_seen, dtype=float)
    if x.shape != a.shape[-1:] or not np.all(np.diff(x, prepend=0) > 0):
        raise ValueError(f"images_seen: got {x.tolist()} for {a.shape[-1]} points; must be a "
                         "number for each, above 0 and rising")
    return _mean(a, np.diff(x, prepend=0))


# ---- the accuracy matrix


def forgetting(R: Table, variant: str = "chaudhry2018") -> Value:
    """Return the mean loss of accuracy over the T − 1 tasks before the last; higher is worse.

    chaudhry2018 takes the best of rows 1 … T − 1, also those before the home stage, as printed, so
    it may be negative; clipped includes the last row, so it may not; first_minus_last is −BWT of
    lopez_paz2017. zero_shot is chaudhry2018 with row 0 among the rows: what the pretrained model
    could do already can be forgotten, too.

    >>> {name: round(forgetting(EXAMPLE, name), 4) for name in FORGETTING}
    {'chaudhry2018': 0.25, 'clipped': 0.25, 'first_minus_last': 0.2, 'zero_shot': 0.25}
    """
    return _mean(_variant(FORGETTING, variant)(_matrix(R)))


def backward_transfer(R: Table, variant: str = "lopez_paz2017") -> Value:
    """Return BWT, the change of earlier tasks since their home stage; negative is forgetting.

    Row 0 is not used. diaz_rodriguez2018 counts every row after the home stage. vr_lwf counts
    phases p = 0, 1, … and divides by p + 1 = T, so that the newest task counts as a zero.

    >>> {name: round(backward_transfer(EXAMPLE, name), 4) for name in BACKWARD_TRANSFER}
    {'lopez_paz2017': -0.2, 'diaz_rodriguez2018': -0.1, 'vr_lwf': -0.1333}
    """
    return _mean(_variant(BACKWARD_TRANSFER, variant)(_matrix(R)))


def forward_transfer(R: Table, variant: str = "lopez_paz2017") -> Value:
    """Return FWT, the accuracy on tasks before their home stage.

    lopez_paz2017 subtracts the baseline b_j, here row 0, from the row just before the home stage;
    continuum does not; diaz_rodriguez2018 takes all rows 1 … T − 1 before the home stage, every
    entry once, without a baseline.

    >>> {name: round(forward_transfer(EXAMPLE, name), 4) for name in FORWARD_TRANSFER}
    {'lopez_paz2017': 0.0, 'continuum': 0.45, 'diaz_rodriguez2018': 0.4333}
    """
    return _mean(_variant(FORWARD_TRANSFER, variant)(_matrix(R)))


def forward_change(R: Table) -> Value:
    """Return 1/(T−1) Σ_{j≥2} [1/(j−1) Σ_{1≤s<j} (R_sj − R_0j)]: how much training has changed tasks
    that are still to come. It is `transfer` minus that of the model before training.

    >>> round(forward_change(EXAMPLE), 4)  # (0.10 − 0.10) / 2
    0.0
    """
    R = _matrix(R)
    return _mean(_mean(_to_come(R[..., 1:, :] - R[..., :1, :]), axis=-2))


def transfer(R: Table) -> Value:
    """Return ZSCL's Transfer = 1/(T−1) Σ_{j≥2} [1/(j−1) Σ_{1≤s<j} R_sj]: zero-shot ability.

    Row 0 is not used, as ZSCL's matrices start after the first stage. Every task counts once; in
    forward_transfer/diaz_rodriguez2018 every entry does.

    >>> round(transfer(EXAMPLE), 4)  # (0.50 + (0.40 + 0.40) / 2) / 2
    0.45
    """
    return _mean(_mean(_to_come(_matrix(R)[..., 1:, :]), axis=-2))


def average(R: Table) -> Value:
    """Return ZSCL's Avg = 1/T Σ_j [1/T Σ_{s=1…T} R_sj]: the mean over rows but row 0, then tasks.

    >>> round(average(EXAMPLE), 4)  # (2.30 + 1.70 + 1.70) / 9
    0.6333
    """
    return _mean(_mean(_matrix(R)[..., 1:, :], axis=-2))


def last(R: Table) -> Value:
    """Return ZSCL's Last = 1/T Σ_j R_Tj, the mean of the last row.

    >>> round(last(EXAMPLE), 4)
    0.6667
    """
    return _mean(_matrix(R)[..., -1, :])


# ---- accuracies per class, or per another group of test images


def f_last(class_accuracy: Table) -> Value:
    """Return F_last = (1/|C|) Σ_{c∈C} (max_{s<T} a_sc − a_Tc), C: classes above 0 before stage T.

    class_accuracy: (…, stages, classes) at stage ends, without the row before training; NaN where a
    class is not yet seen. F_last may be negative. In SIT's code a_sc is measured among the classes
    seen by stage s: as their number grows, a model that never changes has a high F_last, too.

    >>> round(f_last([[.8, np.nan, 0.], [.6, .5, .0], [.5, .6, .9]]), 4)  # (0.3 − 0.1) / 2
    0.1
    """
    a = np.asarray(class_accuracy, dtype=float)
    if a.ndim < 2 or a.shape[-2] == 0:
        raise ValueError(f"class_accuracy: got shape {a.shape}; must be (…, stages, classes), one "
                         "stage or more")
    best = np.fmax.reduce(a[..., :-1, :], axis=-2, initial=0.0)  # fmax passes over NaN
    return _mean(np.where(best > 0, best - a[..., -1, :], np.nan))


def lowest_fifth(group_accuracy: Numbers, tests: Numbers | None = None) -> Value:
    """Return the mean accuracy of the ⌈G / 5⌉ groups (classes) of lowest accuracy: what robust
    weighting (GDRO) tries to raise. NaN: fewer than five groups are left.

    tests: images of each group. Groups with fewer than `ENOUGH` are left out: their lowest are
    chance. It is the conditional value at risk over groups (Rockafellar and Uryasev 2000).

    >>> round(lowest_fifth([.8, np.nan, .3, .1, .9, .7, .5]), 4)  # two of six: (.1 + .3) / 2
    0.2
    >>> lowest_fifth([.8, .2, .3, .1, .9, .7, .5], [30, 30, 30, 4, 30, 30, 30])  # two of six
    0.25
    """
    a = _curve(group_accuracy)
    if tests is not None:
        enough = np.asarray(tests) >= ENOUGH
        if enough.shape != a.shape[-1:]:
            raise ValueError(f"tests: got shape {enough.shape} for {a.shape[-1]} groups; must be a "
                             "number for each")
        a = a[..., enough]
    groups = (~np.isnan(a)).sum(-1, keepdims=True)
    lowest = np.arange(a.shape[-1]) < np.where(groups < 5, 0, -(-groups // 5))
    return _mean(np.where(lowest, np.sort(a), np.nan))  # sort puts NaN last


def average_domain(domain_accuracy: Numbers) -> Value:
    """Return the mean of a_d over the domains measured, each with the same weight however many images
    test it; a_d: accuracy on all classes in domain d.

    >>> round(average_domain([.6, np.nan, .45]), 4)
    0.525
    """
    return _mean(_curve(domain_accuracy))


def worst_domain(domain_accuracy: Numbers) -> Value:
    """Return min_d a_d over the domains measured; a_d: accuracy on all classes in domain d.

    >>> worst_domain([.6, np.nan, .45])
    0.45
    """
    return _value(np.fmin.reduce(_curve(domain_accuracy), axis=-1))


# ---- variants by name: what is averaged. R is checked by then; column t has its home in row t + 1

Variants = dict[str, Callable[[np.ndarray], np.ndarray]]
FORGETTING: Variants = {
    "chaudhry2018": lambda R: (_best(R[..., 1:-1, :]) - R[..., -1, :])[..., :-1],
    "clipped": lambda R: (_best(R[..., 1:, :]) - R[..., -1, :])[..., :-1],
    "first_minus_last": lambda R: (_home(R) - R[..., -1, :])[..., :-1],
    "zero_shot": lambda R: (_best(R[..., :-1, :]) - R[..., -1, :])[..., :-1],
}
BACKWARD_TRANSFER: Variants = {
    "lopez_paz2017": lambda R: (R[..., -1, :] - _home(R))[..., :-1],
    "diaz_rodriguez2018": lambda R: _entries(R[..., 1:, :] - _home(R)[..., None, :], np.tril_indices,
                                             -1),
    "vr_lwf": lambda R: R[..., -1, :] - _home(R),  # the last task adds 0, and 1 to the divisor
}
FORWARD_TRANSFER: Variants = {
    "lopez_paz2017": lambda R: (_before_home(R) - R[..., 0, :])[..., 1:],
    "continuum": lambda R: _before_home(R)[..., 1:],
    "diaz_rodriguez2018": lambda R: _entries(R[..., 1:, :], np.triu_indices, 1),
}


# ---- helpers


def _value(found: Value) -> Value:
    """Return an array with a value for each replicate; without replicates a float."""
    return float(found) if np.ndim(found) == 0 else found


def _mean(values: np.ndarray, weights: np.ndarray | float = 1.0, axis: int = -1) -> Value:
    """Return the mean of what is not NaN; NaN, without a warning, where nothing is left."""
    weights = np.where(np.isnan(values), 0.0, weights)
    total = weights.sum(axis)
    found = np.full(total.shape, np.nan)
    np.divide((np.nan_to_num(values) * weights).sum(axis), total, out=found, where=total > 0)
    return _value(found)


def _best(rows: np.ndarray) -> np.ndarray:
    return np.fmax.reduce(rows, axis=-2, initial=np.nan)  # fmax passes over NaN


def _home(R: np.ndarray) -> np.ndarray:
    return np.diagonal(R[..., 1:, :], axis1=-2, axis2=-1)


def _before_home(R: np.ndarray) -> np.ndarray:
    return np.diagonal(R, axis1=-2, axis2=-1)


def _entries(square: np.ndarray, indices: Callable, k: int) -> np.ndarray:
    return square[(..., *indices(square.shape[-1], k))]


def _to_come(square: np.ndarray) -> np.ndarray:
    """Return rows 1 … T of a matrix with NaN where the home stage of the task has begun."""
    return np.where(np.triu(np.ones(square.shape[-2:], bool), 1), square, np.nan)


def _matrix(R: Table) -> np.ndarray:
    R = np.asarray(R, dtype=float)
    if R.ndim < 2 or R.shape[-2] != R.shape[-1] + 1 or R.shape[-1] == 0:
        raise ValueError(f"R: got shape {R.shape}; must be (…, T + 1, T), row 0 being the model "
                         "before training")
    return R


def _curve(values: Numbers, least: int = 1) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim == 0 or values.shape[-1] < least:
        raise ValueError(f"values: got shape {values.shape}; must have one axis or more, and in "
                         "the last at least one value")
    return values


def _variant(variants: Variants, variant: str) -> Callable[[np.ndarray], np.ndarray]:
    if variant not in variants:
        raise ValueError(f"variant={variant!r}: must be one of {', '.join(variants)}")
    return variants[variant]


# ---- the registry


@dataclass(frozen=True)
class Metric:
    """A named definition, so that a report can say which one it used."""

    name: str  # with its variant, as "forgetting/clipped"
    symbol: str  # short label for tables and axes
    function: Callable[..., Value]
    # what `function` is given
    takes: Literal["matrix", "stage_curve", "checkpoint_curve", "timed_curve", "class_matrix",
                   "class_vector", "domain_vector"]
    direction: Literal["higher", "lower"]  # which is better
    source: str
    definition: str  # one line, with the divisor


_GEM = "Lopez-Paz and Ranzato 2017, arXiv 1706.08840"
_DIAZ = "Díaz-Rodríguez et al. 2018, arXiv 1810.13166"
_ZSCL = "ZSCL, Zheng et al. 2023, arXiv 2303.06628"
_SIT = "SIT, Wang et al. 2024, arXiv 2405.15155"
_CHAUDHRY = "RWalk, Chaudhry et al. 2018, arXiv 1801.10112"

_LISTED = (
    ("a_avg", "A_avg", a_avg, "stage_curve", "higher",
     "iCaRL, Rebuffi et al. 2017, arXiv 1611.07725",
     "mean over the T stage ends of the accuracy on all classes seen so far"),
    ("a_last", "A_last", a_last, "stage_curve", "higher", _SIT,
     "accuracy on all seen classes after the last stage; no divisor"),
    ("a_auc", "A_auc", a_auc, "checkpoint_curve", "higher",
     f"CLIB, Koh et al. 2022, arXiv 2110.10031; code of Si-Blurry and {_SIT}",
     "mean over the K periodic checkpoints, without stage ends, of the accuracy on all classes "
     "seen so far"),
    ("a_time", "A_time", a_time, "timed_curve", "higher", f"here; A_auc is of {_SIT}",
     "Σ_k (x_k − x_{k−1}) a_k over periodic checkpoints and stage ends, divided by the images x_K"),
    ("forgetting/chaudhry2018", "F", forgetting, "matrix", "lower", _CHAUDHRY,
     "Σ_{j<T} (max_{1≤s<T} R_sj − R_Tj), divided by T − 1"),
    ("forgetting/clipped", "F clipped", forgetting, "matrix", "lower", "code of Mammoth and PILOT",
     "Σ_{j<T} (max_{1≤s≤T} R_sj − R_Tj), divided by T − 1"),
    ("forgetting/first_minus_last", "F first−last", forgetting, "matrix", "lower",
     "code of Avalanche", "Σ_{j<T} (R_jj − R_Tj), divided by T − 1"),
    ("forgetting/zero_shot", "F zero-shot", forgetting, "matrix", "lower",
     f"here; without row 0 it is of {_CHAUDHRY}",
     "Σ_{j<T} (max_{0≤s<T} R_sj − R_Tj), divided by T − 1"),
    ("backward_transfer/lopez_paz2017", "BWT", backward_transfer, "matrix", "higher", _GEM,
     "Σ_{j<T} (R_Tj − R_jj), divided by T − 1"),
    ("backward_transfer/diaz_rodriguez2018", "BWT all rows", backward_transfer, "matrix", "higher",
     _DIAZ, "Σ_{s>j} (R_sj − R_jj), divided by T(T − 1)/2"),
    ("backward_transfer/vr_lwf", "BWT p+1", backward_transfer, "matrix", "higher",
     "code of VR-LwF, arXiv 2207.09248", "Σ_{j<T} (R_Tj − R_jj), divided by T"),
    ("forward_transfer/lopez_paz2017", "FWT", forward_transfer, "matrix", "higher", _GEM,
     "Σ_{j>1} (R_{j−1,j} − R_0j), divided by T − 1"),
    ("forward_transfer/continuum", "FWT no baseline", forward_transfer, "matrix", "higher",
     "code of continuum", "Σ_{j>1} R_{j−1,j}, divided by T − 1"),
    ("forward_transfer/diaz_rodriguez2018", "FWT all rows", forward_transfer, "matrix", "higher",
     _DIAZ, "Σ_{1≤s<j} R_sj, divided by T(T − 1)/2"),
    ("forward_change", "Δ to come", forward_change, "matrix", "higher",
     f"here; Transfer is of {_ZSCL}",
     "Σ_{j>1} (mean of R_sj − R_0j over 1≤s<j), divided by T − 1"),
    ("transfer", "Transfer", transfer, "matrix", "higher", _ZSCL,
     "Σ_{j>1} (mean of R_sj over 1≤s<j), divided by T − 1"),
    ("average", "Avg", average, "matrix", "higher", _ZSCL,
     "Σ_j (mean of R_sj over s = 1 … T), divided by T"),
    ("last", "Last", last, "matrix", "higher", _ZSCL, "Σ_j R_Tj, divided by T"),
    ("f_last", "F_last", f_last, "class_matrix", "lower", f"code of {_SIT}",
     "Σ_c (max_{s<T} a_sc − a_Tc), divided by the number of classes once above 0"),
    ("lowest_fifth", "A_fifth", lowest_fifth, "class_vector", "higher",
     "Curi et al. 2020, arXiv 1910.12511",
     f"mean over the ⌈G/5⌉ classes of lowest accuracy among the G with {ENOUGH} tests or more"),
    ("average_domain", "A_domains", average_domain, "domain_vector", "higher",
     "here; the worst is of Sagawa et al. 2020, arXiv 1911.08731",
     "Σ_d a_d, divided by the number of domains measured"),
    ("worst_domain", "A_domain", worst_domain, "domain_vector", "higher",
     "Sagawa et al. 2020, arXiv 1911.08731",
     "smallest accuracy of a domain, over all its classes; no divisor"),
)


def _metric(name: str, symbol: str, function: Callable[..., Value], *rest: str) -> Metric:
    variant = name.partition("/")[2]
    return Metric(name, symbol, partial(function, variant=variant) if variant else function, *rest)


METRICS: dict[str, Metric] = {row[0]: _metric(*row) for row in _LISTED}
