"""Things to play with in a notebook. Each callback is one call into the model and one into `plots`."""
from collections.abc import Callable, Mapping, Sequence
from html import escape

import ipywidgets as ipw
import numpy as np
import torch
from IPython.display import display
from jaxtyping import UInt8
from torch import Tensor

from . import plots, themap
from .clip import Clip
from .record import Run
from .streams import si_blurry

WHOLE = {"description_width": "initial"}  # else long words before a slider are cut


@torch.inference_mode()
def probabilities(clip: Clip, image: UInt8[Tensor, "3 height width"], texts: Sequence[str]) -> dict[str, float]:
    """What CLIP answers for one picture: the softmax over the texts of s f·t."""
    image_feature = clip.encode_image(image[None].to(clip.device))
    text_features = clip.encode_text(clip.tokenize(list(texts)).to(clip.device))
    values = (clip.scale() * image_feature @ text_features.T).softmax(-1)[0]
    return dict(zip(texts, values.tolist(), strict=True))


def stream_explorer(labels: np.ndarray, seed: int = 0, tasks: int = 5) -> ipw.Widget:
    """Sliders for N (share of disjoint classes) and M (share of blurred images): the stream they make."""
    options = {"continuous_update": False, "min": 0, "max": 100, "step": 10, "style": WHOLE}
    n = ipw.IntSlider(50, description="N, % disjoint", **options)
    m = ipw.IntSlider(10, description="M, % blurred", **options)
    sizes = ipw.Checkbox(True, description="stages of random size")
    number = ipw.IntSlider(seed, 0, 9, description="seed", continuous_update=False)
    shown = ipw.Output()

    def draw(_=None) -> None:
        stages = si_blurry(labels, number.value, tasks=tasks, disjoint_share=n.value, blurry_share=m.value,
                           random_sizes=sizes.value)
        with shown:
            shown.clear_output(wait=True)
            display(plots.arrivals({f"Si-Blurry, N = {n.value}, M = {m.value}, seed {number.value}": (stages, labels)}))

    for control in (n, m, sizes, number):
        control.observe(draw, "value")
    draw()
    return ipw.VBox([ipw.HBox([n, m]), ipw.HBox([sizes, number]), shown])


def chooser(groups: Mapping[tuple[str, float], object], names: Sequence[str], draw: Callable) -> ipw.Widget:
    """Walk through what was made: a list of the first parts of the keys, a slider over the second parts of the one
    chosen. `draw(groups[key])` is shown. names: what the two parts are called."""
    first = ipw.Dropdown(options=list(dict.fromkeys(one for one, _ in groups)), description=names[0])
    second = ipw.SelectionSlider(options=[0], description=names[1], continuous_update=False, style=WHOLE)
    shown = ipw.Output()

    def fill(_=None) -> None:
        second.options = sorted(two for one, two in groups if one == first.value)

    def show(_=None) -> None:
        with shown:
            shown.clear_output(wait=True)
            display(draw(groups[first.value, second.value]))

    fill()
    show()
    first.observe(fill, "value")
    for control in (first, second):
        control.observe(lambda change: (first.value, second.value) in groups and show(), "value")
    return ipw.VBox([ipw.HBox([first, second]), shown])


def playground(clip: Clip, images: UInt8[Tensor, "images 3 height width"], names: Sequence[str],
               texts: Sequence[str]) -> ipw.Widget:
    """Choose a picture, write texts (one a line): the bars follow."""
    picture = ipw.Dropdown(options=[(name, i) for i, name in enumerate(names)], description="picture")
    written = ipw.Textarea("\n".join(texts), description="texts", continuous_update=False, rows=6,
                           layout=ipw.Layout(width="32em"))
    shown = ipw.Output()

    def draw(_=None) -> None:
        lines = list(dict.fromkeys(line.strip() for line in written.value.splitlines() if line.strip()))
        with shown:
            shown.clear_output(wait=True)
            if lines:
                answer = probabilities(clip, images[picture.value], lines)
                display(plots.pictures(images[picture.value][None]), plots.bars(answer, xlabel="probability"))

    for control in (picture, written):
        control.observe(draw, "value")
    draw()
    return ipw.VBox([picture, written, shown])


def map_walker(runs: Sequence[Run] = (), names: Sequence[str] = ("A_last",), **start: str) -> ipw.Widget:
    """Four lists choose a point of the map (`themap.describe`): who published it, its objective, how to run it, and
    what `runs` gave there, in the metrics `names`. start: the choices to begin with."""
    lists = [ipw.Dropdown(options=values, value=start.get(name, values[0]), description=name.replace("_", " "),
                          style=WHOLE) for name, values in themap.CHOICES.items()]
    shown = ipw.HTML()

    def draw(_=None) -> None:
        chosen = dict(zip(themap.CHOICES, (one.value for one in lists), strict=True))
        shown.value = f"<pre>{escape(themap.describe(chosen, runs, names))}</pre>"

    for one in lists:
        one.observe(draw, "value")
    draw()
    return ipw.VBox([ipw.HBox(lists[:2]), ipw.HBox(lists[2:]), shown])
