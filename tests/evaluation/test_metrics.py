"""Metrics: hand-computed values, explicit loops, ZSCL's published rows, identities, NaN, the
registry."""

import doctest
import inspect

import numpy as np
import pytest

from clstudy.evaluation import metrics
from clstudy.evaluation.metrics import (
    BACKWARD_TRANSFER,
    FORGETTING,
    FORWARD_TRANSFER,
    METRICS,
    a_auc,
    a_avg,
    a_last,
    a_time,
    average,
    backward_transfer,
    f_last,
    forgetting,
    forward_change,
    forward_transfer,
    last,
    lowest_fifth,
    transfer,
    worst_domain,
)

NAN = float("nan")
R = np.array([[.10, .20, .30, .40],  # before training
              [.90, .30, .20, .50],
              [.70, .80, .25, .30],
              [.80, .60, .95, .20],
              [.60, .85, .75, .70]])
SEEDS = range(5)


def random_matrix(seed: int, tasks: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).random((tasks + 1, tasks))


def test_doctests():
    result = doctest.testmod(metrics)
    assert result.attempted > 10 and result.failed == 0


# ---- values by hand


@pytest.mark.parametrize(("value", "expected"), [
    (a_avg([.9, .8, .4]), .7),
    (a_last([.9, .8, .4]), .4),
    (a_auc([.5, .9, .4, .8, .4]), .6),
    (a_time([.5, .9, .4], [10, 30, 40]), (10 * .5 + 20 * .9 + 10 * .4) / 40),
    (a_time([.5, NAN, .4], [10, 30, 40]), .45),  # what was not measured counts no images
    # best of rows 1 to 3: .90, .80, .95; last: .60, .85, .75
    (forgetting(R), (.30 - .05 + .20) / 3),
    (forgetting(R, "clipped"), (.30 + 0 + .20) / 3),
    # home: .90, .80, .95
    (forgetting(R, "first_minus_last"), (.30 - .05 + .20) / 3),
    # best of rows 0 to 3: .90, .80, .95
    (forgetting(R, "zero_shot"), (.30 - .05 + .20) / 3),
    (backward_transfer(R), -(.30 - .05 + .20) / 3),
    (backward_transfer(R, "vr_lwf"), -(.30 - .05 + .20) / 4),
    (backward_transfer(R, "diaz_rodriguez2018"), (-.20 - .10 - .30 - .20 + .05 - .20) / 6),
    # rows 1, 2, 3 of tasks 2, 3, 4 against row 0
    (forward_transfer(R), (.10 - .05 - .20) / 3),
    (forward_transfer(R, "continuum"), (.30 + .25 + .20) / 3),
    (forward_transfer(R, "diaz_rodriguez2018"), (.30 + .20 + .25 + .50 + .30 + .20) / 6),
    (forward_change(R), (.10 + (-.10 - .05) / 2 + (.10 - .10 - .20) / 3) / 3),
    (transfer(R), (.30 + (.20 + .25) / 2 + (.50 + .30 + .20) / 3) / 3),
    (average(R), (.90 + .30 + .20 + .50 + .70 + .80 + .25 + .30 + .80 + .60 + .95 + .20
                  + .60 + .85 + .75 + .70) / 16),
    (last(R), (.60 + .85 + .75 + .70) / 4),
    (f_last([[.9, NAN], [.5, .8], [.7, .9]]), (.2 - .1) / 2),
    (f_last([[.9, 0.], [.7, .9]]), .2),
    (lowest_fifth([.9, .4, .2, .7, .8]), .2),  # one of five
    (lowest_fifth([.9, .4, .2, .7, .8, .3]), .25),  # two of six
    (lowest_fifth([.9, .4, .2, .7, .8, .3], [20, 20, 19, 20, 99, 20]), .3),  # one is left out
    (worst_domain([.5, NAN, .3]), .3),
])
def test_values_by_hand(value, expected):
    assert isinstance(value, float) and value == pytest.approx(expected)


# ---- by explicit loops, as papers count: r(s, j) with stages s = 0 … T and tasks j = 1 … T


def by_loops(matrix: np.ndarray) -> dict[str, float]:
    T = matrix.shape[1]

    def r(s: int, j: int) -> float:
        return matrix[s, j - 1]

    later = [(s, j) for j in range(1, T + 1) for s in range(j + 1, T + 1)]
    before = [(s, j) for j in range(1, T + 1) for s in range(1, j)]
    drops = [max(r(s, j) for s in range(1, T)) - r(T, j) for j in range(1, T)]
    return {
        "forgetting/chaudhry2018": sum(drops) / (T - 1),
        "forgetting/clipped": sum(max(drop, 0) for drop in drops) / (T - 1),
        "forgetting/first_minus_last": sum(r(j, j) - r(T, j) for j in range(1, T)) / (T - 1),
        "backward_transfer/lopez_paz2017": sum(r(T, j) - r(j, j) for j in range(1, T)) / (T - 1),
        "backward_transfer/diaz_rodriguez2018": sum(r(s, j) - r(j, j)
                                                    for s, j in later) / (T * (T - 1) / 2),
        "backward_transfer/vr_lwf": sum(r(T, j) - r(j, j) for j in range(1, T)) / T,
        "forward_transfer/lopez_paz2017": sum(r(j - 1, j) - r(0, j) for j in range(2, T + 1)) /
        (T - 1),
        "forward_transfer/continuum": sum(r(j - 1, j) for j in range(2, T + 1)) / (T - 1),
        "forward_transfer/diaz_rodriguez2018": sum(r(s, j) for s, j in before) / (T * (T - 1) / 2),
        "forgetting/zero_shot": sum(max(r(s, j) for s in range(T)) - r(T, j)
                                    for j in range(1, T)) / (T - 1),
        "forward_change": sum(sum(r(s, j) - r(0, j) for s in range(1, j)) / (j - 1)
                              for j in range(2, T + 1)) / (T - 1),
        "transfer": sum(sum(r(s, j) for s in range(1, j)) / (j - 1) for j in range(2, T + 1)) /
        (T - 1),
        "average": sum(r(s, j) for s in range(1, T + 1) for j in range(1, T + 1)) / T**2,
        "last": sum(r(T, j) for j in range(1, T + 1)) / T,
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_every_metric_of_the_matrix_by_explicit_loops(seed):
    matrix = random_matrix(seed)
    for name, expected in by_loops(matrix).items():
        assert METRICS[name].function(matrix) == pytest.approx(expected), name
    assert set(
        by_loops(matrix)) == {name for name, metric in METRICS.items() if metric.takes == "matrix"}


def test_one_matrix_many_definitions():
    """What libraries call "forgetting" or "BWT" differs on one matrix: hence the names."""
    matrix = np.array([[.1, .1, .1], [.8, .6, .2], [.6, .7, .3], [.7, .8, .9]])
    assert {name: round(forgetting(matrix, name), 4) for name in FORGETTING} == {
        "chaudhry2018": 0.0, "clipped": .05, "first_minus_last": 0.0, "zero_shot": 0.0}
    assert {name: round(backward_transfer(matrix, name), 4) for name in BACKWARD_TRANSFER} == {
        "lopez_paz2017": 0.0, "diaz_rodriguez2018": -.0667, "vr_lwf": 0.0}
    matrix[
        1,
        1] = .9  # better before its home stage than after: only the maximum over all rows sees it
    assert round(forgetting(matrix), 4) == .1 and round(forgetting(matrix, "first_minus_last"),
                                                        4) == 0.0


# ---- ZSCL's published rows, per cent: order I of MTIL, arXiv 2303.06628, from its repository.
# Values per data set, Aircraft … SUN397, and the published mean; these column means must give it back.

ZSCL_TRANSFER = [
    ([67.1, 46.0, 32.1, 35.6, 35.0, 57.7, 44.1, 60.8, 20.5, 46.6], 44.6),  # sequential fine-tuning
    ([74.5, 56.9, 39.1, 51.1, 52.6, 72.8, 60.6, 75.1, 30.3, 55.9], 56.9),  # LwF
    ([77.1, 61.0, 40.5, 45.3, 54.4, 74.6, 47.9, 76.7, 36.3, 58.6], 57.2),  # LwF-VR
    ([86.0, 67.4, 45.4, 50.4, 69.1, 87.6, 61.8, 86.8, 60.1, 66.8], 68.1),  # ZSCL
    ([88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2], 69.4),  # zero-shot CLIP
]
ZSCL_AVERAGE = [
    ([29.6, 87.7, 74.4, 59.5, 72.4, 63.6, 77.0, 66.7, 81.2, 43.7, 60.7], 65.1),  # LwF-VR
    ([45.1, 92.0, 80.1, 64.3, 79.5, 81.6, 89.6, 75.2, 88.9, 64.7, 68.0], 75.4),  # ZSCL
]
ZSCL_LAST = [
    ([31.0, 89.3, 65.8, 67.3, 88.9, 71.1, 85.6, 99.6, 92.9, 77.3,
      81.1], 77.3),  # sequential fine-tuning
    ([20.5, 89.8, 72.3, 67.6, 85.5, 73.8, 85.7, 99.6, 93.1, 73.3, 80.9], 76.6),  # LwF-VR
    ([40.6, 92.2, 81.3, 70.5, 94.8, 90.5, 91.9, 98.7, 93.9, 85.3, 80.2], 83.6),  # ZSCL
    ([24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2], 65.3),  # zero-shot CLIP
]
ROUNDING = .1  # published to one decimal, from entries rounded to one decimal


def spread_around(mean: float, n: int, rng: np.random.Generator) -> np.ndarray:
    values = rng.normal(0, 5, n)
    return mean + values - values.mean()


@pytest.mark.parametrize(("row", "published"), ZSCL_TRANSFER)
def test_transfer_gives_the_published_mean(row, published):
    rng = np.random.default_rng(0)
    matrix = rng.uniform(0, 100, (12, 11))  # row 0, the diagonal and below must not matter
    for t, value in enumerate(row, start=1):
        matrix[1:t + 1, t] = spread_around(value, t, rng)
    assert transfer(matrix) == pytest.approx(published, abs=ROUNDING)


@pytest.mark.parametrize(("row", "published"), ZSCL_AVERAGE)
def test_average_gives_the_published_mean(row, published):
    rng = np.random.default_rng(0)
    columns = [spread_around(value, 11, rng) for value in row]
    matrix = np.vstack([rng.random(11), np.stack(columns, axis=1)])
    assert average(matrix) == pytest.approx(published, abs=ROUNDING)


@pytest.mark.parametrize(("row", "published"), ZSCL_LAST)
def test_last_gives_the_published_mean(row, published):
    matrix = np.random.default_rng(0).uniform(0, 100, (12, 11))
    matrix[-1] = row
    assert last(matrix) == pytest.approx(published, abs=ROUNDING)


def test_frozen_model_has_equal_transfer_average_and_last_per_task():
    zero_shot = np.array([24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2])
    matrix = np.tile(zero_shot, (12, 1))
    assert transfer(matrix) == pytest.approx(zero_shot[1:].mean())
    assert average(matrix) == last(matrix) == pytest.approx(zero_shot.mean())


# ---- identities


@pytest.mark.parametrize("seed", SEEDS)
def test_identities(seed):
    matrix = random_matrix(seed)
    assert forgetting(matrix, "clipped") >= max(0, forgetting(matrix))
    assert forgetting(matrix, "clipped") >= forgetting(matrix, "first_minus_last")
    assert forgetting(matrix, "zero_shot") >= forgetting(matrix)
    frozen = np.broadcast_to(matrix[0], matrix.shape)
    assert forward_change(matrix) == pytest.approx(transfer(matrix) - transfer(frozen))
    baseline = forward_transfer(matrix, "continuum") - matrix[0, 1:].mean()
    assert forward_transfer(matrix) == pytest.approx(baseline)
    assert forgetting(matrix, "first_minus_last") == pytest.approx(-backward_transfer(matrix))
    assert backward_transfer(matrix, "vr_lwf") == pytest.approx(backward_transfer(matrix) * 5 / 6)
    for function, variants in [(forgetting, FORGETTING), (backward_transfer, BACKWARD_TRANSFER),
                               (forward_transfer, FORWARD_TRANSFER)]:
        for variant in variants:
            assert function(100 * matrix, variant) == pytest.approx(100 * function(matrix, variant))


@pytest.mark.parametrize("seed", SEEDS)
def test_row_0_is_read_by_what_compares_with_the_pretrained_model(seed):
    matrix, other = random_matrix(seed), random_matrix(seed)
    other[0] = 7.0
    readers = ("forward_transfer/lopez_paz2017", "forgetting/zero_shot", "forward_change")
    for name, metric in METRICS.items():
        if metric.takes == "matrix":
            same = metric.function(matrix) == metric.function(other)
            assert same == (name not in readers), name


def test_constant_matrix_neither_forgets_nor_transfers():
    matrix = np.full((6, 5), .5)
    for name, metric in METRICS.items():
        if name.startswith(("forgetting", "backward_transfer", "forward_change",
                            "forward_transfer/lopez_paz2017")):
            assert metric.function(matrix) == 0
    assert f_last(matrix) == 0


def test_two_tasks_have_one_later_row():
    matrix = random_matrix(0, tasks=2)
    assert backward_transfer(matrix) == backward_transfer(matrix, "diaz_rodriguez2018")
    for variant in ("continuum", "diaz_rodriguez2018"):
        assert transfer(matrix) == forward_transfer(matrix, variant) == matrix[1, 1]


# ---- what was not measured


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_task_without_test_images_is_left_out(seed):
    """NaN in column j: loops that skip j and divide by what is left give the same."""
    matrix = random_matrix(seed)
    matrix[:, 2] = NAN
    kept = [t for t in range(6) if t != 2]
    drops = [matrix[1:6, t].max() - matrix[6, t] for t in kept[:-1]]
    assert forgetting(matrix) == pytest.approx(np.mean(drops))
    changes = [matrix[6, t] - matrix[t + 1, t] for t in kept[:-1]]
    assert backward_transfer(matrix) == pytest.approx(np.mean(changes))
    assert backward_transfer(matrix, "vr_lwf") == pytest.approx(backward_transfer(matrix) * 4 / 5)
    assert transfer(matrix) == pytest.approx(np.mean([matrix[1:t + 1, t].mean() for t in kept[1:]]))
    assert average(matrix) == pytest.approx(matrix[1:, kept].mean())
    assert last(matrix) == pytest.approx(matrix[6, kept].mean())


def test_metrics_of_the_past_need_no_values_before_home():
    """Class-incremental evaluation measures R_sj for s ≥ j only."""
    matrix = random_matrix(0)
    matrix[np.triu_indices_from(matrix)] = NAN  # rows 0 … t of column t
    assert np.isfinite(last(matrix))
    assert all(np.isfinite(forgetting(matrix, v)) for v in FORGETTING)
    assert forgetting(matrix, "zero_shot") == forgetting(matrix)  # nothing stands in row 0
    assert all(np.isfinite(backward_transfer(matrix, v)) for v in BACKWARD_TRANSFER)
    assert np.isnan(transfer(matrix)) and np.isnan(forward_transfer(matrix))


@pytest.mark.filterwarnings("error")
def test_nothing_to_average_is_nan_without_a_warning():
    single = np.array([[.1], [.9]])
    assert all(np.isnan(forgetting(single, v)) for v in FORGETTING)
    assert np.isnan(backward_transfer(single)) and backward_transfer(single, "vr_lwf") == 0
    assert np.isnan(transfer(single)) and average(single) == last(single) == .9
    assert np.isnan(f_last([[.5, .6]])) and np.isnan(f_last([[0., 0.], [.5, .6]]))
    assert np.isnan(a_avg([NAN])) and np.isnan(worst_domain([NAN]))
    assert np.isnan(a_auc([]))  # no periodic checkpoint
    assert np.isnan(lowest_fifth([.1, .2, .3, .4])) and np.isnan(lowest_fifth([.1] * 9, [19] * 9))


def test_curves_leave_out_what_was_not_measured():
    assert a_avg([NAN, .4, .6]) == a_auc([NAN, .4, .6]) == .5
    assert worst_domain([NAN, .4, .6]) == .4


# ---- replicates


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", METRICS)
def test_leading_axes_are_replicates(name):
    """A stack gives, for each of its members, what the member gives alone, NaN included."""
    metric, rng = METRICS[name], np.random.default_rng(1)
    of_matrix = metric.takes in ("matrix", "class_matrix")
    stack = rng.random((2, 3, 7, 6) if of_matrix else (2, 3, 11))
    stack[rng.random(stack.shape) < .15] = NAN
    stack[0, 1] = NAN
    more = {"timed_curve": [np.arange(1, 12)], "class_vector": [[30] * 9 + [3, 30]]}
    given = more.get(metric.takes, [])
    found = metric.function(stack, *given)
    alone = [[metric.function(one, *given) for one in row] for row in stack]
    assert found.shape == (2, 3) and np.isnan(found[0, 1]) and np.isfinite(found[1]).all()
    assert np.array_equal(found, alone, equal_nan=True) or found == pytest.approx(
        np.array(alone), nan_ok=True, rel=1e-14)


# ---- errors and the registry


@pytest.mark.parametrize(("call", "words"), [
    (lambda: forgetting(R, "mammoth"), ["variant='mammoth'", *FORGETTING]),
    (lambda: backward_transfer(R, ""), ["variant=''", *BACKWARD_TRANSFER]),
    (lambda: forward_transfer(R, "zscl"), ["variant='zscl'", *FORWARD_TRANSFER]),
    (lambda: transfer(R[1:]), ["R:", "(4, 4)", "(…, T + 1, T)"]),
    (lambda: last(R[0]), ["R:", "(4,)"]),
    (lambda: a_avg([]), ["values", "(0,)"]),
    (lambda: f_last([.1, .2]), ["class_accuracy", "(2,)"]),
    (lambda: a_time([.1, .2], [40, 40]), ["images_seen", "[40.0, 40.0]", "rising"]),
    (lambda: a_time([.1, .2], [40]), ["images_seen", "2 points"]),
    (lambda: lowest_fifth([.1, .2], [40]), ["tests", "(1,)", "2 groups"]),
])
def test_errors_name_field_value_and_choices(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_registry_reaches_every_public_function():
    public = {name for name, value in inspect.getmembers(metrics, inspect.isfunction)
              if value.__module__ == metrics.__name__ and not name.startswith("_")}
    variants = {"forgetting": FORGETTING, "backward_transfer": BACKWARD_TRANSFER,
                "forward_transfer": FORWARD_TRANSFER}
    expected = {f"{name}/{v}" for name in public
                for v in variants.get(name, ())} | (public - set(variants))
    assert set(METRICS) == expected


@pytest.mark.parametrize("name", METRICS)
def test_registry_entries_are_complete(name):
    metric = METRICS[name]
    given = {"matrix": [R], "stage_curve": [[.9, .7]], "checkpoint_curve": [[.9, .7]],
             "timed_curve": [[.9, .7], [40, 80]], "class_matrix": [R], "class_vector": [[.9] * 5],
             "domain_vector": [[.9, .7]]}
    assert metric.name == name and metric.symbol and metric.direction in ("higher", "lower")
    assert "arXiv" in metric.source or metric.source.startswith("code of")
    own = ("a_time", "forgetting/zero_shot", "forward_change", "average_domain")
    assert metric.source.startswith("here") == (name in own)
    assert "\n" not in metric.definition and any(word in metric.definition
                                                 for word in ("divi", "mean over"))
    assert np.isfinite(metric.function(*given[metric.takes]))
    assert metric.direction == ("lower" if name.startswith(("forgetting", "f_last")) else "higher")
    assert len({m.symbol for m in METRICS.values()}) == len(METRICS)
