"""The gradient microscope: the effect of each step of a run on each class, for several methods."""
from collections.abc import Mapping, Sequence

import ipywidgets as ipw
import numpy as np
import pandas as pd
from plotly.basedatatypes import BaseTraceType
from plotly.graph_objects import FigureWidget

from clstudy.plots import gradients, style
from clstudy.runs.run import Run
from clstudy.utils.paths import headless
from clstudy.utils.validation import choose
from clstudy.widgets.choosers import row, stack, watch
from clstudy.widgets.common import FORCES, Shown, card, dashes, panels, redraw, shape

NORMS = ("attraction", "repulsion", "gradient")
PUSHES = ("push attraction", "push repulsion", "push")
HELP = (
    "<b>Arrows</b>: descent on the text of the class chosen, in the plane of its two parts: "
    "attraction points to the right, repulsion at its true angle, black is their sum (the three "
    "norms fix the triangle). Without attraction there is no angle: repulsion is drawn to the "
    "left. <b>Bars</b>: what a small step adds to the cosine of a class's text with the mean of "
    "its own images; a diamond is the sum. Pale: seen, but not in the batch. <b>Lines</b>: {}.")
TOWERS = "norm of the gradient on all tuned parameters of a tower"
FEATURES = "mean norm of the gradient on a text, and on an image, over the classes in the loss"


def arrows(attraction: float, repulsion: float, gradient: float) -> dict[str, tuple[float, float]]:
    """Place descent along attraction and repulsion and their sum in the plane that they span.

    With g = a + r the norms give the angle: cos(a, r) = (‖g‖² − ‖a‖² − ‖r‖²) / 2‖a‖‖r‖. A norm
    below 10⁻⁴ of the other is the rounding of a sum: 0."""
    least = 1e-4 * max(attraction, repulsion)
    attraction, repulsion = (norm if norm > least else 0.0 for norm in (attraction, repulsion))
    x, y = -repulsion, 0.0
    if attraction * repulsion > 0:
        cos = (gradient**2 - attraction**2 - repulsion**2) / (2 * attraction * repulsion)
        cos = np.clip(cos, -1, 1)
        x, y = float(repulsion * cos), float(repulsion * np.sqrt(1 - cos**2))
    return {"attraction": (attraction, 0.0), "repulsion": (x, y), "sum": (attraction + x, y)}


def add_arrows(figure: FigureWidget, column: int, hover: str) -> dict[str, BaseTraceType]:
    """Add the three arrows to a panel of the first row. hover: the text after an arrow's name."""
    for part, colour in FORCES.items():
        head = {"symbol": "arrow", "angleref": "previous", "size": [0, 14], "color": colour}
        width = 2 if part == "sum" else 7  # the sum lies on the others
        figure.add_scatter(
            x=[0, 0], y=[0, 0], mode="lines+markers", marker=head, name=part, legendgroup=part,
            line={"color": colour, "width": width}, showlegend=column == 1, row=1, col=column,
            hovertemplate=f"{part}: {hover}<extra></extra>")
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(zeroline=True, zerolinecolor="#dddddd", row=1, col=column)
    return dict(zip(FORCES, figure.data[-3:], strict=True))


def gradient_microscope(runs: Mapping[str, Run], step: int = 0, term: str = "task") -> Shown:
    """Scrub through the steps of runs of the same stream, made with the probe `classes`: method →
    run. Lines show the norms of features, or of both towers where runs have the probe `gradients`.

    step: the first to show; term: of the loss. ValueError: a method that is not in
    `plots.METHODS`, another term."""
    tables = {}
    for method, run in runs.items():
        table = run.probe("classes")
        choose("runs", method, style.METHODS)
        choose("term", term, set(table.term))
        tables[method] = table[table.term == term]
    steps = sorted(set.intersection(*(set(table.step) for table in tables.values())))
    step = min(steps, key=lambda other: abs(other - step))
    if headless():
        now = [table[table.step == step].assign(method=method) for method, table in tables.items()]
        return gradients.anatomy(pd.concat(now), f"step {step}")
    norms = {method: _norms(run, tables[method], term) for method, run in runs.items()}
    return _Microscope(tables, norms, steps, step).box


def _norms(run: Run, table: pd.DataFrame, term: str) -> dict[str, pd.Series]:
    """Return norms on the image side and on the text side, by step."""
    if "gradients" in run.tables():
        towers = run.probe("gradients")
        towers = towers[(towers.block == "all") & (towers.term == term)]
        return {f"{tower} tower": rows.set_index("step")["norm"]
                for tower, rows in towers.groupby("tower")}
    means = table.groupby("step")[["gradient", "image gradient"]].mean()
    return {"a text": means["gradient"], "an image": means["image gradient"]}


class _Microscope:
    """All steps as arrays (step, class), so that a move of the slider only takes a row."""

    def __init__(self, tables: Mapping[str, pd.DataFrame], norms: Mapping[str, dict],
                 steps: list[int], first: int):
        self.norms, self.steps = norms, steps
        everything = pd.concat(tables.values())
        arrived = everything.groupby("class").step.min()
        self.classes = sorted(arrived.index, key=lambda name: (arrived[name], name))
        self.values = {method: self._arrays(table) for method, table in tables.items()}
        self.stage = everything.drop_duplicates("step").set_index("step").stage
        start, last = steps.index(first), len(steps) - 1
        self.step = ipw.IntSlider(start, 0, last, readout=False, description="step",
                                  layout=ipw.Layout(width="28em"))
        play = ipw.Play(value=start, min=0, max=last, interval=300)
        ipw.jslink((play, "value"), (self.step, "value"))
        self.name = ipw.Dropdown(options=self.classes, description="class")
        self.where = ipw.HTML()
        self._draw_once()
        watch([self.step, self.name], self.draw)
        self.draw()
        towers = any("tower" in part for parts in norms.values() for part in parts)
        self.box = stack(row(play, self.step, self.where, self.name, align_items="center"),
                         self.figure, ipw.HTML(card(HELP.format(TOWERS if towers else FEATURES))))

    def _arrays(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """Turn columns into arrays (step, class); NaN where a class is not in the loss."""
        columns = [*NORMS, *PUSHES, "present"]
        wide = table.pivot(index="step", columns="class", values=columns)
        return {column: wide[column].reindex(index=self.steps, columns=self.classes).to_numpy(float)
                for column in columns}

    def _draw_once(self) -> None:
        """Draw what a step does not change: panels, ranges, the lines of the norms."""
        methods = list(self.values)
        count, titles = len(methods), [style.METHODS[method][0] for method in methods]
        bars = [[{"colspan": count + 1}, *[None] * count] for _ in methods]
        self.figure = panels(
            1 + count, count + 1, 330 + 210 * count + 110, 980, vertical_spacing=.1,
            horizontal_spacing=.07, row_heights=[1.25] + [1] * count,
            specs=[[{} for _ in methods] + [{"colspan": 1}], *bars],
            subplot_titles=[
                *(f"{title}: descent on the text" for title in titles), "gradient norms",
                *(f"{title}: push on each class" for title in titles)])
        self.arrow, self.bar = {}, {}
        for column, method in enumerate(methods, 1):
            drawn = add_arrows(self.figure, column, "norm %{customdata:.4f}")
            self.arrow |= {(method, part): trace for part, trace in drawn.items()}
            self._bar_panel(method, column + 1)
        self._norm_panel(count + 1)
        self.figure.update_layout(
            barmode="relative", bargap=.15,
            legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"},
            margin={"t": 140, "b": 130, "autoexpand": False})  # not laid out twice
        self.figure.update_xaxes(showticklabels=True, tickangle=-60, tickfont={"size": 10},
                                 row=1 + count, col=1)

    def _bar_panel(self, method: str, row: int) -> None:
        """Add two bars and a diamond for each class, on the same scale for all methods."""
        place = {"x": self.classes, "showlegend": False, "row": row, "col": 1}
        for part, colour in zip(PUSHES[:2], FORCES.values(), strict=False):
            self.figure.add_bar(marker={"color": colour}, name=part, **place,
                                hovertemplate=f"%{{x}}, {part}: %{{y:.4f}}<extra></extra>")
            self.figure.data[-1].on_click(self._click)
        self.figure.add_scatter(mode="markers", **place,
                                marker={"color": FORCES["sum"], "symbol": "diamond", "size": 6},
                                hovertemplate="%{x}, sum: %{y:.4f}<extra></extra>")
        self.bar |= {(method, part): trace
                     for part, trace in zip(PUSHES, self.figure.data[-3:], strict=True)}
        parts = np.stack([values[part] for values in self.values.values() for part in PUSHES[:2]])
        low, high = min(np.nanmin(parts), 0), max(np.nanmax(parts), 0)
        self.figure.update_yaxes(range=[1.05 * low, 1.05 * high], title="push", row=row, col=1)
        self.figure.update_xaxes(showticklabels=False, categoryorder="array",
                                 categoryarray=self.classes, row=row, col=1,
                                 range=[-.7, len(self.classes) - .3])

    def _norm_panel(self, column: int) -> None:
        """Add a line for each norm, and a line at the step."""
        for method, parts in self.norms.items():
            name, colour, _ = style.METHODS[method]
            for (part, series), dash in zip(parts.items(), ("", (3, 2)), strict=False):
                self.figure.add_scatter(x=series.index, y=series.to_numpy(), mode="lines",
                                        name=f"{name}, {part}", row=1, col=column,
                                        line={"color": colour, "dash": dashes(dash), "width": 1.5})
        self.figure.add_shape(**shape("line", "#8a8a8a", 2, xref=f"x{column}",
                                        yref=f"y{column} domain"))
        self.cursor = self.figure.layout.shapes[-1]
        self.figure.update_xaxes(title="step", row=1, col=column)
        self.figure.update_yaxes(rangemode="tozero", row=1, col=column)

    def _click(self, trace, points, state) -> None:
        if points.xs:
            self.name.value = points.xs[0]

    def draw(self) -> None:
        """Draw the step and the class chosen, in one message: each is a drawing in the browser."""
        i, k = self.step.value, self.classes.index(self.name.value)
        step = self.steps[i]
        self.where.value = f"{step} of {self.steps[-1]}, stage {self.stage[step]}"
        sizes = {method: [float(np.nan_to_num(values[norm][i, k])) for norm in NORMS]
                 for method, values in self.values.items()}
        tips = [tip for norms in sizes.values() for tip in arrows(*norms).values()]
        lengths = [np.hypot(*tip) for tip in tips]
        visible = [[0, float(length > 0)] for length in lengths]  # no head without an arrow
        opacity = [np.where(self.values[method]["present"][i] == 1, 1.0, .45)
                   for method, _ in self.bar]
        heights = [self.values[method][part][i] for method, part in self.bar]
        redraw(self.figure, [*self.arrow.values(), *self.bar.values()], {
            "x": [*([0.0, x] for x, _ in tips), *[self.classes] * len(self.bar)],
            "y": [*([0.0, y] for _, y in tips), *heights],
            "marker.opacity": [*visible, *opacity],
            "customdata": [*([length] * 2 for length in lengths), *opacity],
        }, self._layout(i, k, sizes))

    def _layout(self, i: int, k: int, sizes: Mapping[str, Sequence[float]]) -> dict:
        """Return what a step changes of the layout: the line at the step, titles, and one scale for
        all arrows."""
        everywhere = [values[part] for values in self.values.values() for part in NORMS[:2]]
        reach = (1.15 * max(map(max, sizes.values()))
                 or max(*map(np.nanmax, everywhere), 1e-12))  # no arrow: of all steps
        changes = {f"shapes[0].x{end}": self.steps[i] for end in (0, 1)}
        for column, (method, values) in enumerate(self.values.items()):
            number, present = column + 1 if column else "", values["present"][i, k]
            words = ("not in the loss" if np.isnan(present) else
                     "in the batch" if present else "absent, in the loss")
            title = f"{style.METHODS[method][0]}: {self.classes[k]}<br>{words}"
            changes |= {f"annotations[{column}].text": title,
                        f"xaxis{number}.range": [-reach, reach],
                        f"yaxis{number}.range": [-.25 * reach, reach]}
        return changes
