"""The forgetting board: an accuracy matrix that answers, with the pictures behind each cell."""
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import ipywidgets as ipw
import numpy as np
import torch

from clstudy.data.streams import Stage
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.evaluation.features import class_features, features
from clstudy.plots import accuracy
from clstudy.runs.run import Run, load_tuned
from clstudy.widgets.common import (
    CLEAR,
    INK,
    WHOLE,
    Shown,
    card,
    gallery,
    headless,
    offer,
    panels,
    redraw,
    stack,
    watch,
)

CANDIDATES = {
    "own": "own: the task is told", "seen": "seen: classes so far", "all": "all: every class"
}
MOST = 24  # pictures on a card
HOW = (
    "This run keeps no weights, so it is not known which images were right. Make it with "
    "<code>load_or_train(config, keep_model=True)</code>: then answers before training and at the end are known."
)


@dataclass
class Answers:
    """Similarities of test images with all class texts, at the stages where they are known (0:
    before training)."""

    test: Labelled
    homes: np.ndarray  # (classes,): the task of each class, counted from 1; 0 is in none
    seen: np.ndarray  # bool (stages + 1, classes): what had arrived
    images: np.ndarray  # positions in the test set
    similarity: Mapping[int, np.ndarray]  # stage → (images, classes)

    def answer(self, stage: int, candidates: str) -> np.ndarray:
        """The class that each image is taken for. Before training nothing has been seen: all
        compete then."""
        label = self.test.labels[self.images]
        if candidates == "own":
            offered = self.homes[label][:, None] == self.homes[None, :]
        else:
            offered = (self.seen[stage]
                       if candidates == "seen" and stage else self.homes > 0)[None, :]
        return np.where(offered, self.similarity[stage], -np.inf).argmax(1)

    def lost(self, before: int, after: int, task: int,
             candidates: str) -> tuple[np.ndarray, np.ndarray]:
        """Images of a task that were right and are wrong, with what they are taken for; the surest
        mistakes first."""
        label = self.test.labels[self.images]
        mine, now = self.homes[label] == task, self.answer(after, candidates)
        found = np.flatnonzero(mine & (self.answer(before, candidates) == label) & (now != label))
        values = self.similarity[after]
        found = found[np.argsort(values[found, label[found]] - values[found, now[found]],
                                 kind="stable")]
        return self.images[found], now[found]


def answers(run: Run) -> Answers:
    """From the kept weights of a run: its answers before training and at the end. Without them
    there are none."""
    from clstudy.training.setup import prepare

    clip, benchmark, stages = prepare(run.config)
    test, similarity = benchmark.test, {}
    if (run.folder / "model.safetensors").exists():
        similarity = {
            0: _similarity(clip.eval(), test),
            len(stages): _similarity(load_tuned(run), test)
        }
    return Answers(test, *_arrived(benchmark, stages), np.arange(len(test)), similarity)


@torch.inference_mode()
def _similarity(clip, test: Labelled) -> np.ndarray:
    texts = class_features(clip, test.class_names, test.template)
    return (features(clip, test.images) @ texts.T).float().cpu().numpy()


def _arrived(benchmark: BenchmarkData, stages: list[Stage]) -> tuple[np.ndarray, np.ndarray]:
    """The home of each class, and what had been seen after each stage."""
    count = len(benchmark.test.class_names)
    homes, seen = np.zeros(count, int), np.zeros((len(stages) + 1, count), bool)
    for number, stage in enumerate(stages, 1):
        homes[list(stage.classes)] = number
        seen[number:, np.unique(benchmark.train.labels[stage.index])] = True
    return homes, seen


def forgetting_board(run: Run, candidates: str = "all", found: Answers | None = None) -> Shown:
    """The accuracy matrix of a run. Choose a cell, with the mouse or with the two sliders: the test
    images of that task that were right before and are wrong now, and what they are taken for.

    candidates: own, seen or all, to begin with. found: the answers, if they are at hand
    (`answers`)."""
    if headless():
        return accuracy.matrix(run.matrix(candidates), CANDIDATES[candidates])
    return _Board(run, candidates, found or answers(run)).box


class _Board:
    """The controls and the figure, and what they do to each other."""

    def __init__(self, run: Run, candidates: str, found: Answers):
        self.found, self.matrices = found, {name: 100 * run.matrix(name) for name in CANDIDATES}
        T = self.matrices["all"].shape[1]
        self.names = [[found.test.class_names[k] for k in np.flatnonzero(found.homes == task)]
                      for task in range(1, T + 1)]
        self.candidates = ipw.ToggleButtons(
            options=[(said, name) for name, said in CANDIDATES.items()], value=candidates,
            style={"button_width": "auto"})
        self.stage = ipw.IntSlider(T, 0, T, description="after stage", style=WHOLE)
        self.task = ipw.IntSlider(1, 1, T, description="task", style=WHOLE)
        self.before = ipw.Dropdown(description="compared with", style=WHOLE)
        self.pictures = ipw.HTML()
        self.figure = panels(height=150 + 44 * (T + 1), width=280 + 90 * max(T, 4))
        self.figure.add_heatmap(x=list(range(1, T + 1)), y=list(
            range(T + 1)), zmin=0, zmax=100, colorscale=_crest(), texttemplate="%{text}",
                                hovertemplate="%{customdata}<extra></extra>", xgap=2, ygap=2,
                                colorbar={"title": {"text": "accuracy, %", "side": "right"}})
        self.figure.update_xaxes(title="task", dtick=1)
        self.figure.update_yaxes(title="after stage", autorange="reversed", tickvals=list(
            range(T + 1)), ticktext=["before", *map(str, range(1, T + 1))])
        self.figure.add_shape(type="rect", line={"color": INK, "width": 3}, x0=0, x1=1, y0=0, y1=1,
                              **CLEAR)
        self.figure.data[0].on_click(self._click)
        watch([self.candidates], self.colour)
        watch([self.stage], self.compare)
        watch([self.task], self.compare)
        watch([self.candidates, self.before], self.show)
        self.colour()
        self.compare()
        row = ipw.Layout(flex_flow="row wrap")
        self.box = stack(self.candidates, self.figure,
                         ipw.HBox([self.stage, self.task, self.before], layout=row), self.pictures)

    def _click(self, trace, points, state) -> None:
        if points.xs:
            self.task.value, self.stage.value = int(points.xs[0]), int(points.ys[0])

    def colour(self) -> None:
        """The matrix of the candidates chosen, and what is said of its cells."""
        R = self.matrices[self.candidates.value]
        text = [["" if np.isnan(value) else f"{value:.0f}" for value in row] for row in R]
        said = [[self._said(R, stage, task) for task in range(R.shape[1])]
                for stage in range(len(R))]
        redraw(self.figure, self.figure.data, {"z": [R], "text": [text], "customdata": [said]})

    def _said(self, R: np.ndarray, stage: int, task: int) -> str:
        names = ", ".join(self.names[task][:6]) + (", …" if len(self.names[task]) > 6 else "")
        value = "not defined" if np.isnan(R[stage, task]) else f"{R[stage, task]:.1f} %"
        home = R[task + 1, task]
        since = f"<br>{R[stage, task] - home:+.1f} points since its own stage" if stage > task + 1 else ""
        when = f"after stage {stage}" if stage else "before training"
        return f"task {task + 1}: {names}<br>{when}: {value}{since}"

    def compare(self) -> None:
        """The earlier stages of which answers are known; the own stage of the task is the first
        choice."""
        stage, task = self.stage.value, self.task.value
        known = [s for s in sorted(self.found.similarity) if s < stage]
        options = [("before training" if s == 0 else f"after stage {s}", s) for s in known]
        wanted = task if task in known else self.before.value if self.before.value in known else (
            known or [None])[0]
        offer(self.before, options, wanted)
        self.show()

    def show(self) -> None:
        stage, task = self.stage.value, self.task.value
        edges = {"x0": task - .5, "x1": task + .5, "y0": stage - .5, "y1": stage + .5}
        self.figure.plotly_relayout({f"shapes[0].{name}": value for name, value in edges.items()})
        self.pictures.value = card(self._pictures(stage, task))

    def _pictures(self, stage: int, task: int) -> str:
        known = self.found.similarity
        if not known:
            return HOW
        if stage not in known:
            some = ", ".join(
                "before training" if s == 0 else f"after stage {s}" for s in sorted(known))
            return f"What each image is taken for is known {some}: a run keeps its last weights. Choose such a row."
        if self.before.value is None:
            return "Choose a later row: there is none to compare this one with."
        images, taken = self.found.lost(self.before.value, stage, task, self.candidates.value)
        names, labels = self.found.test.class_names, self.found.test.labels
        when = "before training" if self.before.value == 0 else f"after stage {self.before.value}"
        head = (
            f"<b>{len(images)}</b> test images of task {task} were right {when} and are wrong after stage {stage}"
            f"{f'; the {MOST} surest mistakes' if len(images) > MOST else ''} (candidates: "
            f"{escape(self.candidates.value)}).")
        images, taken = images[:MOST], taken[:MOST]
        words = [f"{names[labels[i]]} → {names[k]}" for i, k in zip(images, taken, strict=True)]
        shown = gallery(self.found.test.images[torch.from_numpy(images)],
                        words) if len(images) else ""
        return f"<p style='margin:2px 0'>{head}</p>{shown}"


def _crest() -> list[list]:
    """The colours of the matrices of `plots`."""
    import seaborn as sns

    return [[i / 8, colour] for i, colour in enumerate(sns.color_palette("crest", 9).as_hex())]
