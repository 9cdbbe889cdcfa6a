"""Live training: a button starts a run, and figures show what it finds while it goes on."""
import asyncio
from collections.abc import Mapping
from html import escape
from pathlib import Path

import ipywidgets as ipw
from plotly.graph_objects import FigureWidget

from clstudy.plots import accuracy
from clstudy.plots.style import PALETTE
from clstudy.runs.background import KINDS, Training
from clstudy.runs.run import Run, find
from clstudy.training.config import RunConfig
from clstudy.utils.paths import headless
from clstudy.utils.progress import clock
from clstudy.widgets.choosers import WHOLE, row, stack, watch
from clstudy.widgets.common import Shown, card, panels, redraw

EVERY = 0.5  # seconds between two looks at the run
PANELS = {  # title → what the axes show
    "loss terms": ("optimiser step", "loss"),
    "accuracy": ("images of the stream seen", "%"),
    "drift of test features": ("optimiser step", "1 − cosine to the start"),
}
LEGENDS = ("legend", "legend2", "legend3")  # each panel has its own, below it
STYLES = ("solid", "dash", "dot", "dashdot", "longdash")
ACTIVE = ("running", "paused")
BARS = {"failed": "danger", "finished": "success", "stopped": "warning"}  # state → colour
MESSAGES = {
    "ready": "Press <b>start</b>. The run is made in a process of its own: this notebook stays "
             "usable.",
    "running": "<b>pause</b> holds it and keeps its memory; <b>stop</b> saves its state and ends "
               "it.",
    "paused": "Held after a batch. <b>go on</b> lets it run.",
    "stopped": "Its state is saved; <b>start</b> goes on from there, now or in another session.",
    "finished": "Finished; <code>load_or_train(config)</code> reads it, and all figures of this "
                "notebook can be drawn from it.",
    "failed": "It failed: <code>{error}</code>",
}


def live_training(configs: RunConfig | Mapping[str, RunConfig], example: Run | None = None,
                  runs: Path | None = None) -> Shown:
    """Start a run on a button and watch loss terms, accuracy, drift and time left; pause it, stop
    it, go on.

    configs: one run, or some to choose from, by what they are called. example: a finished run whose
    figure stands for the view if headless (default: the first of `configs` that is finished).
    FileNotFoundError: headless, and there is none."""
    configs = {"run": configs} if isinstance(configs, RunConfig) else dict(configs)
    if not headless():
        return _Live(configs, runs).box
    finished = [run for run in (find(config, runs) for config in configs.values()) if run]
    if example is None and not finished:
        raise FileNotFoundError("live_training: headless, and none of the runs is finished. Give a "
                                "finished run as example=")
    return accuracy.live(lines(told(example or finished[0])))


class _Live:
    """Buttons, bar and three panels. The rows of a run stay when another one is chosen."""

    def __init__(self, configs: Mapping[str, RunConfig], runs: Path | None):
        self.trainings = {name: Training(config, runs=runs) for name, config in configs.items()}
        self.rows = {name: _no_rows() for name in configs}
        self.choice = ipw.Dropdown(options=list(configs), description="run", style=WHOLE)
        buttons = [ipw.Button(description=word, icon=icon, layout=ipw.Layout(width="7em"))
                   for word, icon in (("start", "play"), ("pause", "pause"), ("stop", "stop"))]
        self.start, self.hold, self.end = buttons
        self.bar = ipw.FloatProgress(max=1.0, layout=ipw.Layout(width="16em"))
        self.time, self.said, self.figure = ipw.HTML(), ipw.HTML(), _empty_figure()
        self.lines, self.task = {}, None
        for button, act in zip(buttons, (self._start, self._hold, self._end), strict=True):
            button.on_click(act)
        watch([self.choice], self._another)
        self._another()
        chosen = [self.choice] if len(configs) > 1 else []
        controls = row(*chosen, *buttons, self.bar, self.time, align_items="center")
        self.box = stack(controls, self.figure, self.said)

    @property
    def training(self) -> Training:
        return self.trainings[self.choice.value]

    def _start(self, button) -> None:
        one = self.training
        if one.process is not None or one.state == "ready":  # the feed tells all from its beginning
            self.rows[self.choice.value] = _no_rows()
        one.start()
        self._follow()

    def _hold(self, button) -> None:
        one = self.training
        one.go_on() if one.state == "paused" else one.pause()
        self._follow()

    def _end(self, button) -> None:
        self.training.stop()
        self._follow()

    def _follow(self) -> None:
        """Look again and again while a run goes on, between the cells of the kernel."""
        self.look()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside of a kernel: whoever wants to see calls `look`
            return
        if self.task is None or self.task.done():
            self.task = loop.create_task(self._watch())

    async def _watch(self) -> None:
        try:
            while any(one.state in ACTIVE for one in self.trainings.values()):
                self.look()
                await asyncio.sleep(EVERY)
            self.look()
        except Exception as error:  # nobody sees the error of a task
            stopped = "The picture stopped, the run did not"
            self.said.value = card(f"{stopped}: <code>{escape(repr(error))}</code>")
            raise

    def _another(self) -> None:
        """Draw another run: what was found of it, or what lies on the disk."""
        one, rows = self.training, self.rows[self.choice.value]
        run = find(one.config, one.runs)
        if one.process is None and run is not None and not rows["steps"]:
            rows.update(told(run))
            one.share = 1.0
        self.look()
        self.draw()

    def look(self) -> None:
        """Take what is new, and draw it."""
        new = False
        for name, one in self.trainings.items():
            for kind, rows in one.read().items():
                self.rows[name][kind] += rows
                new |= bool(rows) and name == self.choice.value
        one = self.training
        state, left = one.state, one.left
        self.start.disabled = state in (*ACTIVE, "finished")
        self.hold.disabled = self.end.disabled = state not in ACTIVE
        paused = state == "paused"
        self.hold.description, self.hold.icon = ("go on", "play") if paused else ("pause", "pause")
        self.bar.value, self.bar.bar_style = one.share, BARS.get(state, "")
        time = "" if left is None else f", {clock(left)} left"
        self.time.value = f"{100 * one.share:.0f} %, {state}{time}"
        self.said.value = card(MESSAGES[state].format(error=escape(one.error)))
        if new:
            self.draw()

    def draw(self) -> None:
        """Draw all lines of the run chosen; a line that is new gets a colour of its own."""
        found = lines(self.rows[self.choice.value])
        for key in found:
            if key not in self.lines:
                self._add(*key)
        # as lists: an array that is a column cannot be sent
        points = [found.get(key, []) for key in self.lines]
        redraw(self.figure, list(self.lines.values()), {
            "x": [[x for x, _ in each] for each in points],
            "y": [[y for _, y in each] for each in points],
            "showlegend": [key in found for key in self.lines],
        })

    def _add(self, column: int, name: str) -> None:
        turn, place = divmod(sum(other == column for other, _ in self.lines), len(PALETTE))
        line = {"color": PALETTE[place], "dash": STYLES[turn % len(STYLES)], "width": 2}
        self.figure.add_scatter(
            mode="lines" if column == 1 else "lines+markers", name=name, marker={"size": 5},
            legend=LEGENDS[column - 1], row=1, col=column, line=line,
            hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>")
        self.lines[column, name] = self.figure.data[-1]


def _no_rows() -> dict[str, list]:
    return {"steps": [], "evals": [], "drift": []}


def _empty_figure() -> FigureWidget:
    """Make three panels, each with axes and a legend below it."""
    figure = panels(1, 3, 460, 980, subplot_titles=list(PANELS), horizontal_spacing=.08,
                    layout={"showlegend": True, "margin.b": 200})
    for column, (x, y) in enumerate(PANELS.values(), 1):
        figure.update_xaxes(title=x, rangemode="tozero", row=1, col=column)
        figure.update_yaxes(title=y, rangemode="tozero", row=1, col=column)
        left = figure.get_subplot(1, column).xaxis.domain[0]
        figure.update_layout({LEGENDS[column - 1]: {"x": left, "y": -.28, "yanchor": "top"}})
        # Without a line a panel has no axes, and the first line would be drawn before they exist.
        figure.add_scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip", row=1,
                           col=column)
    return figure


def lines(rows: Mapping[str, list]) -> dict[tuple[int, str], list[tuple[float, float]]]:
    """Turn what `Training.read` gave into lines: (panel, name) → points."""
    found: dict[tuple[int, str], list] = {}
    for step, term, value in rows["steps"]:
        found.setdefault((1, f"loss: {term}"), []).append((step, value))
    for images, name, value in rows["evals"]:
        found.setdefault((2, name), []).append((images, 100 * value))
    for step, text, image in rows["drift"]:
        for name, value in (("texts", text), ("images", image)):  # rounding errors are no drift
            found.setdefault((3, name), []).append((step, max(round(value, 6), 0.0)))
    return found


def told(run: Run) -> dict[str, list]:
    """Return the rows of a finished run as `Training.read` gives those of a running one."""
    evals = run.evals[(run.evals.metric == "accuracy") & run.evals.kind.isin(KINDS)]
    tables = {"steps": run.steps[["step", "term", "value"]],
              "evals": evals[["images_seen", "name", "value"]]}
    if "drift" in run.tables():
        drift = run.probe("drift").groupby("step", as_index=False)[["text", "image"]].mean()
        tables["drift"] = drift
    return _no_rows() | {name: list(table.itertuples(index=False, name=None))
                         for name, table in tables.items()}
