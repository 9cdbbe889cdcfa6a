"""The gradient microscope: what each step of a run does to each class, for several methods in
step."""
from collections.abc import Mapping

import ipywidgets as ipw
import numpy as np
import pandas as pd

from clstudy.plots import gradients, style
from clstudy.runs.run import Run
from clstudy.widgets.common import (
    ARROWS,
    CLEAR,
    FAINT,
    GREEN,
    INK,
    PINK,
    Shown,
    card,
    dashes,
    headless,
    panels,
    redraw,
    stack,
    watch,
)

COLUMNS = ("attraction", "repulsion", "gradient", "push", "push attraction", "push repulsion")
HELP = (
    "<b>Arrows</b>: descent on the text of the class chosen, in the plane of its two parts: attraction points to "
    "the right, repulsion at its true angle, black is their sum (the three norms fix the triangle). Without "
    "attraction there is no angle: repulsion is drawn to the left. <b>Bars</b>: what a small step adds to the "
    "cosine of a class's text with the mean of its own images; a diamond is the sum. Pale: seen, but not in the "
    "batch. <b>Lines</b>: {}.")
TOWERS = "norm of the gradient on all tuned parameters of a tower"
FEATURES = "mean norm of the gradient on a text, and on an image, over the classes in the loss"


def arrows(attraction: float, repulsion: float, gradient: float) -> dict[str, tuple[float, float]]:
    """Descent along attraction and repulsion and their sum, in the plane that they span. With g = a
    + r the norms give the angle: cos(a, r) = (‖g‖² − ‖a‖² − ‖r‖²) / 2‖a‖‖r‖. Below 10⁻⁴ of the
    other it is a sum's rounding: 0."""
    least = 1e-4 * max(attraction, repulsion)
    attraction, repulsion = (norm if norm > least else 0.0 for norm in (attraction, repulsion))
    if attraction * repulsion == 0:
        a, r = (attraction, 0.0), (-repulsion, 0.0)
    else:
        cos = np.clip((gradient**2 - attraction**2 - repulsion**2) / (2 * attraction * repulsion),
                      -1, 1)
        a, r = (attraction, 0.0), (float(repulsion * cos), float(repulsion * np.sqrt(1 - cos**2)))
    return {"attraction": a, "repulsion": r, "sum": (a[0] + r[0], a[1] + r[1])}


def gradient_microscope(runs: Mapping[str, Run], step: int = 0, term: str = "task") -> Shown:
    """Scrub through the steps of runs of the same stream, made with the probe `classes`: method →
    run. Of the probe `gradients`, where the runs have it, the norms of both towers are drawn
    instead of those of the features.

    step: the first to show; term: of the loss. ValueError: a method that is not in `plots.METHODS`,
    another term."""
    tables = {}
    for method, run in runs.items():
        table = run.probe("classes")
        if method not in style.METHODS or term not in set(table.term):
            raise ValueError(
                f"runs, term: {method!r} must be one of {', '.join(style.METHODS)}, and have the term "
                f"{term!r} ({', '.join(sorted(set(table.term)))})")
        tables[method] = table[table.term == term]
    steps = sorted(set.intersection(*(set(table.step) for table in tables.values())))
    step = min(steps, key=lambda other: abs(other - step))
    if headless():
        return gradients.anatomy(pd.concat([table[table.step == step].assign(method=method)
                                        for method, table in tables.items()]), f"step {step}")
    return _Microscope(
        tables, {method: _norms(run, tables[method], term) for method, run in runs.items()}, steps,
        step).box


def _norms(run: Run, table: pd.DataFrame, term: str) -> dict[str, pd.Series]:
    """Norms on the image side and on the text side, by step."""
    if (run.folder / "gradients.parquet").exists():
        towers = run.probe("gradients")
        towers = towers[(towers.block == "all") & (towers.term == term)]
        return {
            f"{tower} tower": rows.set_index("step")["norm"]
            for tower, rows in towers.groupby("tower")
        }
    each = table.groupby("step")
    return {"a text": each.gradient.mean(), "an image": each["image gradient"].mean()}


class _Microscope:
    """All steps as arrays (step, class), so that a move of the slider only takes a row."""

    def __init__(self, tables: Mapping[str, pd.DataFrame], norms: Mapping[str, dict],
                 steps: list[int], first: int):
        self.tables, self.norms, self.steps = tables, norms, steps
        everything = pd.concat(tables.values())
        arrived = everything.groupby("class").step.min()
        self.classes = sorted(arrived.index, key=lambda name: (arrived[name], name))
        self.values = {
            method: {
                column: table.pivot(index="step", columns="class", values=column).reindex(
                    index=steps, columns=self.classes).to_numpy(float)
                for column in (*COLUMNS, "present")
            } for method, table in tables.items()
        }
        self.stage = everything.drop_duplicates("step").set_index("step").stage
        self.step = ipw.IntSlider(steps.index(first), 0,
                                  len(steps) - 1, readout=False, description="step",
                                  layout=ipw.Layout(width="28em"))
        play = ipw.Play(value=self.step.value, min=0, max=len(steps) - 1,
                        interval=300)  # the link hands its value on
        ipw.jslink((play, "value"), (self.step, "value"))
        self.name = ipw.Dropdown(options=self.classes, description="class")
        self.where = ipw.HTML()
        self._draw_once()
        watch([self.step, self.name], self.draw)
        self.draw()
        row = ipw.Layout(flex_flow="row wrap", align_items="center")
        towers = any("tower" in part for parts in norms.values() for part in parts)
        self.box = stack(ipw.HBox([play, self.step, self.where, self.name], layout=row),
                         self.figure, ipw.HTML(card(HELP.format(TOWERS if towers else FEATURES))))

    def _draw_once(self) -> None:
        """Everything that a step does not change: panels, ranges, the lines of the norms."""
        methods, count = list(self.tables), len(self.tables)
        specs = [[{} for _ in range(count)] + [{"colspan": 1}],
                 *[[{"colspan": count + 1}, *[None] * count] for _ in methods]]
        words = [style.METHODS[method][0] for method in methods]
        self.figure = panels(
            1 + count, count + 1, 330 + 210 * count + 110, 980, specs=specs, vertical_spacing=.1,
            horizontal_spacing=.07, row_heights=[1.25] + [1] * count, subplot_titles=[
                *(f"{word}: descent on the text" for word in words), "gradient norms",
                *(f"{word}: push on each class" for word in words)
            ])
        self.arrow, self.bar = {}, {}
        for column, method in enumerate(methods, 1):
            self._arrow_panel(method, column)
            self._bar_panel(method, column + 1)
        self._norm_panel(count + 1)
        self.figure.update_layout(barmode="relative", bargap=.15, legend={
            "orientation": "h", "y": 1.08, "yanchor": "bottom"
        }, margin={"t": 140, "b": 130, "autoexpand": False})  # not laid out twice
        self.figure.update_xaxes(showticklabels=True, tickangle=-60, tickfont={"size": 10},
                                 row=1 + count, col=1)

    def _arrow_panel(self, method: str, column: int) -> None:
        for part, (colour, width) in ARROWS.items():
            head = {"symbol": "arrow", "angleref": "previous", "size": 14, "color": colour}
            self.figure.add_scatter(
                x=[0, 0], y=[0, 0], mode="lines+markers", line={"color": colour, "width": width},
                marker=head, name=part, legendgroup=part, showlegend=column == 1, row=1, col=column,
                hovertemplate=f"{part}: norm %{{customdata:.4f}}<extra></extra>")
            self.arrow[method, part] = self.figure.data[-1]
        sizes = [
            np.nanmax(self.values[m][c]) for m in self.tables for c in ("attraction", "repulsion")
        ]
        self.reach = max(max(sizes), 1e-12)
        for axis in (self.figure.update_xaxes, self.figure.update_yaxes):
            axis(zeroline=True, zerolinecolor="#dddddd", row=1, col=column)

    def _bar_panel(self, method: str, row: int) -> None:
        for part, colour in (("push attraction", GREEN), ("push repulsion", PINK)):
            self.figure.add_bar(x=self.classes, marker={"color": colour}, row=row, col=1, name=part,
                                showlegend=False,
                                hovertemplate=f"%{{x}}, {part}: %{{y:.4f}}<extra></extra>")
            self.bar[method, part] = self.figure.data[-1]
            self.figure.data[-1].on_click(self._click)
        self.figure.add_scatter(x=self.classes, mode="markers", marker={
            "color": INK, "symbol": "diamond", "size": 6
        }, showlegend=False, row=row, col=1, hovertemplate="%{x}, sum: %{y:.4f}<extra></extra>")
        self.bar[method, "push"] = self.figure.data[-1]
        values = [
            self.values[m][c] for m in self.tables for c in ("push attraction", "push repulsion")
        ]
        low, high = min(map(np.nanmin, values)), max(map(np.nanmax, values))
        self.figure.update_yaxes(range=[1.05 * min(low, 0), 1.05 * max(high, 0)], title="push",
                                 row=row, col=1)
        self.figure.update_xaxes(showticklabels=False, categoryorder="array",
                                 categoryarray=self.classes, range=[-.7,
                                                                    len(self.classes) - .3],
                                 row=row, col=1)

    def _norm_panel(self, column: int) -> None:
        for method, parts in self.norms.items():
            name, colour, _ = style.METHODS[method]
            for (part, series), dash in zip(parts.items(), ("", (3, 2)), strict=False):
                self.figure.add_scatter(x=series.index, y=series.to_numpy(), mode="lines",
                                        name=f"{name}, {part}", row=1, col=column,
                                        line={"color": colour, "dash": dashes(dash), "width": 1.5})
        self.figure.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref=f"y{column} domain",
                              xref=f"x{column}", line={"color": FAINT, "width": 2}, **CLEAR)
        self.cursor = self.figure.layout.shapes[-1]
        self.figure.update_xaxes(title="step", row=1, col=column)
        self.figure.update_yaxes(rangemode="tozero", row=1, col=column)

    def _click(self, trace, points, state) -> None:
        if points.xs:
            self.name.value = points.xs[0]

    def draw(self) -> None:
        i, k = self.step.value, self.classes.index(self.name.value)
        step = self.steps[i]
        self.where.value = f"{step} of {self.steps[-1]}, stage {self.stage[step]}"
        found = {(method, part): at for method, values in self.values.items()
                 for part, at in arrows(*self._sizes(values, i, k)).items()}
        lengths = [np.hypot(*at) for at in found.values()]
        shares = [
            np.where(self.values[method]["present"][i] == 1, 1.0, .45) for method, _ in self.bar
        ]
        redraw(
            self.figure,
            [*(self.arrow[key] for key in found), *self.bar.values()],
            {  # each message is a drawing
                "x": [*([0.0, x] for x, _ in found.values()), *([self.classes] * len(self.bar))],
                "y": [
                    *([0.0, y] for _, y in found.values()), *(self.values[method][part][i]
                                                              for method, part in self.bar)
                ],
                "marker.opacity": [*([0, float(length > 0)]
                                     for length in lengths), *shares],  # no head without an arrow
                "customdata": [*([length] * 2 for length in lengths), *shares]
            },
            self._around(i, k))

    @staticmethod
    def _sizes(values: dict, i: int, k: int) -> list[float]:
        return [
            float(np.nan_to_num(values[column][i, k]))
            for column in ("attraction", "repulsion", "gradient")
        ]

    def _around(self, i: int, k: int) -> dict:
        """What a step changes of the layout: the line at the step, the titles, and one scale for
        all arrows."""
        reach = 1.15 * max(max(self._sizes(values, i, k))
                           for values in self.values.values()) or self.reach
        changes = {f"shapes[0].x{end}": self.steps[i] for end in (0, 1)}
        for column, (method, values) in enumerate(self.values.items()):
            number = "" if column == 0 else column + 1
            changes |= {
                f"annotations[{column}].text": self._title(
                    method, values, i, k), f"xaxis{number}.range": [-reach, reach],
                f"yaxis{number}.range": [-.25 * reach, reach]
            }
        return changes

    def _title(self, method: str, values: dict, i: int, k: int) -> str:
        present = values["present"][i, k]
        said = "not in the loss" if np.isnan(
            present) else "in the batch" if present else "absent, in the loss"
        return f"{style.METHODS[method][0]}: {self.classes[k]}<br>{said}"
