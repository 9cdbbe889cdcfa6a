"""Live training: a run that begins on a button, and what it finds while it goes on."""
import asyncio
from collections.abc import Mapping
from html import escape
from pathlib import Path

import ipywidgets as ipw

from clstudy.plots import accuracy
from clstudy.plots.style import PALETTE
from clstudy.runs.background import KINDS, Training
from clstudy.runs.run import Run, find
from clstudy.training.config import RunConfig
from clstudy.utils.progress import clock
from clstudy.widgets.common import WHOLE, Shown, card, headless, panels, redraw, stack, watch

EVERY = 0.5  # seconds between two looks at the run
LEGENDS = ("legend", "legend2", "legend3")  # under each panel its own
STYLES = ("solid", "dash", "dot", "dashdot", "longdash")
SAYS = {
    "ready": "Press <b>start</b>. The run is made in a process of its own: this notebook stays usable.",
    "running": "<b>pause</b> holds it and keeps its memory; <b>stop</b> saves its state and ends it.",
    "paused": "Held after a batch. <b>go on</b> lets it run.",
    "stopped": "Its state is saved; <b>start</b> goes on from there, now or in another session.",
    "finished": "Finished; <code>load_or_train(config)</code> reads it, and all figures of this notebook can be drawn "
    "from it.",
    "failed": "It failed: <code>{error}</code>",
}


def live_training(configs: RunConfig | Mapping[str, RunConfig], example: Run | None = None,
                  runs: Path | None = None) -> Shown:
    """Start a run on a button and watch loss terms, accuracy, drift and time left; pause it, stop
    it, go on.

    configs: one run, or some to choose from, by what they are called. example: a finished run, of
    which the static twin is drawn; default the first of `configs` that is finished.
    FileNotFoundError: headless, and there is none."""
    configs = {"run": configs} if isinstance(configs, RunConfig) else dict(configs)
    if headless():
        finished = [run for run in (find(config, runs) for config in configs.values()) if run]
        if example is None and not finished:
            raise FileNotFoundError(
                "live_training: headless, and none of the runs is finished. Give a finished run as "
                "example=")
        return accuracy.live(lines(told(example or finished[0])))
    return _Live(configs, runs).box


class _Live:
    """Buttons, bar and three panels. The rows of a run stay when another one is chosen."""

    def __init__(self, configs: Mapping[str, RunConfig], runs: Path | None):
        self.trainings = {name: Training(config, runs=runs) for name, config in configs.items()}
        self.rows = {name: {"steps": [], "evals": [], "drift": []} for name in configs}
        self.choice = ipw.Dropdown(options=list(configs), description="run", style=WHOLE)
        self.start, self.hold, self.end = (ipw.Button(description=word, icon=icon,
                                                      layout=ipw.Layout(width="7em"))
                                           for word, icon in (("start", "play"), ("pause", "pause"),
                                                              ("stop", "stop")))
        self.bar = ipw.FloatProgress(max=1.0, layout=ipw.Layout(width="16em"))
        self.time, self.said = ipw.HTML(), ipw.HTML()
        self.figure = panels(1, 3, 460, 980, subplot_titles=[
            "loss terms", "accuracy", "drift of test features"
        ], horizontal_spacing=.08, layout={"showlegend": True, "margin.b": 200})
        for column, (x, y) in enumerate(
            (("optimiser step", "loss"), ("images of the stream seen", "%"),
             ("optimiser step", "1 − cosine to the start")), 1):
            self.figure.update_xaxes(title=x, rangemode="tozero", row=1, col=column)
            self.figure.update_yaxes(title=y, rangemode="tozero", row=1, col=column)
            below = {
                "x": self.figure.get_subplot(1, column).xaxis.domain[0], "y": -.28, "yanchor": "top"
            }
            self.figure.update_layout({LEGENDS[column - 1]: below})
            # without a line a panel has no axes, and the first line would be drawn before they are
            # there
            self.figure.add_scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip", row=1,
                                    col=column)
        self.lines, self.task = {}, None
        self.start.on_click(lambda _: self._press("start"))
        self.hold.on_click(lambda _: self._press("pause"))
        self.end.on_click(lambda _: self._press("stop"))
        watch([self.choice], self._another)
        self._another()
        row = ipw.Layout(flex_flow="row wrap", align_items="center")
        chosen = [self.choice] if len(configs) > 1 else []
        self.box = stack(
            ipw.HBox([*chosen, self.start, self.hold, self.end, self.bar, self.time], layout=row),
            self.figure, self.said)

    @property
    def training(self) -> Training:
        return self.trainings[self.choice.value]

    def _press(self, what: str) -> None:
        one = self.training
        if what == "start":
            if one.process is not None or one.state == "ready":  # the feed begins anew, with what was saved
                self.rows[self.choice.value] = {"steps": [], "evals": [], "drift": []}
            one.start()
        elif what == "pause":
            one.go_on() if one.state == "paused" else one.pause()
        else:
            one.stop()
        self.look()
        self._follow()

    def _follow(self) -> None:
        """Look again and again while a run goes on, between the cells of the kernel."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside of a kernel: whoever wants to see calls `look`
            return
        if self.task is None or self.task.done():
            self.task = loop.create_task(self._watch())

    async def _watch(self) -> None:
        try:
            while any(one.state in ("running", "paused") for one in self.trainings.values()):
                self.look()
                await asyncio.sleep(EVERY)
            self.look()
        except Exception as error:  # a task dies in silence
            self.said.value = card(
                f"The picture stopped, the run did not: <code>{escape(repr(error))}</code>")
            raise

    def _another(self) -> None:
        """Another run is chosen: what was found of it, or what lies on the disk."""
        one, rows = self.training, self.rows[self.choice.value]
        run = find(one.config, one.runs)
        if one.process is None and run is not None and not rows["steps"]:
            rows.update(told(run))
            one.share = 1.0
        self.look()
        self.draw()

    def look(self) -> None:
        """Take what is new, and draw."""
        new = False
        for name, one in self.trainings.items():
            for kind, rows in one.read().items():
                self.rows[name][kind] += rows
                new |= bool(rows) and name == self.choice.value
        one = self.training
        state, left = one.state, one.left
        self.start.disabled = state in ("running", "paused", "finished")
        self.hold.disabled = self.end.disabled = state not in ("running", "paused")
        self.hold.description, self.hold.icon = ("go on",
                                                 "play") if state == "paused" else ("pause",
                                                                                    "pause")
        self.bar.value = one.share
        self.bar.bar_style = {"failed": "danger", "finished": "success", "stopped": "warning"}.get(
            state, "")
        self.time.value = f"{100 * one.share:.0f} %, {state}" + (f", {clock(left)} left"
                                                                 if left is not None else "")
        self.said.value = card(SAYS[state].format(error=escape(one.error)))
        if new:
            self.draw()

    def draw(self) -> None:
        """All lines of the run chosen; a line that is new gets a colour of its own."""
        found = lines(self.rows[self.choice.value])
        for key in found:
            if key not in self.lines:
                self._add(*key)
        keys = list(self.lines)
        points = [found.get(key, [])
                  for key in keys]  # as lists: an array that is a column cannot be sent
        redraw(
            self.figure, [self.lines[key] for key in keys], {
                "x": [[x for x, _ in each] for each in points], "y": [[y for _, y in each]
                                                                      for each in points],
                "showlegend": [key in found for key in keys]
            })

    def _add(self, column: int, name: str) -> None:
        place = sum(other == column for other, _ in self.lines)
        colour, dash = PALETTE[place % len(PALETTE)], STYLES[place // len(PALETTE) % len(STYLES)]
        mode = "lines" if column == 1 else "lines+markers"
        self.figure.add_scatter(mode=mode, name=name, legend=LEGENDS[column - 1], marker={
            "size": 5
        }, row=1, col=column, line={"color": colour, "dash": dash, "width": 2},
                                hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>")
        self.lines[column, name] = self.figure.data[-1]


def lines(rows: Mapping[str, list]) -> dict[tuple[int, str], list[tuple[float, float]]]:
    """(panel, name) → points, of what `Training.read` gave."""
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
    """What the feed of a finished run would have told."""
    evals = run.evals[(run.evals.metric == "accuracy") & run.evals.kind.isin(KINDS)]
    drift = []
    if (run.folder / "drift.parquet").exists():
        table = run.probe("drift").groupby("step")[["text", "image"]].mean()
        drift = list(table.itertuples(name=None))
    return {
        "steps": list(run.steps[["step", "term", "value"]].itertuples(index=False, name=None)),
        "evals": list(evals[["images_seen", "name", "value"]].itertuples(index=False,
                                                                         name=None)), "drift": drift
    }
