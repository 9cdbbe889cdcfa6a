"""Controls, and views that are only controls: lists and sliders that choose what is shown."""
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape

import anywidget
import ipywidgets as ipw
from IPython import get_ipython
from IPython.display import display
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from clstudy.analysis import design_space
from clstudy.runs.run import Run
from clstudy.utils.paths import headless
from clstudy.widgets.common import card

WHOLE = {"description_width": "initial"}  # else long words before a slider are cut
PREPARED = 40  # things that are drawn before they are asked for
UPLOADED = -1  # the value of the reader's own picture in a list of pictures


class Keys(anywidget.AnyWidget):
    """Shows nothing. It marks what gets the focus in the box around it, so that keys pressed there
    stay there: otherwise JupyterLab in command mode takes the arrow keys from a list in an output,
    to walk through the cells."""
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
    """Make a whole widget: its parts one above the other, and keys that reach its lists."""
    return ipw.VBox([*parts, Keys()])


def row(*parts: ipw.Widget, **layout: str) -> ipw.HBox:
    """Put controls side by side; a narrow page breaks the row."""
    return ipw.HBox(parts, layout=ipw.Layout(flex_flow="row wrap", **layout))


_FILLING: set[ipw.Widget] = set()  # controls that `offer` fills now


def watch(controls: Iterable[ipw.Widget], draw: Callable[[], None]) -> None:
    """Draw again whenever one of the controls has a new value."""
    for control in controls:
        control.observe(lambda change: change.owner in _FILLING or draw(), "value")


def offer(control: ipw.Widget, options: Sequence, value: object) -> None:
    """Give a list new choices and choose one, without a call of what `watch` set.

    In one message: between two, the page would look for the old choice in the new list."""
    _FILLING.add(control)
    try:
        with control.hold_sync():
            control.options = options
            control.value = value
    finally:
        _FILLING.discard(control)


def read_picture(content: bytes | memoryview, size: int) -> UInt8[Tensor, "3 size size"]:
    """Read an image file of any kind that Pillow knows: on white, its middle square, resized.

    ValueError: it is no picture."""
    try:
        with Image.open(io.BytesIO(bytes(content))) as file:
            image = file.convert("RGBA")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"this file is no picture that can be read: {error}") from error
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return pil_to_tensor(ImageOps.fit(paper.convert("RGB"), (size, size), Image.BICUBIC))


class PictureChooser:
    """A list of pictures, and a button that adds one from a file.

    changed: called after a file was added. fault: shows why a file is no picture."""

    def __init__(self, images: Tensor, names: Sequence[str], changed: Callable[[], None],
                 fault: ipw.HTML):
        self.images, self.changed, self.fault, self.own = images, changed, fault, None
        self.list = ipw.Dropdown(options=[(name, i) for i, name in enumerate(names)],
                                 description="picture")
        self.upload = ipw.FileUpload(accept="image/*", description="your own picture",
                                     layout=ipw.Layout(width="max-content"))
        self.upload.observe(self._add, "value")

    @property
    def image(self) -> UInt8[Tensor, "3 height width"]:
        """The picture that is chosen."""
        return self.own if self.list.value == UPLOADED else self.images[self.list.value]

    def _add(self, change: Mapping) -> None:
        if not self.upload.value:
            return
        file = self.upload.value[-1]
        try:
            self.own = read_picture(file["content"], max(self.images.shape[-1], 64))
        except ValueError as error:
            self.fault.value = card(str(error))
            return
        options = [one for one in self.list.options if one[1] != UPLOADED]
        offer(self.list, [*options, (file["name"], UPLOADED)], UPLOADED)
        self.changed()


def chooser(groups: Mapping[tuple[str, float], object], names: Sequence[str],
            draw: Callable) -> object:
    """Walk through groups of things: a list of the first parts of the keys, a slider over the
    second parts. `draw(groups[key])` is shown. names: what the two parts are called.

    Headless: what is drawn of the first. (There an `Output` makes nbclient send messages while it
    waits for the cell's reply; a second handle on the socket can swallow the reply, and the
    notebook hangs.)"""
    if headless():
        kind = next(one for one, _ in groups)
        return draw(groups[kind, min(two for one, two in groups if one == kind)])

    @cache
    def drawn(*key):
        shell, what = get_ipython(), draw(groups[key])
        return shell.display_formatter.format(what) if shell else ({"text/plain": repr(what)}, {})

    for key in list(groups)[:PREPARED]:  # a figure takes longer than a reader likes to wait
        drawn(*key)
    kinds = list(dict.fromkeys(one for one, _ in groups))
    first = ipw.Dropdown(options=kinds, description=names[0])
    second = ipw.SelectionSlider(options=[0], description=names[1], continuous_update=False,
                                 style=WHOLE)
    shown = ipw.Output()

    def fill(change=None) -> None:
        second.options = sorted(two for one, two in groups if one == first.value)

    def show() -> None:
        if (first.value, second.value) in groups:  # not while the slider is filled
            data, metadata = drawn(first.value, second.value)
            with shown:
                shown.clear_output(wait=True)
                display(data, metadata=metadata, raw=True)

    fill()
    show()
    first.observe(fill, "value")
    watch([first, second], show)
    return stack(ipw.HBox([first, second]), shown)


def map_walker(runs: Sequence[Run] = (), names: Sequence[str] = ("A_last",),
               **start: str) -> ipw.Widget:
    """Choose a point of the map by four lists: who published it, its objective, how to run it, and
    what `runs` gave there in the metrics `names` (`design_space.describe`).

    start: the choices to begin with."""
    lists = {
        name: ipw.Dropdown(options=values, value=start.get(name, values[0]),
                           description=name.replace("_", " "), style=WHOLE)
        for name, values in design_space.CHOICES.items()
    }
    shown = ipw.HTML()

    def draw() -> None:
        choices = {name: one.value for name, one in lists.items()}
        text = escape(design_space.describe(choices, runs, names))
        shown.value = card(f'<pre style="margin:0">{text}</pre>')

    watch(lists.values(), draw)
    draw()
    controls = list(lists.values())
    return stack(ipw.HBox(controls[:2]), ipw.HBox(controls[2:]), shown)
