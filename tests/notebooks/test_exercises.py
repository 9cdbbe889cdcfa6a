"""The check of an exercise: right answers pass, wrong ones are told what differs, and nothing is
raised for them."""
from functools import partial

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clstudy.analysis import intervals
from clstudy.evaluation import accuracy, metrics, retrieval
from clstudy.losses import functional
from clstudy.methods import METHODS
from clstudy.notebooks.exercises import check, make


def said(capsys: pytest.CaptureFixture) -> str:
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1  # one line, whatever happens
    return lines[0]


FUNCTIONS = [
    functional.match,
    functional.contrastive,
    functional.distillation,
    accuracy.hits,
    retrieval.ranks,
    metrics.lowest_fifth,
    metrics.f_last,
    intervals.paired_interval,
    *(metric.function for metric in metrics.METRICS.values()),
]


def named(function) -> str:
    return getattr(function, "__name__", None) or f"{function.func.__name__} {function.keywords}"


@pytest.mark.parametrize("function", FUNCTIONS, ids=named)
def test_the_package_agrees_with_itself_on_input_made_for_it(function, capsys) -> None:
    assert check(function, like=function, trials=20)
    assert "right, in 20 trials" in said(capsys)


def test_the_loss_of_a_method_is_compared_term_by_term(capsys) -> None:
    sit, asymmetric = METHODS["sit"]().loss, METHODS["finetune"]().loss
    assert check(sit, like=sit, trials=2) and said(capsys)
    assert not check(asymmetric, like=sit)
    assert "task: yours is" in said(capsys)


def test_a_right_answer_may_name_its_parameters_otherwise(capsys) -> None:
    def mine(f, t, s, y):
        return -(s * f @ t.T).log_softmax(1)[torch.arange(len(y)), y].mean()

    assert check(mine, like=functional.match)
    said(capsys)


def test_an_option_is_tried_when_the_answer_has_it(capsys) -> None:
    def forgets_the_weight(image, text, scale, target, weight=None):
        return functional.match(image, text, scale, target)

    assert not check(forgets_the_weight, like=functional.match)
    assert "weight" in said(capsys)
    assert check(lambda i, t, s, y, weight=None: functional.match(i, t, s, y, weight),
                 like=functional.match)


@pytest.mark.parametrize(("mine", "word"), [
    (lambda R: None, "is a `return` missing"),
    (lambda R: "0.5", "yours is 0.5, the package's is"),
    (lambda R: "half", "yours gives a str, the package a number"),
    (lambda R: R[-1], "has shape"),
    (lambda R: -metrics.last(R), "The sign is the other way round."),
    (lambda R: 2 * metrics.last(R), "Yours is always 2 times the package's."),
    (lambda R: metrics.last(R[:-1]), "yours raised ValueError: R: got shape"),
    (lambda: 0.5, "yours raised TypeError"),
])
def test_what_differs_is_said_in_plain_words(mine, word, capsys) -> None:
    assert not check(mine, like=metrics.last)
    assert word in said(capsys)


def test_the_first_place_and_the_input_are_named(capsys) -> None:
    def like(values: Float[Tensor, " batch"]) -> Tensor:
        return values

    def mine(values):
        values[2] += 1  # in place: must not reach the input of the other
        return values

    assert not check(mine, like=like)
    line = said(capsys)
    assert "at [2]" in line and "(1 of " in line and "For values = [" in line


def test_a_stub_is_not_an_error(capsys) -> None:
    def stub(R):
        raise NotImplementedError

    assert not check(stub, like=metrics.last)
    assert said(capsys) == "last: not written yet."


def test_the_line_of_an_exception_is_named(capsys) -> None:
    def mine(R):
        top = R[0]
        return top["x"]

    assert not check(mine, like=metrics.last)
    assert "(line 3 of your function)" in said(capsys)


def test_axes_of_one_name_have_one_size_and_features_have_norm_one() -> None:
    given = make(functional.match, 0, set())
    assert list(given) == ["image", "text", "scale", "target"]
    assert given["image"].shape[1] == given["text"].shape[1] and len(given["target"]) == len(
        given["image"])
    assert given["target"].max() < len(given["text"])
    torch.testing.assert_close(given["image"].norm(dim=1), torch.ones(len(given["image"])))


def test_same_seed_same_input_other_seed_other_input() -> None:
    a, b, c = (make(functional.match, seed, set())["scale"]
               for seed in (1, 1, 2))
    assert a == b != c


def test_options_can_be_fixed(capsys) -> None:
    assert check(lambda R: -metrics.backward_transfer(R), like=partial(
        metrics.forgetting, variant="first_minus_last"))
    assert not check(metrics.forgetting, like=partial(metrics.forgetting,
                                                      variant="first_minus_last"))


def test_annotations_make_input_for_functions_that_are_not_known() -> None:
    def like(x: Float[np.ndarray, "rows 3"], k: Int[Tensor, " rows"] | None) -> float:
        return 0.0

    given = make(like, 0, set())
    assert isinstance(given["x"], np.ndarray) and given["x"].shape == (len(given["k"]), 3)


def test_a_parameter_that_nothing_explains_is_a_fault_of_the_exercise() -> None:
    with pytest.raises(TypeError, match="no random input for parameter 'depth'"):
        check(lambda depth: 0, like=lambda depth: 0)


def test_a_fault_of_the_package_is_not_blamed_on_the_answer() -> None:
    def like(R):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check(metrics.last, like=like)


def test_jupyter_prints_the_sentence_and_not_the_truth_value_under_it(capsys) -> None:
    from IPython.core.formatters import DisplayFormatter

    verdict = check(metrics.last, like=metrics.last)
    assert verdict and DisplayFormatter().format(verdict) == ({}, {})
