"""What the widgets share: figures that change in place, cards with pictures, and the palette.

Cards and figures are white, so that they read the same in a light and in a dark theme."""
import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from clstudy.plots.style import PALETTE

Shown = ipw.Widget | Figure
INK, PAPER = "#222222", "#ffffff"
BLUE, RED, GREEN, PINK = PALETTE[:4]
FORCES = {"attraction": GREEN, "repulsion": PINK, "sum": INK}
CARD = f"background:{PAPER};color:{INK};padding:6px 10px;font:13px/1.45 sans-serif;overflow-x:auto"
SIZE = 64  # pixels of a picture on a card




def panels(rows: int = 1, columns: int = 1, height: int = 360, width: int = 900,
           layout: Mapping | None = None, **options) -> go.FigureWidget:
    """Make a figure that can be changed in place. options: of plotly's `make_subplots`."""
    figure = go.FigureWidget(make_subplots(rows, columns, **options))
    font = {"family": "DejaVu Sans, Verdana, sans-serif", "size": 12, "color": INK}
    figure.update_layout(
        template="simple_white", paper_bgcolor=PAPER, plot_bgcolor=PAPER, colorway=PALETTE,
        font=font, margin={"l": 60, "r": 20, "t": 40, "b": 50}, height=height, width=width,
        hoverlabel={"align": "left"})
    figure.update_annotations(font_size=13)
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(exponentformat="none")  # 0.0002, not 200µ
    figure.update_layout(layout or {})
    figure._config = figure._config | {"displaylogo": False}
    return figure


def redraw(figure: go.FigureWidget, traces: Sequence, values: Mapping[str, Sequence],
           layout: Mapping | None = None) -> None:
    """Change properties of some traces, and the layout, in one message.

    values: property → one value for each trace. (Not `batch_update`: it sends only what differs,
    and where that is not the same for all traces, plotly 7 takes the rest for removed.)"""
    places = {trace.uid: place for place, trace in enumerate(figure.data)}
    sent = {name: [np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
                   for value in each] for name, each in values.items()}  # other arrays are refused
    figure.plotly_update(sent, dict(layout or {}), [places[trace.uid] for trace in traces])


def set_traces(figure: go.FigureWidget, traces: Sequence[Mapping]) -> bool:
    """Give a figure these traces if it has another number of them; return whether it did."""
    if len(figure.data) == len(traces):
        return False
    figure.data = []
    if traces:
        figure.add_traces(list(traces))
    return True


def shape(kind: str, colour: str = INK, width: float = 1.5, **place) -> dict:
    """Return a plotly shape without a filling: the template would fill it half black."""
    return {"type": kind, "line": {"color": colour, "width": width}, "opacity": 1,
            "fillcolor": "rgba(0,0,0,0)", "x0": 0, "x1": 0, "y0": 0, "y1": 1} | place


def dashes(lengths: Sequence[float] | str) -> str:
    """Write the dash of a look of `plots.style` as plotly does."""
    return ",".join(f"{2 * length:g}px" for length in lengths) if lengths else "solid"


def card(*parts: str) -> str:
    """Put HTML on a white card."""
    return f'<div style="{CARD}">{"".join(parts)}</div>'


def picture(image: UInt8[np.ndarray, "3 height width"], words: str, title: str = "") -> str:
    """Write an image as HTML with words under it. title: shown on hover."""
    file = io.BytesIO()
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    data, title = base64.b64encode(file.getvalue()).decode(), escape(title or words)
    style = (f"display:inline-block;vertical-align:top;width:{SIZE + 32}px;margin:3px;"
             "text-align:center;font-size:11px;line-height:1.25")
    return (f'<figure style="{style}" title="{title}"><img src="data:image/png;base64,{data}" '
            f'width="{SIZE}" height="{SIZE}" alt="{title}">'
            f"<figcaption>{escape(words)}</figcaption></figure>")


def gallery(images: UInt8[Tensor, "images 3 height width"], words: Iterable[str],
            titles: Iterable[str] | None = None) -> str:
    """Put pictures side by side, as many to a line as fit."""
    words = list(words)
    rows = zip(images.cpu().numpy(), words, words if titles is None else titles, strict=True)
    return "".join(picture(*row) for row in rows)
