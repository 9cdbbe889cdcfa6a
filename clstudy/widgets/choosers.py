"""Walks through what was made: lists and sliders that choose, and what is chosen shown."""
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape

import ipywidgets as ipw
from IPython import get_ipython
from IPython.display import display

from clstudy.analysis import design_space
from clstudy.runs.run import Run
from clstudy.widgets.common import WHOLE, card, headless, stack

PREPARED = 40  # things that are drawn before they are asked for


def chooser(groups: Mapping[tuple[str, float], object], names: Sequence[str],
            draw: Callable) -> object:
    """Walk through what was made: a list of the first parts of the keys, a slider over the second
    parts of the one chosen. `draw(groups[key])` is shown. names: what the two parts are called.

    Headless: what is drawn of the first. (An `Output` there would make nbclient send messages while
    it waits for the cell's reply, through a second handle on the socket that can swallow the sign
    of the reply: the notebook hangs.)"""
    if headless():
        kind = next(one for one, _ in groups)
        return draw(groups[kind, min(two for one, two in groups if one == kind)])
    @cache
    def drawn(*key):
        shell, what = get_ipython(), draw(groups[key])
        return shell.display_formatter.format(what) if shell else ({"text/plain": repr(what)}, {})

    for key in list(groups)[:PREPARED]:  # a figure takes longer than a reader likes to wait
        drawn(*key)
    first = ipw.Dropdown(options=list(dict.fromkeys(one for one, _ in groups)),
                         description=names[0])
    second = ipw.SelectionSlider(options=[0], description=names[1], continuous_update=False,
                                 style=WHOLE)
    shown = ipw.Output()

    def fill(_=None) -> None:
        second.options = sorted(two for one, two in groups if one == first.value)

    def show(_=None) -> None:
        data, about = drawn(first.value, second.value)
        with shown:
            shown.clear_output(wait=True)
            display(data, metadata=about, raw=True)

    fill()
    show()
    first.observe(fill, "value")
    for control in (first, second):
        control.observe(lambda change: (first.value, second.value) in groups and show(), "value")
    return stack(ipw.HBox([first, second]), shown)


def map_walker(
        runs: Sequence[Run] = (), names: Sequence[str] = ("A_last", ), **start: str) -> ipw.Widget:
    """Four lists choose a point of the map (`themap.describe`): who published it, its objective,
    how to run it, and what `runs` gave there, in the metrics `names`. start: the choices to begin
    with."""
    lists = [
        ipw.Dropdown(options=values, value=start.get(name, values[0]), description=name.replace(
            "_", " "), style=WHOLE) for name, values in design_space.CHOICES.items()
    ]
    shown = ipw.HTML()

    def draw(_=None) -> None:
        chosen = dict(zip(design_space.CHOICES, (one.value for one in lists), strict=True))
        shown.value = card(
            f'<pre style="margin:0">{escape(design_space.describe(chosen, runs, names))}</pre>')

    for one in lists:
        one.observe(draw, "value")
    draw()
    return stack(ipw.HBox(lists[:2]), ipw.HBox(lists[2:]), shown)
