"""The forgetting board: an accuracy matrix, and the pictures behind each of its cells."""
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import ipywidgets as ipw
import numpy as np
import seaborn as sns
import torch
from plotly.graph_objects import FigureWidget

from clstudy.data.streams import Stage
from clstudy.data.types import BenchmarkData, Labelled
from clstudy.evaluation.features import class_features, features
from clstudy.plots import accuracy
from clstudy.runs.run import Run, load_tuned
from clstudy.utils.paths import headless
from clstudy.widgets.choosers import WHOLE, offer, row, stack, watch
from clstudy.widgets.common import Shown, card, gallery, panels, redraw, shape

CANDIDATES = {"own": "own: the task is told", "seen": "seen: classes so far",
              "all": "all: every class"}
MOST = 24  # pictures on a card
HOW = ("This run keeps no weights, so it is not known which images were right. Make it with "
       "<code>load_or_train(config, keep_model=True)</code>: then answers before training and at "
       "the end are known.")


@dataclass
class Answers:
    """Similarities of test images with all class texts, at the stages where they are known (0:
    before training)."""

    test: Labelled
    homes: np.ndarray  # (classes,): the task of each class, counted from 1; 0: of no task
    seen: np.ndarray  # bool (stages + 1, classes): the classes that arrived up to a stage
    images: np.ndarray  # positions in the test set
    similarity: Mapping[int, np.ndarray]  # stage → (images, classes)

    def answer(self, stage: int, candidates: str) -> np.ndarray:
        """Return the class predicted for each image. Before training all classes compete as
        "seen"."""
        if candidates == "own":
            label = self.test.labels[self.images]
            offered = self.homes[label][:, None] == self.homes
        else:
            offered = self.seen[stage] if candidates == "seen" and stage else self.homes > 0
        return np.where(offered, self.similarity[stage], -np.inf).argmax(1)

    def lost(self, before: int, after: int, task: int,
             candidates: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of a task that were right and are wrong, and the classes predicted for
        them; the surest mistakes first."""
        label, now = self.test.labels[self.images], self.answer(after, candidates)
        was_right = (self.homes[label] == task) & (self.answer(before, candidates) == label)
        found = np.flatnonzero(was_right & (now != label))
        values = self.similarity[after]
        margin = values[found, label[found]] - values[found, now[found]]
        found = found[np.argsort(margin, kind="stable")]
        return self.images[found], now[found]


def answers(run: Run) -> Answers:
    """Return the answers of a run before training and at the end, from its kept weights.

    A run without weights has none."""
    from clstudy.training.setup import prepare

    clip, benchmark, stages = prepare(run.config)
    test, similarity = benchmark.test, {}
    if (run.folder / "model.safetensors").exists():
        models = {0: clip.eval(), len(stages): load_tuned(run)}
        similarity = {stage: _similarity(model, test) for stage, model in models.items()}
    return Answers(test, *_arrived(benchmark, stages), np.arange(len(test)), similarity)


@torch.inference_mode()
def _similarity(clip, test: Labelled) -> np.ndarray:
    texts = class_features(clip, test.class_names, test.template)
    return (features(clip, test.images) @ texts.T).float().cpu().numpy()


def _arrived(benchmark: BenchmarkData, stages: list[Stage]) -> tuple[np.ndarray, np.ndarray]:
    """Return the home stage of each class, and which classes were seen after each stage."""
    count = len(benchmark.test.class_names)
    homes, seen = np.zeros(count, int), np.zeros((len(stages) + 1, count), bool)
    for number, stage in enumerate(stages, 1):
        homes[list(stage.classes)] = number
        seen[number:, np.unique(benchmark.train.labels[stage.index])] = True
    return homes, seen


def forgetting_board(run: Run, candidates: str = "all", found: Answers | None = None) -> Shown:
    """Show the accuracy matrix of a run. Choose a cell, with the mouse or with the two sliders: the
    test images of that task that were right before and are wrong now, and the predicted classes.

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
            options=[(words, name) for name, words in CANDIDATES.items()], value=candidates,
            style={"button_width": "auto"})
        self.stage = ipw.IntSlider(T, 0, T, description="after stage", style=WHOLE)
        self.task = ipw.IntSlider(1, 1, T, description="task", style=WHOLE)
        self.before = ipw.Dropdown(description="compared with", style=WHOLE)
        self.pictures, self.figure = ipw.HTML(), _matrix_figure(T)
        self.figure.data[0].on_click(self._click)
        watch([self.candidates], self.colour)
        watch([self.stage, self.task], self.compare)
        watch([self.candidates, self.before], self.show)
        self.colour()
        self.compare()
        self.box = stack(self.candidates, self.figure, row(self.stage, self.task, self.before),
                         self.pictures)

    def _click(self, trace, points, state) -> None:
        if points.xs:
            self.task.value, self.stage.value = int(points.xs[0]), int(points.ys[0])

    def colour(self) -> None:
        """Draw the matrix of the candidates chosen, with a text for each cell."""
        R = self.matrices[self.candidates.value]
        text = [["" if np.isnan(value) else f"{value:.0f}" for value in line] for line in R]
        hover = [[self._hover(R, stage, task) for task in range(R.shape[1])]
                 for stage in range(len(R))]
        redraw(self.figure, self.figure.data, {"z": [R], "text": [text], "customdata": [hover]})

    def _hover(self, R: np.ndarray, stage: int, task: int) -> str:
        value, names = R[stage, task], self.names[task]
        listed = ", ".join([*names[:6], *["…"][:len(names) > 6]])
        text = "not defined" if np.isnan(value) else f"{value:.1f} %"
        text = f"task {task + 1}: {listed}<br>{_when(stage)}: {text}"
        if stage > task + 1:
            text += f"<br>{value - R[task + 1, task]:+.1f} points since its own stage"
        return text

    def compare(self) -> None:
        """Offer the earlier stages with known answers; the task's own stage is the first choice."""
        stage, task = self.stage.value, self.task.value
        known = [s for s in sorted(self.found.similarity) if s < stage]
        wanted = next((s for s in (task, self.before.value, *known) if s in known), None)
        offer(self.before, [(_when(s), s) for s in known], wanted)
        self.show()

    def show(self) -> None:
        """Mark the cell that is chosen, and show its pictures."""
        stage, task = self.stage.value, self.task.value
        edges = {"x0": task - .5, "x1": task + .5, "y0": stage - .5, "y1": stage + .5}
        self.figure.plotly_relayout({f"shapes[0].{name}": value for name, value in edges.items()})
        self.pictures.value = card(self._pictures(stage, task, self.before.value))

    def _pictures(self, stage: int, task: int, before: int | None) -> str:
        known = sorted(self.found.similarity)
        if not known:
            return HOW
        if stage not in known:
            return (f"What each image is taken for is known {', '.join(map(_when, known))}: a run "
                    "keeps its last weights. Choose such a row.")
        if before is None:
            return "Choose a later row: there is none to compare this one with."
        images, taken = self.found.lost(before, stage, task, self.candidates.value)
        test, most = self.found.test, f"; the {MOST} surest mistakes" * (len(images) > MOST)
        head = (f"<b>{len(images)}</b> test images of task {task} were right {_when(before)} and "
                f"are wrong {_when(stage)}{most} (candidates: {escape(self.candidates.value)}).")
        names, images = test.class_names, images[:MOST]
        words = [f"{names[test.labels[i]]} → {names[k]}"
                 for i, k in zip(images, taken[:MOST], strict=True)]
        shown = gallery(test.images[torch.from_numpy(images)], words) if words else ""
        return f"<p style='margin:2px 0'>{head}</p>{shown}"


def _when(stage: int) -> str:
    return f"after stage {stage}" if stage else "before training"


def _matrix_figure(T: int) -> FigureWidget:
    """Make the figure of a matrix of T tasks, with a frame for the cell that is chosen."""
    figure = panels(height=150 + 44 * (T + 1), width=280 + 90 * max(T, 4))
    colours = sns.color_palette("crest", 9).as_hex()  # those of the matrices of `plots`
    figure.add_heatmap(
        x=list(range(1, T + 1)), y=list(range(T + 1)), zmin=0, zmax=100, xgap=2, ygap=2,
        colorscale=[[i / 8, colour] for i, colour in enumerate(colours)],
        texttemplate="%{text}", hovertemplate="%{customdata}<extra></extra>",
        colorbar={"title": {"text": "accuracy, %", "side": "right"}})
    figure.update_xaxes(title="task", dtick=1)
    figure.update_yaxes(title="after stage", autorange="reversed", tickvals=list(range(T + 1)),
                        ticktext=["before", *map(str, range(1, T + 1))])
    figure.add_shape(**shape("rect", width=3, x1=1))
    return figure
