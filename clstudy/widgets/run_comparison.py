"""The run comparer: curves of finished runs with intervals, and what each number means."""
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import ipywidgets as ipw
import numpy as np
import pandas as pd

from clstudy.analysis.curves import band, over_stream
from clstudy.analysis.intervals import interval
from clstudy.analysis.leaderboard import ENTRY, gather
from clstudy.analysis.scores import COLUMNS, look
from clstudy.evaluation import metrics
from clstudy.plots import accuracy, style
from clstudy.plots.style import PALETTE
from clstudy.runs.run import Run
from clstudy.utils.paths import headless
from clstudy.widgets.choosers import WHOLE, offer, row, stack, watch
from clstudy.widgets.common import Shown, card, dashes, panels, redraw, set_traces

# columns of `scores` that are shown with their definition
DEFINED = ("A_auc", "A_avg", "A_last", "forgetting", "zero-shot forgetting", "backward transfer",
           "change on tasks to come", "F_last", "lowest fifth")
BAND = {"type": "scatter", "mode": "lines", "fill": "toself", "line": {"width": 0},
        "hoverinfo": "skip", "showlegend": False}
LINE = {"type": "scatter", "mode": "lines", "showlegend": True, "hovertemplate":
        "%{y:.1f} % (%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra>%{fullData.name}</extra>"}
TURNS = ("solid", "dash", "dot", "dashdot")  # dashes of lines that share a colour
CELL = 'style="text-align:right;padding:1px 10px;white-space:nowrap"'
ABBR = 'style="text-decoration:underline dotted;cursor:help"'


def definition(column: str) -> str:
    """Say what a column of the table is, where it comes from, and which way is good."""
    given = COLUMNS[column]
    one = metrics.METRICS[given.metric]
    return (f"{one.symbol}: {one.definition}. Candidates: {given.candidates}. {one.direction} is "
            f"better. {given.protocol or one.source}")


def grouped(table: pd.DataFrame, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in the seed under a label. table: of `leaderboard.gather`."""
    by_id, boards = {run.id: run for run in runs}, table.board.nunique() > 1
    found: dict[str, list[Run]] = {}
    for id, line in table.sort_values([*ENTRY, "seed"], kind="stable").iterrows():
        method = style.METHODS.get(line.look, (line.method,))[0]
        parts = [method, line.tuner, line.settings, line.board if boards else ""]
        found.setdefault(" · ".join(filter(None, parts)), []).append(by_id[id])
    return found


def run_comparer(runs: Sequence[Run], name: str = "seen classes", most: int = 4) -> Shown:
    """Filter by words and choose settings (Ctrl or Shift for several): accuracy over the stream,
    mean over seeds with its 95 % interval, and the metrics with their definitions.

    name: the set whose accuracy is drawn first; most: settings chosen to begin with. ValueError: no
    runs."""
    table = gather(runs)
    groups = grouped(table, runs)
    if headless():
        found = over_stream(groups, name=name)
        found = found[found.label.isin(found.label.unique()[:most])]
        return accuracy.stream_curves(found, f"accuracy on {name}, %", hue="label")
    return _Comparer(table, groups, name, most).box


class _Comparer:
    """The list, the figure, the table. Curves of the first set are computed at once for all."""

    def __init__(self, scores: pd.DataFrame, groups: Mapping[str, list[Run]], name: str, most: int):
        self.scores, self.groups, self.bands, self.most = scores, groups, {}, most
        evals = pd.concat(group[0].evals for group in groups.values())
        sets = sorted(evals["name"][evals.kind.isin(("all", "held-out set"))].unique())
        self.filter = ipw.Text(description="filter", continuous_update=True,
                               placeholder="words that must all occur, as: lora sit",
                               layout=ipw.Layout(width="32em"))
        self.set = ipw.Dropdown(options=sets, value=name if name in sets else sets[0],
                                description="accuracy on", style=WHOLE)
        drawn = [label for label in groups if self.band(label) is not None]
        self.list = ipw.SelectMultiple(options=self._options(groups), value=drawn[:most], rows=8,
                                       description="runs",
                                       layout=ipw.Layout(width="auto", max_width="72em"))
        self.table = ipw.HTML()
        legend = {"orientation": "h", "y": -.2, "yanchor": "top", "entrywidth": 1,
                  "entrywidthmode": "fraction"}
        self.figure = panels(height=400, layout={"legend": legend})
        self.figure.update_xaxes(title="images of the stream seen")
        watch([self.filter], self.narrow)
        watch([self.list, self.set], self.draw)
        self.draw()
        self.box = stack(row(self.filter, self.set), self.list, self.figure, self.table)

    def _options(self, labels: Iterable[str]) -> list[tuple[str, str]]:
        counts = [(label, len(self.groups[label])) for label in labels]
        return [(f"{label}  ({n} seed{'s' * (n > 1)})", label) for label, n in counts]

    def narrow(self) -> None:
        """Offer only settings with all the words. What was chosen stays chosen; if nothing of it is
        left, the first settings are."""
        wanted = self.filter.value.lower().split()
        left = [label for label in self.groups if all(word in label.lower() for word in wanted)]
        chosen = [label for label in self.list.value if label in left] or left[:self.most]
        offer(self.list, self._options(left), chosen)
        self.draw()

    def band(self, label: str):
        """Return the curve of a group on the set chosen, computed once."""
        key = label, self.set.value
        if key not in self.bands:
            self.bands[key] = band(self.groups[label], self.set.value)
        return self.bands[key]

    def draw(self) -> None:
        """Draw a band and a line for each setting chosen, and the table."""
        chosen = [label for label in self.list.value if self.band(label) is not None]
        found, styles = [self.band(label) for label in chosen], self._styles(chosen)
        set_traces(self.figure, [BAND, LINE] * len(chosen))
        if chosen:
            redraw(self.figure, self.figure.data[::2], {
                "x": [[*points, *points[::-1]] for points, *_ in found],
                "y": [[*high, *low[::-1]] for _, _, low, high in found],
                "fillcolor": [_pale(colour) for colour, _ in styles],
            })
            room = 22 * len(chosen)  # for the legend
            redraw(self.figure, self.figure.data[1::2], {
                "x": [points for points, *_ in found],
                "y": [mean for _, mean, *_ in found],
                "name": chosen,
                "line.color": [colour for colour, _ in styles],
                "line.dash": [dash for _, dash in styles],
                "customdata": [np.stack([low, high], 1) for *_, low, high in found],
            }, {"yaxis.title.text": f"accuracy on {self.set.value}, %", "height": 380 + room,
                "margin.b": 70 + room})
        self.table.value = card(self._table(chosen))

    def _styles(self, chosen: list[str]) -> list[tuple[str, str]]:
        """Return colour and dash of each setting. Methods keep their looks; where two of one look
        are chosen, all take the colours of the palette in turn."""
        looks = [style.METHODS.get(look(self.groups[label][0].config)) for label in chosen]
        if None not in looks and len(set(looks)) == len(looks):
            return [(colour, dashes(dash)) for _, colour, dash in looks]
        turns = (divmod(i, len(PALETTE)) for i in range(len(chosen)))
        return [(PALETTE[place], TURNS[turn % len(TURNS)]) for turn, place in turns]

    def _table(self, chosen: list[str]) -> str:
        """Write mean and half width of the interval over seeds; a head shows its definition."""
        if not chosen:
            return "Choose at least one row of the list."
        said = {name: escape(definition(name)) for name in DEFINED}
        heads = "".join(f'<th {CELL} title="{words}"><abbr {ABBR}>{name}</abbr></th>'
                        for name, words in said.items())
        rows = ""
        for label in chosen:
            cells = "".join(f"<td {CELL}>{self._cell(label, name)}</td>" for name in DEFINED)
            rows += f'<tr><td style="text-align:left">{escape(label)}</td>{cells}</tr>'
        listed = "".join(f"<li><b>{name}</b>: {words}</li>" for name, words in said.items())
        return (f"<table><tr><th></th>{heads}</tr>{rows}</table><details><summary>What the columns "
                f"are</summary><ul>{listed}</ul></details>")

    def _cell(self, label: str, name: str) -> str:
        runs = self.groups[label]
        found = interval(self.scores.loc[[run.id for run in runs], name].tolist())
        if np.isnan(found.mean):
            return "–"
        half = f" ± {found.half_width:.1f}" if len(runs) > 1 else ""
        return f"{found.mean:.1f}".replace("-", "−") + half


def _pale(colour: str) -> str:
    red, green, blue = bytes.fromhex(colour[1:])
    return f"rgba({red},{green},{blue},0.15)"
