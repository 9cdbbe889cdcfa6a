"""The stream explorer: the classes that arrive over a stream, and their pictures."""
from collections.abc import Mapping
from functools import cache

import ipywidgets as ipw
import numpy as np
import seaborn as sns
import torch

from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.streams import STREAMS, Stage
from clstudy.data.types import BenchmarkData
from clstudy.plots import streams
from clstudy.utils.paths import headless
from clstudy.utils.validation import choose
from clstudy.widgets.choosers import WHOLE, offer, row, stack, watch
from clstudy.widgets.common import Shown, card, gallery, panels, redraw, set_traces, shape

WITH_TASKS = ("disjoint", "si_blurry")  # streams that take a number of tasks
POINTS = 60  # parts of a stream
MOST = 10  # pictures on a card


def stream_explorer(benchmark: str = "emoji", choices: Mapping[str, Mapping] | None = None,
                    seed: int = 0, tasks: int = 5, stream: str = "si_blurry",
                    disjoint_share: int = 50, blurry_share: int = 10) -> Shown:
    """Choose the data, the stream, N (share of disjoint classes), M (share of blurred images) and
    the seed: the share of each class over time. Hover, or choose a class and a moment, for the
    pictures that come then.

    choices: words → arguments of the benchmark (default: its own defaults). The others are the
    start of the controls. ValueError: an unknown benchmark or stream."""
    choose("benchmark", benchmark, BENCHMARKS)
    choose("stream", stream, STREAMS)
    return _Explorer(benchmark, choices or {"as it is": {}}, seed, tasks, stream, disjoint_share,
                     blurry_share).shown()


class _Explorer:
    """The controls, and what they choose."""

    def __init__(self, name: str, choices: Mapping[str, Mapping], seed: int, tasks: int,
                 stream: str, n: int, m: int):
        self.load = cache(lambda words: BENCHMARKS[name](**choices[words]).load())
        self.data = ipw.Dropdown(options=list(choices), description=name, style=WHOLE)
        domains = self.benchmark.train.domains is not None
        self.stream = ipw.Dropdown(
            options=[one for one in STREAMS if one != "domains" or domains], value=stream,
            description="stream")
        options = {"continuous_update": False, "style": WHOLE}
        self.n = ipw.IntSlider(n, 0, 100, 10, description="N, % disjoint", **options)
        self.m = ipw.IntSlider(m, 0, 100, 10, description="M, % blurred", **options)
        self.sizes = ipw.Checkbox(True, description="stages of random size", indent=False)
        self.tasks = ipw.IntSlider(tasks, 1, 10, description="tasks", **options)
        self.seed = ipw.IntSlider(seed, 0, 9, description="seed", **options)

    @property
    def benchmark(self) -> BenchmarkData:
        return self.load(self.data.value)

    def stages(self) -> list[Stage]:
        """Make the stream that the controls describe, with the options that it has."""
        options = {"tasks": self.tasks.value} if self.stream.value in WITH_TASKS else {}
        if self.stream.value == "si_blurry":
            options |= {"disjoint_share": self.n.value, "blurry_share": self.m.value,
                        "random_sizes": self.sizes.value}
        train = self.benchmark.train
        stream = STREAMS[self.stream.value](**options)
        return stream.stages(train.labels, self.seed.value, train.domains)

    def title(self) -> str:
        shares = f", N = {self.n.value}, M = {self.m.value}" * (self.stream.value == "si_blurry")
        return f"{self.stream.value}{shares}, seed {self.seed.value}"

    def shown(self) -> Shown:
        """Return the figure of the start if headless, else the whole widget."""
        if headless():
            return streams.arrivals({self.title(): (self.stages(), self.benchmark.train.labels)})
        for words in self.data.options:  # read now, so that a choice is answered at once
            self.load(words)
        self.figure = panels(height=380, layout={"title": {"font": {"size": 13}}})
        self.figure.update_xaxes(title="images of the stream")
        self.figure.update_yaxes(title="share of the images that arrive, %", range=[0, 100])
        self.name, self.pictures = ipw.Dropdown(description="class"), ipw.HTML()
        self.moment = ipw.IntSlider(0, 0, POINTS - 1, description="moment", readout=False)
        controls = [self.data, self.stream, self.n, self.m, self.sizes, self.tasks, self.seed]
        watch(controls, self.draw)
        watch([self.name], self.go)
        watch([self.moment], self.look)
        self.draw()
        return stack(row(*controls), self.figure, row(self.name, self.moment), self.pictures)

    def draw(self) -> None:
        """Draw the stream: classes stacked by their home stage, a line at the end of a stage."""
        stages, train = self.stages(), self.benchmark.train
        for control in (self.n, self.m, self.sizes):
            control.disabled = self.stream.value != "si_blurry"
        self.tasks.disabled = self.stream.value not in WITH_TASKS
        order = np.concatenate([stage.index for stage in stages])
        self.parts = np.array_split(order, min(POINTS, len(order)))
        self.homes = [(label, stage.number) for stage in stages for label in stage.classes]
        classes = train.labels.max() + 1
        shares = np.array([np.bincount(train.labels[part], minlength=classes) / len(part)
                           for part in self.parts])
        sizes = [len(part) for part in self.parts]
        centre = np.cumsum(sizes) - sizes[0] / 2
        colours = sns.color_palette("crest", max(len(stages), 2)).as_hex()
        labels, homes = zip(*self.homes, strict=True)
        names = [train.class_names[label] for label in labels]
        self._prepare(len(names), len(stages) - 1)
        ends = np.cumsum([len(stage.index) for stage in stages])[:-1].tolist()
        places = {f"shapes[{i}].{side}": end for i, end in enumerate(ends) for side in ("x0", "x1")}
        redraw(self.figure, self.figure.data, {
            "x": [centre] * len(names),
            "y": [100 * shares[:, label] for label in labels],
            "name": names,
            "fillcolor": [colours[home - 1] for home in homes],
            "hovertemplate": [f"{name}, home: stage {home}<br>%{{y:.0f}} %<extra></extra>"
                              for name, home in zip(names, homes, strict=True)],
        }, {"title.text": self.title()} | places)
        if list(self.name.options) != names:
            offer(self.name, names, self.name.value if self.name.value in names else names[0])
        self.moment.max = len(self.parts) - 1
        self.go()

    def _prepare(self, areas: int, lines: int) -> None:
        """Give the figure an area for each class, and a line for each end of a stage."""
        area = {"type": "scatter", "mode": "lines", "stackgroup": "one", "showlegend": False,
                "line": {"width": .4, "color": "white"}}
        if set_traces(self.figure, [area] * areas):
            for trace in self.figure.data:
                trace.on_hover(self._hover)
        if len(self.figure.layout.shapes) != lines:
            self.figure.layout.shapes = [shape("line", y1=100)] * lines

    def _hover(self, trace, points, state) -> None:
        if points.point_inds:
            self.name.value, self.moment.value = trace.name, points.point_inds[0]

    def go(self) -> None:
        """Go to where most images of the class chosen come."""
        train = self.benchmark.train
        mine = train.labels == train.class_names.index(self.name.value)
        self.moment.value = int(np.argmax([mine[part].sum() for part in self.parts]))
        self.look()

    def look(self) -> None:
        """Show pictures of the class chosen that come in this part of the stream."""
        train, part = self.benchmark.train, self.parts[self.moment.value]
        mine = train.labels == train.class_names.index(self.name.value)
        found = part[mine[part]]
        first = sum(len(one) for one in self.parts[:self.moment.value]) + 1
        head = (f"<b>{self.name.value}</b>: {len(found)} of the {len(part)} images from number "
                f"{first} on, of {mine.sum()} in all<br>")
        images = train.images[torch.from_numpy(found[:MOST])]
        captions = [self.benchmark.captions[i] for i in found[:MOST]]  # most as "label: more words"
        words = [caption.split(":")[0] for caption in captions]
        self.pictures.value = card(head, gallery(images, words, captions))
