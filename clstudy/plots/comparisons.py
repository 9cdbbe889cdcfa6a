"""Figures of comparisons: paired differences, in a row each or over a setting; two metrics against
each other over strengths; a metric over the size of a buffer.

Data first, then the names of columns. `title` is the finding, written over the figure; lines are
labelled where they are. Intervals much longer than what lies between the points end in an arrow."""
from collections.abc import Collection, Iterable, Mapping, Sequence
from textwrap import wrap
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from clstudy.analysis import tables
from clstudy.analysis.verdicts import FOUND
from clstudy.plots import rehearsal
from clstudy.plots.accuracy import Roles, _look, roles
from clstudy.plots.style import MARKERS, ONE_AND_A_HALF, TWO_COLUMNS, Look, _figure
from clstudy.utils.validation import choose

INK, PALE, BAND = "#222222", "#9A9A9A", "#EFEFEF"
SMALL = 8  # points, of what stands in a panel; nothing is smaller
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
Labels = Mapping[Any, str]
NONE: Labels = MappingProxyType({})


def differences(found: pd.DataFrame, each: pd.DataFrame | None = None, x: str = "difference",
                y: Roles | None = None, panel: Roles | None = None, labels: Labels | None = None,
                title: str = "", own_rows: bool = False) -> Figure:
    """Draw a row per comparison: the difference, its 95 % interval, a dot for each pair, and the
    verdict at the right. The grey band holds what counts as equal; hollow is neither higher nor
    lower.

    found: of `compare`. each: of `tables.paired`, with the columns of y and panel. y, panel: None
    takes the settings that vary, and the metric, where there are several and y has it not. labels:
    what to call a value. own_rows: panels stand one below the other, each with the rows that it
    has. ValueError: a column that a table does not have."""
    labels = labels or NONE
    several = "metric" in found and found.metric.nunique() > 1
    panel = panel or ("metric" if several and "metric" not in np.atleast_1d(y or []) else None)
    y = y or _varying(found, panel)
    table, dots = (_placed(one, labels, x, y=y, panel=panel) for one in (found, each))
    every, names = (list(dict.fromkeys(table[name])) for name in ("_y", "_panel"))
    across = 1 if own_rows else min(2, len(names))
    down = -(-len(names) // across)
    here = [list(dict.fromkeys(table["_y"][table["_panel"] == name])) if own_rows else every
            for name in names]
    heights = [0.75 + 0.27 * len(rows) for rows in here[::across]]
    figure, axes = _figure(TWO_COLUMNS, sum(heights), down, across, sharey=not own_rows,
                           height_ratios=heights)
    for axis in axes.flat[len(names):]:
        axis.axis("off")
    for axis, name, rows in zip(axes.flat, names, here, strict=False):
        mine, points = (one[one["_panel"] == name] for one in (table, dots))
        limits = _limits(mine, points, x)
        _zero(axis.axvspan, axis.axvline, mine)
        for row in mine.to_dict("records"):
            place = rows.index(row["_y"])
            values = points[x][points["_y"] == row["_y"]]
            axis.plot(values, _beside(place + 0.24, len(values)), "o", ms=2.4, mew=0, color=PALE)
            _interval(axis, row, x, place, limits, INK, upright=False)
            _verdict(axis, row, place)
        axis.set(xlim=limits, xlabel=_against(mine, labels, x))
        axis.set_title(name, loc="left")
        axis.set_yticks(range(len(rows)), rows, linespacing=0.9)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    return _finished(figure, title)


def over(found: pd.DataFrame, x: str = "lr", panel: Roles | None = None,
         each: pd.DataFrame | None = None, y: str = "difference", labels: Labels | None = None,
         xlabel: str = "", title: str = "") -> Figure:
    """Draw differences over a numeric setting, a panel for each value of `panel`: 95 % intervals, a
    dot for each pair, the grey band of what counts as equal. Filled is higher or lower, hollow
    neither.

    found: of `compare`; several values of its setting are a line each. each: of `tables.paired`.
    The axis is logarithmic; with a value of zero the values stand at equal distances. ValueError: a
    column that a table does not have, values of x that are no numbers."""
    labels = labels or NONE
    between = _between(found)
    table, dots = (_placed(one, labels, x, y, panel=panel, line=between) for one in (found, each))
    places = _places(table[x], f"over: {x}")
    names, lines = (list(dict.fromkeys(table[name])) for name in ("_panel", "_line"))
    limits = _limits(table, dots, y)
    figure, axes = _figure(TWO_COLUMNS, 2.5, 1, len(names), sharey=True)
    step = 0.05 * (max(places.values()) - min(places.values()) or 1)
    ends = []
    for axis, name in zip(axes[0], names, strict=True):
        mine, points = (one[one["_panel"] == name] for one in (table, dots))
        _zero(axis.axhspan, axis.axhline, mine)
        for i, line in enumerate(lines):
            _, colour, dash = _look(line, i) if len(lines) > 1 else ("", INK, "")
            rows, values = (one[one["_line"] == line] for one in (mine, points))
            shift = (i - (len(lines) - 1) / 2) * step
            at = [places[value] + shift for value in sorted(rows[x])]
            axis.plot(at, rows.sort_values(x)[y], color=colour, lw=0.9, zorder=2,
                      dashes=dash or (None, None))
            for row in rows.to_dict("records"):
                _column(axis, values[y][values[x] == row[x]], places[row[x]] + shift, step, colour)
                _interval(axis, row, y, places[row[x]] + shift, limits, colour, upright=True)
            if len(lines) > 1 and len(rows) and name == names[-1]:
                ends.append((at[-1], rows.sort_values(x)[y].iloc[-1], _called(line, labels), colour))
        axis.set(ylim=limits)
        axis.set_title(name, loc="left")
        here = sorted(mine[x].unique())
        axis.set_xticks([places[value] for value in here], [_number(value) for value in here])
        axis.set_xlabel(xlabel or ("learning rate" if x == "lr" else x))
        axis.margins(x=0.12)
    axes[0, 0].set_ylabel(_against(table, labels, y))
    _finished(figure, title)
    _at_right(figure, axes[0, -1], ends)
    return figure


def frontier(table: pd.DataFrame, x: str, y: str, line: Roles = "method",
             point: str | None = None, highlight: Collection[str] = (), xlabel: str = "",
             ylabel: str = "", labels: Labels | None = None, title: str = "") -> Figure:
    """Draw two metrics against each other, a line per method through its strengths; above and to
    the right is better, so methods are compared at their best. The smallest and the largest
    strength stand beside a line. A method without strengths (no value of `point`) is one point.

    table: of `scores`, a row per run, of which means with 95 % intervals over seeds are drawn; or of
    `tables.pairs`, with x_half and y_half. highlight: the lines to tell apart first; the others are
    thin. labels: what to call a line. ValueError: a column that the table does not have."""
    labels = labels or NONE
    table = roles(table, x=x, y=y, _line=line, _point=point or line)
    if point is None:
        table["_point"] = np.nan
    if not {"x_half", "y_half"} <= set(table):
        table = tables.pairs(table, "x", "y", ["_line", "_point"])
    figure, axes = _figure(TWO_COLUMNS, 3.8)
    axis, words = axes[0, 0], []
    for i, name in enumerate(dict.fromkeys(table["_line"])):
        rows = table[table["_line"] == name].sort_values("_point")
        _, colour, dash = _shown(name, i)
        strong = not highlight or name in highlight
        single = len(rows) == 1
        axis.errorbar(rows.x, rows.y, rows.y_half.fillna(0), rows.x_half.fillna(0), color=colour,
                      marker="*" if single else MARKERS[dash], ms=9 if single else 4,
                      lw=1.6 if strong else 0.7, alpha=1 if strong else 0.6, elinewidth=0.5,
                      dashes=dash or (None, None), zorder=3 if strong else 2)
        words.append((_called(name, labels), colour, "bold" if highlight and strong else
                      "normal", rows[["x", "y"]].to_numpy(dtype=float)))
        words += [] if single else [(_number(row["_point"]), colour, "normal",
                                     np.array([[row["x"], row["y"]]]))
                                    for row in rows.iloc[[0, -1]].to_dict("records")]
    axis.margins(0.12)
    axis.set(xlabel=xlabel or x, ylabel=ylabel or y)
    _finished(figure, title)
    _beside_points(figure, axis, sorted(words, key=lambda word: len(word[3]) == 1))
    return figure


def buffers(table: pd.DataFrame, x: str = "size", y: str = "A_last", hue: str = "method",
            panel: Roles | None = None, pair: str = "seed", xlabel: str = "buffer, images a class",
            ylabel: str = "", labels: Labels | None = None, title: str = "") -> Figure:
    """Draw a metric over the sizes of a buffer, a line per method: means, and 95 % intervals within
    seeds (`tables.within`), which show what pairs show and not how far seeds are apart. Sizes stand
    at equal distances. What has no buffer (x is missing) is a line across, without an interval.

    table: of `scores`, a row per run. pair: the column of seeds. ValueError: a column that the
    table does not have; a seed that lacks a group."""
    labels = labels or NONE
    for role, name in {"x": x, "y": y, "hue": hue, "pair": pair}.items():
        choose(f"{role}: column", name, table.columns)
    table = _placed(table, labels, panel=panel)
    sizes = sorted(table[x].dropna().unique())
    names = list(dict.fromkeys(table["_panel"]))
    figure, axes = _figure(TWO_COLUMNS if len(names) > 1 else ONE_AND_A_HALF, 2.7, 1, len(names))
    labelled = []
    for axis, name in zip(axes[0], names, strict=True):
        ends = _over_sizes(axis, table[table["_panel"] == name], x, y, hue, pair, sizes)
        labelled.append((axis, [(at, value, _called(method, labels), colour)
                                for method, at, value, colour in ends]))
        axis.set_xticks(range(len(sizes)), [_number(size) for size in sizes])
        axis.set(xlabel=xlabel, ylabel=ylabel or f"{labels.get(y, y)}, %",
                 xlim=(-0.3, len(sizes) - 0.75))
        axis.set_title(name, loc="left")
    _finished(figure, title)
    for axis, ends in labelled:
        _at_right(figure, axis, ends)
    return figure


def _over_sizes(axis: Axes, table: pd.DataFrame, x: str, y: str, hue: str, pair: str,
                sizes: Sequence[float]) -> list[tuple[str, float, float, str]]:
    """Draw the lines of `buffers` in one panel; return for each its method, the place and the
    value of its end, and its colour."""
    spread, ends = tables.within(table[table[x].notna()], y, [hue, x], pair), []
    methods = list(dict.fromkeys(table[hue]))
    for i, method in enumerate(methods):
        rows, (_, colour, dash) = spread[spread[hue] == method], _shown(method, i)
        if rows.empty:
            at, value = len(sizes) - 1, table[y][table[hue] == method].mean()
            axis.axhline(value, color=colour, lw=1, ls=":", zorder=1)
        else:
            shift = (i - (len(methods) - 1) / 2) * 0.06  # bars do not hide each other
            places = [sizes.index(size) + shift for size in rows[x]]
            axis.errorbar(places, rows["mean"], rows.half_width, color=colour, lw=1.2, ms=4,
                          elinewidth=0.8, marker=MARKERS[dash], dashes=dash or (None, None))
            at, value = places[-1], rows["mean"].iloc[-1]
        ends.append((method, at, value, colour))
    return ends


# ---- columns and words


def _between(found: pd.DataFrame) -> str:
    """Return the setting that a table of `compare` compares: the column before base."""
    choose("comparison: column", "base", found.columns)
    return found.columns[found.columns.get_loc("base") - 1]


def _varying(found: pd.DataFrame, panel: Roles | None) -> list[str]:
    """Return the settings of a table of `compare` that differ between its rows, without those of
    the panels; if none does, what is compared."""
    taken = [panel] if isinstance(panel, str) else list(panel or [])
    settings = [name for name in found if name not in FOUND and name not in taken]
    return [name for name in settings if found[name].nunique(dropna=False) > 1] or settings[-1:]


def _placed(table: pd.DataFrame | None, labels: Labels, *needed: str, **places: Roles | None
            ) -> pd.DataFrame:
    """Return the table with the words of each role in a column of its own ("_panel"): the called
    values of its columns. No table: no rows."""
    if table is None:
        return pd.DataFrame(columns=[*needed, *(f"_{role}" for role in places)])
    for name in needed:
        choose("column", name, table.columns)
    for role, names in places.items():
        several = [names] if isinstance(names, str) else list(names or [])
        for name in several:
            choose(f"{role}: column", name, table.columns)
        raw = role == "line"  # its look is found by its value
        words = [", ".join(str(value) if raw else _called(value, labels) for value in row
                           if not pd.isna(value))
                 for row in table[several].itertuples(index=False, name=None)]
        table = table.assign(**{f"_{role}": words or ""})
    return table


def _shown(label: str, place: int) -> Look:
    return rehearsal.LOOKS.get(label) or _look(label, place)


def _called(value: Any, labels: Labels) -> str:
    """Return what to call a value: as the reader says, else the title of its look, else itself."""
    if value in labels:
        return labels[value]
    return _shown(value, 0)[0] if isinstance(value, str) else _number(value)


def _number(value: Any) -> str:
    """Write 0.0001 as 1e-4, 0.5 as 0.5."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    return f"{value:g}" if not value or abs(value) >= 0.01 else \
        np.format_float_scientific(value, trim="-", exp_digits=1)


def _against(found: pd.DataFrame, labels: Labels, x: str) -> str:
    """Write what is drawn: "A_last, SIT − fine-tuning, points", as far as it is one."""
    sides = [found[name].unique() for name in (_between(found), "base")] if "base" in found else []
    said = " − ".join(_called(side[0], labels) for side in sides) if all(
        len(side) == 1 for side in sides) else x
    one = found.metric.unique() if "metric" in found else []
    return f"{labels.get(one[0], one[0])}: {said}, points" if len(one) == 1 else f"{said}, points"


def _finished(figure: Figure, title: str) -> Figure:
    """Write the finding over the figure, at the left, in lines that fit."""
    if title:
        fits = int(13 * figure.get_figwidth())
        figure.suptitle("\n".join(wrap(title, fits)), x=0.01, ha="left", fontsize=9,
                        fontweight="bold")
    for axis in figure.axes:
        axis.tick_params(labelsize=SMALL)
    return figure


# ---- marks


def _zero(span, line, rows: pd.DataFrame) -> None:
    """Draw the line at zero, and the band of what counts as equal."""
    margin = rows.get("equal_within", pd.Series([0.0])).max()
    span(-margin, margin, color=BAND, lw=0, zorder=0)
    line(0, color="0.35", lw=0.8, zorder=1)


def _limits(rows: pd.DataFrame, points: pd.DataFrame, x: str) -> tuple[float, float]:
    """Return limits that hold all points and zero, and of the intervals what reaches no further
    than the range of the points beyond them."""
    low, high = (rows.get(name, rows[x]).astype(float) for name in ("low", "high"))
    margin = rows.get("equal_within", pd.Series([0.0])).max()
    values = np.array([*rows[x], *points[x], -margin, margin, 0], dtype=float)
    least, most = np.nanmin(values), np.nanmax(values)
    reach = max(most - least, 1e-9)
    ends = (np.nanmin([*low, least]), np.nanmax([*high, most]))
    room = 0.06 * reach
    return max(ends[0], least - 0.6 * reach) - room, min(ends[1], most + 0.6 * reach) + room


def _interval(axis: Axes, row: Mapping[str, Any], x: str, place: float,
              limits: tuple[float, float], colour: str, upright: bool) -> None:
    """Draw a difference and its interval, cut at the limits with an arrow."""
    value, low, high = (row[x], row.get("low", np.nan), row.get("high", np.nan))

    def put(values, marks: str, **more) -> None:
        values = np.atleast_1d(values)
        pair = np.full(len(values), place), values
        axis.plot(*(pair if upright else pair[::-1]), marks, color=colour, clip_on=False, **more)

    if not np.isnan(low):
        put(np.clip([low, high], *limits), "-", lw=1.3, zorder=3)
        arrows = "v^" if upright else "<>"
        for end, limit, arrow in zip((low, high), limits, arrows, strict=True):
            if end < limits[0] or end > limits[1]:
                put(limit, arrow, ms=4.5, mew=0, zorder=4)
    apart = str(row.get("verdict", "higher")).startswith(("higher", "lower"))
    put(value, "o", ms=4.8, mfc=colour if apart else "white", mew=1.1, zorder=5)


def _column(axis: Axes, values: pd.Series, place: float, step: float, colour: str) -> None:
    """Draw the dots of pairs beside their difference."""
    axis.plot(_beside(place + 0.4 * step, len(values), 0.15 * step), values, "o", ms=2.4, mew=0,
              color=PALE if colour == INK else colour, alpha=0.6)


def _verdict(axis: Axes, row: Mapping[str, Any], place: float) -> None:
    """Write the verdict at the right edge."""
    axis.annotate("\n".join(wrap(row.get("verdict", ""), 16)), (1, place),
                  xycoords=axis.get_yaxis_transform(), xytext=(5, 0), fontsize=SMALL,
                  textcoords="offset points", va="center", linespacing=0.9)


def _beside(place: float, count: int, width: float = 0.03) -> np.ndarray:
    """Return places of dots that would hide each other, by turns on three tracks."""
    return place + width * (np.arange(count) % 3 - 1)


def _places(values: Iterable, name: str) -> dict[float, float]:
    """Return where each value stands: at its logarithm, or, with a zero, in its order."""
    values = pd.Series(values).drop_duplicates().sort_values()
    try:
        numbers = values.astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={values.iloc[0]!r}: must be numbers, as a learning rate or a "
                         "size") from None
    where = np.log10(numbers) if (numbers > 0).all() else np.arange(len(values))
    return dict(zip(values, np.asarray(where, dtype=float), strict=True))


# ---- labels


def _at_right(figure: Figure, axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write labels at the right of a panel, each at the height of its line's end as far as they do
    not overlap, with a hair line from the end. ends: x, y, words, colour."""
    if not ends:
        return
    figure.draw_without_rendering()
    low, high = axis.get_ylim()
    gap = 1.25 * SMALL / 72 * figure.dpi * (high - low) / axis.get_window_extent().height
    ends = sorted(ends, key=lambda end: end[1])
    steps = gap * np.arange(len(ends))
    heights = isotonic_regression(np.array([end[1] for end in ends]) - steps).x + steps
    for (x, y, words, colour), height in zip(ends, heights, strict=True):
        axis.annotate(words, (x, y), xycoords="data", xytext=(1.03, height), fontsize=SMALL,
                      textcoords=axis.get_yaxis_transform(), color=colour, va="center",
                      annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkA": 0,
                                  "shrinkB": 3, "relpos": (0, 0.5)})


def _beside_points(figure: Figure, axis: Axes,
                   words: Sequence[tuple[str, str, str, np.ndarray]]) -> None:
    """Write labels beside points of their lines where they hide least. words: text, colour, weight,
    points (N, 2); the first are placed first."""
    figure.draw_without_rendering()
    paths = [axis.transData.transform(np.column_stack(line.get_data()).astype(float))
             for line in axis.lines]
    bars = [bar for lines in axis.collections for bar in lines.get_segments()]
    paths += [axis.transData.transform(bar) for bar in bars]
    taken = np.concatenate([_dense(path) for path in paths])
    inside, placed = axis.get_window_extent(), []
    for text, colour, weight, points in words:
        shown = axis.text(0, 0, text, fontsize=SMALL, color=colour, fontweight=weight, zorder=6,
                          path_effects=[withStroke(linewidth=2, foreground="white")])
        width, height = shown.get_window_extent().size
        boxes = [Bbox.from_bounds(px + far * dx + (dx - 1) * width / 2,
                                  py + far * dy + (dy - 1) * height / 2, width, height)
                 for px, py in axis.transData.transform(points[::-1]) for far in (7, 14, 24)
                 for dx, dy in AROUND]
        costs = [3 * box.count_contains(taken) + 100 * box.count_overlaps(placed)
                 + 1000 * (not inside.contains(*box.min) or not inside.contains(*box.max))
                 + (i // len(AROUND) % 3) / 2 for i, box in enumerate(boxes)]  # near is better
        best = boxes[int(np.argmin(costs))]
        shown.set_position(axis.transData.inverted().transform(best.min))
        placed.append(best.padded(2))


def _dense(path: np.ndarray) -> np.ndarray:
    """Return points along a path, (N, 2) pixels, a few pixels apart."""
    if len(path) < 2:
        return path
    at = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    along = np.linspace(0, at[-1], 2 + int(at[-1] / 4))
    return np.column_stack([np.interp(along, at, path[:, side]) for side in (0, 1)])
