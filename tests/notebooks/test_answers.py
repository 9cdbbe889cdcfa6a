"""The exercises of all notebooks: the package's own function is the answer, and passes; an answer
made from the hint alone passes; the usual mistake does not, and is told so; the stub is no
error."""
import ast
import functools
import re
from collections.abc import Callable

import nbformat
import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from clstudy.losses.functional import match
from clstudy.notebooks import cells
from clstudy.notebooks import exercises as checks
from clstudy.utils.paths import NOTEBOOKS

EXERCISES = {(path.stem, cell.id): cell.source for path in sorted(NOTEBOOKS.glob("*.ipynb"))
             for cell in nbformat.read(path, as_version=4).cells
             if cell.cell_type == "code" and "exercise" in cells.tags(cell)}


def step_loss(clip, batch, present: bool = True):
    batch = batch.present() if present else batch
    encoded = clip.encode(batch)
    return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target)}


def cross_entropy(image, text, scale, target, weight=None):
    each = F.cross_entropy(scale * image @ text.T, target, reduction="none")
    return (each if weight is None else weight * each).mean()


def both_directions(image, text, scale, ways: int = 2):
    logits, own = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, own) +
            (F.cross_entropy(logits.T, own) if ways == 2 else 0)) / ways


def pull(image, text, scale, target, one_hot: bool = True):
    p = (scale * image @ text.T).softmax(1)
    return scale / len(image) * (p - one_hot * F.one_hot(target, len(text))).T @ image


def divergence(student, teacher, temperature=1.0, reduction="batchmean"):
    log_q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * F.kl_div(log_q, p, reduction=reduction)


def pairs(R):
    T = R.shape[1]
    return sum(R[s, j] - R[j + 1, j] for j in range(T) for s in range(j + 2, T + 1)) / (T *
                                                                                        (T - 1) / 2)


def wanderers(stages, labels):
    away = [~np.isin(labels[stage.index], stage.classes) for stage in stages]
    return np.concatenate(away).mean()


def line(start, end, share):
    return {name: torch.lerp(start[name], end[name], share) for name in start}


def fifth(class_accuracy, share: float = 0.2):
    a = np.sort(class_accuracy[~np.isnan(class_accuracy)]) if hasattr(class_accuracy, "dtype") else \
        np.sort([a for a in class_accuracy if not np.isnan(a)])
    return a[:int(np.ceil(len(a) * share))].mean()


def before_home(R, first: int = 1):
    return np.mean([R[t, t] - R[0, t] for t in range(first, R.shape[1])])


def on_the_way(R, least: int = 1):
    return np.mean([R[least:t + 1, t].mean() for t in range(1, R.shape[1])])


def worst_half(loss, share: float = 0.5):
    top, left, p = 1 / (share * len(loss)), 1.0, torch.zeros_like(loss)
    for place in loss.argsort(descending=True):
        p[place] = min(top, left)
        left -= float(p[place])
    return p


def paired(a, b, freedom: int = 1):
    d = np.subtract(a, b)
    return d.mean(), stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=freedom) / np.sqrt(len(d))


ANSWERS: dict[tuple[str, str], tuple[Callable, Callable, str]] = {
    # an answer from the hint, a mistake, and a word that has to be said about it
    ("00_start_here", "exercise-match"): (cross_entropy,
                                          lambda i, t, s, y: -cross_entropy(i, t, s, y),
                                          "The sign is the other way round."),
    ("00_start_here", "exercise-hits"): (
        lambda s, y, offered: s.masked_fill(~offered, -torch.inf).argmax(1) == y,
        lambda s, y, offered: s.argmax(1) == y, "values differ"),
    ("00_start_here", "exercise-contrastive"): (both_directions,
                                                lambda i, t, s: 2 * both_directions(i, t, s),
                                                "Yours is always 2 times the package's."),
    ("01_forgetting", "exercise-forgetting"): (lambda R:
                                               (np.diagonal(R[1:]) - R[-1])[:-1].mean(), lambda R:
                                               (np.diagonal(R) - R[-1])[:-1].mean(), "For R"),
    ("01_forgetting", "exercise-transfer"): (on_the_way, lambda R: on_the_way(R, least=0), "For R"),
    ("01_forgetting", "exercise-backward"): (pairs, lambda R: -pairs(R),
                                             "The sign is the other way round."),
    ("02_the_loop", "exercise-sit"): (step_loss, lambda clip, batch: step_loss(clip, batch, False),
                                      "task: yours is"),
    ("02_the_loop", "exercise-weight"): (cross_entropy,
                                         lambda i, t, s, y, weight=None: cross_entropy(i, t, s, y),
                                         "weight"),
    ("03_candidates", "exercise"): (cross_entropy, lambda i, t, s, y: F.cross_entropy(i @ t.T, y),
                                    "yours is"),
    ("04_gradients", "exercise"): (pull, lambda i, t, s, y: pull(i, t, s, y, one_hot=False),
                                   "values differ"),
    ("05_which_encoder", "exercise"): (np.mean, lambda curve: curve[-1], "yours is"),
    ("06_streams", "exercise"): (wanderers, lambda stages, labels: 1 - wanderers(stages, labels),
                                 "yours is"),
    ("07_vocabulary", "exercise"): (divergence, lambda s, t: divergence(s, t, reduction="sum"),
                                    "yours is"),
    ("08_weights", "exercise"): (line, lambda start, end, share: line(end, start, share),
                                 ": yours is"),
    ("09_small_memory", "exercise"): (fifth, lambda a: fifth(a, share=1), "yours is"),
    ("10_domains", "exercise"): (before_home, lambda R: before_home(R, first=0), "yours is"),
    ("11_the_map", "exercise"): (worst_half, lambda loss: worst_half(loss, share=1), "yours is"),
    ("12_leaderboard", "exercise"): (paired, lambda a, b: paired(a, b, freedom=0), "at [1]"),
}
every = pytest.mark.parametrize("place", EXERCISES, ids=lambda place: " ".join(place))


@functools.cache
def parts(place: tuple[str, str]) -> tuple[Callable, Callable]:
    """The stub of an exercise, and what it is checked against, as the notebook has them."""
    space: dict = {}
    for cell in nbformat.read(NOTEBOOKS / f"{place[0]}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            found = [
                node for node in ast.parse(cell.source).body
                if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            exec(compile(ast.Module(found, []), "imports", "exec"), space)
    *body, last = ast.parse(EXERCISES[place]).body
    exec(compile(ast.Module(body, []), "stub", "exec"), space)
    (like,) = [word.value for word in last.value.keywords if word.arg == "like"]
    return space[last.value.args[0].id], eval(compile(ast.Expression(like), "like", "eval"), space)


@every
def test_the_stub_is_told_that_it_is_one_and_the_packages_own_function_passes(place,
                                                                              capsys) -> None:
    stub, like = parts(place)
    assert not checks.check(stub, like=like) and "not written yet." in capsys.readouterr().out
    assert checks.check(like, like=like) and "right, in 5 trials" in capsys.readouterr().out


@every
def test_an_answer_from_the_hint_passes_and_the_usual_mistake_is_told(place, capsys) -> None:
    _, like = parts(place)
    right, wrong, said = ANSWERS[place]
    assert checks.check(right, like=like), capsys.readouterr().out
    capsys.readouterr()
    assert not checks.check(wrong, like=like)
    line = capsys.readouterr().out
    assert "not yet. For " in line and said in line, line


def test_each_notebook_has_two_exercises_each_with_a_hint_a_difficulty_and_minutes() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = "\n".join(
            cell.source
            for cell in cells.tagged(nbformat.read(path, as_version=4).cells, "exercise")
            if cell.cell_type == "markdown")
        asked = re.split(r"^(?=\*\*\d+\. )", text, flags=re.M)[1:]
        assert len(asked) >= 2, path.stem
        assert [int(one[2]) for one in asked] == list(range(1, len(asked) + 1))
        for one in asked:
            assert re.match(r"\*\*\d+\. .+?\*\* \((easy|medium|hard), (\d+ minutes|an hour)",
                            one), one
            assert one.count("<details><summary>Hint</summary>") == one.count(
                "</details>") == 1, one
        assert any(stem == path.stem for stem, _ in EXERCISES)
