"""What the widgets share: the static twin of a headless run, white cards that read the same in a
light and in a dark theme, one palette (that of `plots`), pictures as HTML."""
import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import anywidget
import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from clstudy.plots.style import PALETTE
from clstudy.utils.paths import headless as headless

Shown = ipw.Widget | Figure
WHOLE = {"description_width": "initial"}  # else long words before a slider are cut
INK, PAPER, FAINT = "#222222", "#ffffff", "#8a8a8a"
BLUE, RED, GREEN, PINK = PALETTE[:4]
ARROWS = {"attraction": (GREEN, 7), "repulsion": (PINK, 7),
          "sum": (INK, 2)}  # width: the sum lies on the others
CLEAR = {"opacity": 1,
         "fillcolor": "rgba(0,0,0,0)"}  # of a shape: the template fills them half black
CARD = f"background:{PAPER};color:{INK};padding:6px 10px;font:13px/1.45 sans-serif;overflow-x:auto"
SIZE = 64  # pixels of a picture on a card


class Keys(anywidget.AnyWidget):
    """Shows nothing. It marks what gets the focus in the box around it, so that keys pressed there
    stay there: JupyterLab in command mode takes the arrow keys from a list in an output (to walk
    through the cells) otherwise."""
    _esm = """export default { render({ el }) {
        el.style.display = "none";
        const mark = event => event.target.setAttribute("data-lm-suppress-shortcuts", "true");
        const find = () => {
            const box = el.closest(".widget-vbox");
            if (box) box.addEventListener("focusin", mark); else requestAnimationFrame(find);
        };
        find();
    } }"""


def stack(*parts: ipw.Widget) -> ipw.VBox:
    """A whole widget: its parts one above the other, and keys that reach its lists."""
    return ipw.VBox([*parts, Keys()])


def panels(rows: int = 1, columns: int = 1, height: int = 360, width: int = 900,
           layout: Mapping | None = None, **options) -> go.FigureWidget:
    """A figure of so many panels that can be changed in place. options: of plotly's
    `make_subplots`."""
    figure = go.FigureWidget(make_subplots(rows, columns, **options))
    figure.update_layout(
        template="simple_white", paper_bgcolor=PAPER, plot_bgcolor=PAPER, colorway=PALETTE, font={
            "family": "DejaVu Sans, Verdana, sans-serif", "size": 12, "color": INK
        }, margin={"l": 60, "r": 20, "t": 40, "b": 50}, height=height, width=width,
        hoverlabel={"align": "left"})
    figure.update_annotations(font_size=13)
    figure.update_xaxes(exponentformat="none").update_yaxes(
        exponentformat="none")  # 0.0002, not 200µ
    figure.update_layout(layout or {})
    figure._config = figure._config | {"displaylogo": False}
    return figure


def redraw(figure: go.FigureWidget, traces: Sequence, values: Mapping[str, Sequence],
           layout: Mapping | None = None) -> None:
    """Change the same properties of some traces, and the layout, in one message. values: property →
    one per trace.

    Not `batch_update`: it sends only what differs, and where that is not the same for all traces,
    the page of plotly 7 takes the rest for removed (bars lost their names)."""
    places = {trace.uid: place for place, trace in enumerate(figure.data)}
    figure.plotly_update({name: list(each) for name, each in values.items()}, dict(layout or {}),
                         [places[trace.uid] for trace in traces])


def dashes(lengths: Sequence[float] | str) -> str:
    """The dash of one of `plots.LOOKS`, as plotly writes it."""
    return ",".join(f"{2 * length:g}px" for length in lengths) if lengths else "solid"


def card(*parts: str) -> str:
    return f'<div style="{CARD}">{"".join(parts)}</div>'


def picture(image: UInt8[np.ndarray, "3 height width"], words: str, title: str = "",
            size: int = SIZE) -> str:
    """An image with words under it. title: what is said on hover."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
        file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    said = escape(title or words)
    return (
        f'<figure style="display:inline-block;vertical-align:top;width:{size + 32}px;margin:3px;text-align:center;'
        f'font-size:11px;line-height:1.25" title="{said}"><img src="data:image/png;base64,{data}" width="{size}" '
        f'height="{size}" alt="{said}"><figcaption>{escape(words)}</figcaption></figure>')


def gallery(images: UInt8[Tensor, "images 3 height width"], words: Iterable[str],
            titles: Iterable[str] | None = None) -> str:
    """Pictures side by side, as many to a line as fit."""
    words, arrays = list(words), images.cpu().numpy()
    titles = list(titles) if titles is not None else words
    return "".join(picture(*one) for one in zip(arrays, words, titles, strict=True))


_SILENT: set[ipw.Widget] = set()  # controls that are being filled


def watch(controls: Iterable[ipw.Widget], draw: Callable[[], None]) -> None:
    """Draw again whenever one of the controls has a new value."""
    for control in controls:
        control.observe(lambda change: change.owner in _SILENT or draw(), "value")


def offer(control: ipw.Widget, options: Sequence, value: object) -> None:
    """New choices for a list, and the one chosen; who watches it is not told.

    In one message: between two, the page would look for the old choice in the new list."""
    _SILENT.add(control)
    try:
        with control.hold_sync():
            control.options = options
            control.value = value
    finally:
        _SILENT.discard(control)
