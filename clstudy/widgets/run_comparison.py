"""The run comparer: any finished runs, their curves with intervals, and what each number means."""
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import ipywidgets as ipw
import numpy as np
import pandas as pd

from clstudy.analysis.curves import band, over_stream
from clstudy.analysis.leaderboard import ENTRY, gather
from clstudy.analysis.scores import look
from clstudy.evaluation import metrics
from clstudy.plots import accuracy, style
from clstudy.plots.style import PALETTE
from clstudy.runs.run import Run
from clstudy.widgets.common import WHOLE, Shown, card, dashes, headless, offer, panels, redraw, stack, watch

# columns of `tables.scores` → names in `metrics.METRICS`
DEFINED = {
    "A_auc": "a_auc", "A_avg": "a_avg", "A_last": "a_last", "forgetting": "forgetting/chaudhry2018",
    "backward transfer": "backward_transfer/lopez_paz2017", "Transfer": "transfer",
    "F_last": "f_last", "worst class": "worst_class"
}


def definition(column: str) -> str:
    """What a column of the table is, where it comes from, and which way is good."""
    one = metrics.METRICS[DEFINED[column]]
    return f"{one.symbol}: {one.definition}. {one.direction} is better. {one.source}"


def grouped(table: pd.DataFrame, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the seed together, under what they are. table: of
    `leaderboard.gather`."""
    by_id = {run.id: run for run in runs}
    boards = table.board.nunique() > 1
    found: dict[str, list[Run]] = {}
    for id, row in table.sort_values([*ENTRY, "seed"], kind="stable").iterrows():
        parts = [
            style.METHODS.get(row.look, (row.method, ))[0], row.tuner, row.settings,
            row.board if boards else ""
        ]
        found.setdefault(" · ".join(part for part in parts if part), []).append(by_id[id])
    return found


def run_comparer(runs: Sequence[Run], name: str = "seen classes", most: int = 4,
                 kept: Path | None = None) -> Shown:
    """Filter by words, choose settings (Ctrl or Shift for several): accuracy over the stream, mean
    over seeds with its 95 % interval, and the metrics; the definition of each stands on its head
    (hover) and under the table.

    name: the set whose accuracy is drawn first; most: settings chosen to begin with; kept: of
    `leaderboard.gather`. ValueError: no runs."""
    table = gather(runs, kept)
    groups = grouped(table, runs)
    if headless():
        found = over_stream(groups, name=name)
        found = found[found.label.isin(list(dict.fromkeys(found.label))[:most])]
        return accuracy.stream_curves(found, f"accuracy on {name}, %", hue="label")
    return _Comparer(table, groups, name, most).box


class _Comparer:
    """The list, the figure, the table. Curves of the first set are computed at once for all."""

    def __init__(self, scores: pd.DataFrame, groups: Mapping[str, list[Run]], name: str, most: int):
        self.scores, self.groups, self.bands, self.most = scores, groups, {}, most
        tables = [group[0].evals for group in groups.values()]
        sets = sorted({
            name for table in tables
            for name in table["name"][table.kind.isin(("all", "held-out set"))]
        })
        self.words = {
            label: f"{label}  ({len(group)} seed{'s' * (len(group) > 1)})"
            for label, group in groups.items()
        }
        self.filter = ipw.Text(placeholder="words that must all occur, as: lora sit",
                               description="filter", continuous_update=True,
                               layout=ipw.Layout(width="32em"))
        self.set = ipw.Dropdown(options=sets, value=name if name in sets else sets[0],
                                description="accuracy on", style=WHOLE)
        drawn = [label for label in groups if self.band(label) is not None]
        self.list = ipw.SelectMultiple(options=self._options(groups), value=drawn[:most], rows=8,
                                       description="runs", layout=ipw.Layout(
                                           width="auto", max_width="72em"))
        self.table = ipw.HTML()
        below = {
            "orientation": "h", "y": -.2, "yanchor": "top", "entrywidth": 1,
            "entrywidthmode": "fraction"
        }
        self.figure = panels(height=400, layout={"legend": below})
        self.figure.update_xaxes(title="images of the stream seen")
        watch([self.filter], self.narrow)
        watch([self.list, self.set], self.draw)
        self.draw()
        row = ipw.Layout(flex_flow="row wrap")
        self.box = stack(ipw.HBox([self.filter, self.set], layout=row), self.list, self.figure,
                         self.table)

    def _options(self, labels) -> list[tuple[str, str]]:
        return [(self.words[label], label) for label in labels]

    def narrow(self) -> None:
        """Only settings with all the words; what was chosen stays chosen where it is left, else the
        first are."""
        wanted = self.filter.value.lower().split()
        left = [label for label in self.groups if all(word in label.lower() for word in wanted)]
        chosen = [label for label in self.list.value if label in left] or left[:self.most]
        offer(self.list, self._options(left), chosen)
        self.draw()

    def band(self, label: str):
        key = label, self.set.value
        if key not in self.bands:
            self.bands[key] = band(self.groups[label], self.set.value)
        return self.bands[key]

    def draw(self) -> None:
        chosen = [label for label in self.list.value if self.band(label) is not None]
        found, styles = [self.band(label) for label in chosen], self._styles(chosen)
        self._traces(2 * len(chosen))
        layout = {
            "yaxis.title.text": f"accuracy on {self.set.value}, %",
            "height": 380 + 22 * len(chosen), "margin.b": 70 + 22 * len(chosen)
        }
        if chosen:
            redraw(self.figure, self.figure.data[::2], {
                "x": [[*points, *points[::-1]] for points, *_ in found],
                "y": [[*high, *low[::-1]] for _, _, low, high in found],
                "fillcolor": [_pale(colour) for colour, _ in styles]})
            redraw(
                self.figure, self.figure.data[1::2], {
                    "x": [points for points, *_ in found], "y": [mean for _, mean, *_ in found],
                    "name": chosen, "line.color": [colour for colour, _ in styles], "line.dash": [
                        dash for _, dash in styles
                    ], "customdata": [np.stack([low, high], 1) for *_, low, high in found]
                }, layout)
        self.table.value = card(self._table(chosen))

    def _traces(self, count: int) -> None:
        if len(self.figure.data) != count:
            self.figure.data = []
            for _ in range(count // 2):
                self.figure.add_scatter(fill="toself", line={"width": 0}, hoverinfo="skip",
                                        showlegend=False, mode="lines")
                self.figure.add_scatter(
                    mode="lines", showlegend=True, hovertemplate=
                    ("%{y:.1f} % (%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra>%{fullData.name}</extra>"
                     ))

    def _styles(self, chosen: list[str]) -> list[tuple[str, str]]:
        """Methods keep their looks; where two of one look are chosen, all take the colours of the
        palette in turn."""
        looks = [style.METHODS.get(look(self.groups[label][0].config)) for label in chosen]
        if None not in looks and len(set(looks)) == len(looks):
            return [(colour, dashes(dash)) for _, colour, dash in looks]
        turns = ("solid", "dash", "dot", "dashdot")
        return [(PALETTE[i % len(PALETTE)], turns[i // len(PALETTE) % 4])
                for i in range(len(chosen))]

    def _table(self, chosen: list[str]) -> str:
        """Mean and half width of the interval over seeds; the definition of a metric is on its
        head."""
        if not chosen:
            return "Choose at least one row of the list."
        cell = 'style="text-align:right;padding:1px 10px;white-space:nowrap"'
        heads = "".join(
            f'<th {cell} title="{escape(definition(name))}"><abbr style="text-decoration:underline '
            f'dotted;cursor:help">{escape(name)}</abbr></th>' for name in DEFINED)
        rows = []
        for label in chosen:
            values = [self._cell(self.groups[label], name) for name in DEFINED]
            rows.append(f'<tr><td style="text-align:left">{escape(label)}</td>'
                        + "".join(f"<td {cell}>{value}</td>" for value in values) + "</tr>")
        said = "".join(
            f"<li><b>{escape(name)}</b>: {escape(definition(name))}</li>" for name in DEFINED)
        return (
            f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table><details><summary>What the columns are"
            f"</summary><ul>{said}</ul></details>")

    def _cell(self, runs: Sequence[Run], name: str) -> str:
        found = metrics.interval(self.scores.loc[[run.id for run in runs], name].tolist())
        if np.isnan(found.mean):
            return "–"
        return f"{found.mean:.1f}".replace(
            "-", "−") + (f" ± {found.half_width:.1f}" if len(runs) > 1 else "")


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i:i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
