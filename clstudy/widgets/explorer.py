"""The stream explorer: classes as they arrive, and the pictures that come."""
from collections.abc import Mapping
from functools import lru_cache

import ipywidgets as ipw
import numpy as np
import seaborn as sns
import torch

from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.streams import STREAMS, Stage
from clstudy.data.types import BenchmarkData
from clstudy.plots import streams
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

POINTS = 60  # parts of a stream
MOST = 10  # pictures on a card


def stream_explorer(benchmark: str = "emoji", choices: Mapping[str, Mapping] | None = None,
                    seed: int = 0, tasks: int = 5, stream: str = "si_blurry",
                    disjoint_share: int = 50, blurry_share: int = 10) -> Shown:
    """Choose the data, the stream, N (share of disjoint classes), M (share of blurred images) and
    the seed: the share of each class over time; hover, or choose a class and a moment below, for
    pictures that come then.

    choices: words → arguments of the benchmark (default: its own defaults). The others are the
    start of the controls. ValueError: an unknown benchmark or stream."""
    if benchmark not in BENCHMARKS or stream not in STREAMS:
        raise ValueError(
            f"benchmark={benchmark!r}, stream={stream!r}: must be one of {', '.join(BENCHMARKS)}, and one "
            f"of {', '.join(STREAMS)}")
    return _Explorer(benchmark, choices or {"as it is": {}}, seed, tasks, stream, disjoint_share,
                     blurry_share).shown()


class _Explorer:
    """The controls, and what they choose."""

    def __init__(self, name: str, choices: Mapping[str, Mapping], seed: int, tasks: int,
                 stream: str, n: int, m: int):
        self.made = lru_cache(None)(lambda words: BENCHMARKS[name](**choices[words]).load())
        options = {"continuous_update": False, "style": WHOLE}
        self.data = ipw.Dropdown(options=list(choices), description=name, style=WHOLE)
        names = [
            one for one in STREAMS if one != "domains" or self.benchmark.train.domains is not None
        ]
        self.stream = ipw.Dropdown(options=names, value=stream, description="stream")
        self.n = ipw.IntSlider(n, 0, 100, 10, description="N, % disjoint", **options)
        self.m = ipw.IntSlider(m, 0, 100, 10, description="M, % blurred", **options)
        self.sizes = ipw.Checkbox(True, description="stages of random size", indent=False)
        self.tasks = ipw.IntSlider(tasks, 1, 10, description="tasks", **options)
        self.seed = ipw.IntSlider(seed, 0, 9, description="seed", **options)

    @property
    def benchmark(self) -> BenchmarkData:
        return self.made(self.data.value)

    def stages(self) -> list[Stage]:
        """The stream that the controls describe. What a stream does not take is not asked of it."""
        options = {} if self.stream.value == "joint" else {"tasks": self.tasks.value}
        if self.stream.value == "si_blurry":
            options |= {
                "disjoint_share": self.n.value, "blurry_share": self.m.value,
                "random_sizes": self.sizes.value
            }
        if self.stream.value == "domains":
            options = {}
        train = self.benchmark.train
        return STREAMS[self.stream.value](**options).stages(train.labels, self.seed.value,
                                                            train.domains)

    def title(self) -> str:
        blurred = f", N = {self.n.value}, M = {self.m.value}" if self.stream.value == "si_blurry" else ""
        return f"{self.stream.value}{blurred}, seed {self.seed.value}"

    def shown(self) -> Shown:
        if headless():
            return streams.arrivals({self.title(): (self.stages(), self.benchmark.train.labels)})
        for words in self.data.options:  # read now, so that a choice is answered at once
            self.made(words)
        self.figure, self.pictures = panels(height=380,
                                            layout={"title": {"font": {"size": 13}}}), ipw.HTML()
        self.figure.update_xaxes(title="images of the stream")
        self.figure.update_yaxes(title="share of the images that arrive, %", range=[0, 100])
        self.name = ipw.Dropdown(description="class")
        self.moment = ipw.IntSlider(0, 0, POINTS - 1, description="moment", readout=False)
        controls = [self.data, self.stream, self.n, self.m, self.sizes, self.tasks, self.seed]
        watch(controls, self.draw)
        watch([self.name], self.go)
        watch([self.moment], self.look)
        self.draw()
        row = ipw.Layout(flex_flow="row wrap")
        return stack(ipw.HBox(controls, layout=row), self.figure,
                     ipw.HBox([self.name, self.moment], layout=row), self.pictures)

    def draw(self) -> None:
        """The stream anew: classes stacked by their home stage, a line at the end of each stage."""
        stages, labels = self.stages(), self.benchmark.train.labels
        for control, of in ((self.n, ("si_blurry", )), (self.m, ("si_blurry", )),
                            (self.sizes, ("si_blurry", )), (self.tasks, ("si_blurry", "disjoint"))):
            control.disabled = self.stream.value not in of
        self.order = np.concatenate([stage.index for stage in stages])
        self.parts = np.array_split(self.order, min(POINTS, len(self.order)))
        self.homes = [(label, stage.number) for stage in stages for label in stage.classes]
        counts = np.array([
            np.bincount(labels[part], minlength=labels.max() + 1) / len(part) for part in self.parts
        ])
        centre = np.cumsum([len(part) for part in self.parts]) - len(self.parts[0]) / 2
        colours = sns.color_palette("crest", max(len(stages), 2)).as_hex()
        names = self.benchmark.train.class_names
        self._traces(len(self.homes))
        ends = [int(end) for end in np.cumsum([len(stage.index) for stage in stages])[:-1]]
        if len(self.figure.layout.shapes) != len(ends):
            line = {
                "type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 100,
                "line": {"color": INK, "width": 1.5}, **CLEAR
            }
            self.figure.layout.shapes = [line] * len(ends)
        places = {f"shapes[{i}].{side}": end for i, end in enumerate(ends) for side in ("x0", "x1")}
        redraw(
            self.figure, self.figure.data, {
                "x": [centre] * len(self.homes), "y": [
                    100 * counts[:, label] for label, _ in self.homes
                ], "name": [names[label] for label, _ in self.homes],
                "fillcolor": [colours[home - 1] for _, home in self.homes], "hovertemplate": [
                    f"{names[label]}, home: stage {home}<br>%{{y:.0f}} %<extra></extra>"
                    for label, home in self.homes
                ]
            }, {"title.text": self.title()} | places)
        self._offer([names[label] for label, _ in self.homes])
        self.go()

    def _traces(self, count: int) -> None:
        """As many areas as there are classes."""
        if len(self.figure.data) != count:
            self.figure.data = []
            self.figure.add_traces([{
                "type": "scatter", "mode": "lines", "stackgroup": "one", "showlegend": False,
                "line": {"width": .4, "color": "white"}
            } for _ in range(count)])
            for trace in self.figure.data:
                trace.on_hover(self._hover)

    def _offer(self, names: list[str]) -> None:
        kept = self.name.value if self.name.value in names else names[0]
        if list(self.name.options) != names:
            offer(self.name, names, kept)
        self.moment.max = len(self.parts) - 1

    def _hover(self, trace, points, state) -> None:
        if points.point_inds:
            self.name.value, self.moment.value = trace.name, points.point_inds[0]

    def go(self) -> None:
        """To where most images of the class chosen come."""
        labels, label = self.benchmark.train.labels, self.benchmark.train.class_names.index(
            self.name.value)
        self.moment.value = int(np.argmax([(labels[part] == label).sum() for part in self.parts]))
        self.look()

    def look(self) -> None:
        """Pictures of the class chosen that come in this part of the stream."""
        train = self.benchmark.train
        label, part = train.class_names.index(self.name.value), self.parts[self.moment.value]
        found = part[train.labels[part] == label]
        first = sum(len(one) for one in self.parts[:self.moment.value]) + 1
        head = (
            f"<b>{self.name.value}</b>: {len(found)} of the {len(part)} images from number {first} on, of "
            f"{(train.labels == label).sum()} in all<br>")
        images = train.images[torch.from_numpy(found[:MOST])]
        captions = [self.benchmark.captions[i] for i in found[:MOST]]  # most as "label: more words"
        words = [one.split(":")[0] for one in captions]
        self.pictures.value = card(head, gallery(images, words, captions) if len(found) else "")
