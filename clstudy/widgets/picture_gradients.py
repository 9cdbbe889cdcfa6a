"""The gradient microscope for a picture of the reader: what one step would do to every text."""
from collections.abc import Sequence

import ipywidgets as ipw
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms.functional import resize

from clstudy.evaluation.features import features, text_features
from clstudy.models.clip import Clip
from clstudy.plots import gradients
from clstudy.utils.paths import headless
from clstudy.widgets.choosers import UPLOADED, WHOLE, PictureChooser, offer, row, stack, watch
from clstudy.widgets.common import FORCES, Shown, card, gallery, panels, redraw
from clstudy.widgets.microscope import NORMS, add_arrows, arrows

LOSSES = {"finetune": "asymmetric: all texts compete",
          "sit": "symmetric: the texts of the batch compete"}
HELP = (
    "<b>Arrows</b>: where a step would move one text. Attraction, by the pictures that match it, "
    "points to the right; repulsion, by all others, stands at its true angle (without attraction "
    "there is no angle: it is drawn to the left); black is their sum. <b>Bars</b>: the lengths of "
    "both, for every text. A text without a picture in the batch is only pushed away by the "
    "asymmetric loss, and left alone by the symmetric one.")
SURE = (
    "<b>{}</b>: the strongest pull of this step is {:.1g}. Among its texts the model is nearly "
    "sure of every picture of the batch, so there is little left to learn (the axes follow the "
    "stronger loss).<br>")


def forces(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"],
           scale: Float[Tensor, ""], target: Int[Tensor, " batch"],
           symmetric: bool = False) -> pd.DataFrame:
    """Return what descent on `losses.match` does to each text, from its gradient in closed form
    (arXiv 2405.15155):

        −∂L/∂t_k = (s/B) Σ_i (1[y_i = k] − p_ik) f_i

    Attraction is the sum over i with y_i = k, repulsion that over all others.
    symmetric: only texts that match an image compete. A row per text: present, and norms of
    attraction, repulsion, gradient."""
    present = torch.zeros(len(text), dtype=torch.bool, device=text.device).scatter(0, target, True)
    logits = scale * image @ text.T
    p = (logits.masked_fill(~present, -torch.inf) if symmetric else logits).softmax(-1)
    own = one_hot(target, len(text)).to(p.dtype)
    pull = scale / len(image) * (own * (1 - p)).T @ image
    push = -scale / len(image) * ((1 - own) * p).T @ image
    norms = [value.norm(dim=1).tolist() for value in (pull, push, pull + push)]
    return pd.DataFrame({"present": present.tolist(), **dict(zip(NORMS, norms, strict=True))})


def picture_microscope(clip: Clip, images: UInt8[Tensor, "images 3 height width"],
                       names: Sequence[str], texts: Sequence[str],
                       rivals: Sequence[str] = ()) -> Shown:
    """Choose a picture or bring your own, say which text is right for it, choose what else is in
    the batch: the pull on every text under the asymmetric and under the symmetric loss.

    names, texts: of the pictures; rivals: more texts, of classes seen before. ValueError: not as
    many names or texts as pictures."""
    if not len(images) == len(names) == len(texts):
        raise ValueError(f"images={len(images)}, names={len(names)}, texts={len(texts)}: there "
                         "must be as many of each")
    if headless():
        some = _Microscope.found(clip.eval(), images[:3], texts[:3], [*texts, *rivals])
        return gradients.anatomy(some, "one step")
    return _Microscope(clip.eval(), images, names, texts, rivals).box


class _Microscope:
    """The controls and the figure."""

    def __init__(self, clip: Clip, images: Tensor, names: Sequence[str], texts: Sequence[str],
                 rivals: Sequence[str]):
        self.clip, self.images, self.texts, self.rivals = clip, images, list(texts), list(rivals)
        self.own = None  # the text of the picture when the arrows were last drawn
        self.seen, self.said, self.fault = ipw.HTML(), ipw.HTML(card(HELP)), ipw.HTML()
        self.pictures = PictureChooser(images, names, self._added, self.fault)
        self.right = ipw.Text(texts[0], description="its text (then Enter)", style=WHOLE,
                              continuous_update=False, layout=ipw.Layout(width="24em"))
        self.others = ipw.SelectMultiple(
            options=[(name, i) for i, name in enumerate(names)],
            value=tuple(range(1, min(3, len(names)))), rows=min(len(names), 6), style=WHOLE,
            description="also in the batch (Ctrl: several)")
        self.name = ipw.Dropdown(options=[], description="arrows of", style=WHOLE,
                                 layout=ipw.Layout(width="24em"))
        self._draw_once()
        watch([self.pictures.list], self._chosen)
        watch([self.right, self.others, self.name], self.draw)
        self.draw()
        left = ipw.VBox([self.pictures.list, self.pictures.upload, self.fault, self.right,
                         self.others, self.name])
        self.box = stack(row(left, self.seen), self.figure, self.said)

    def _draw_once(self) -> None:
        """Draw what stays: for each loss a panel of arrows and one of bars."""
        self.figure = panels(2, 2, 640, 980, vertical_spacing=.16, horizontal_spacing=.08,
                             row_heights=[1, .8], subplot_titles=[*LOSSES.values(), "", ""])
        for column in (1, 2):
            add_arrows(self.figure, column, "%{customdata:.2g}")
        for column in (1, 2):
            for part in NORMS[:2]:
                self.figure.add_bar(
                    marker={"color": FORCES[part]}, name=part, showlegend=False, row=2, col=column,
                    hovertemplate=f"%{{x}}, {part}: %{{customdata:.2g}}<extra></extra>")
        self.figure.update_xaxes(tickangle=-45, row=2)
        self.figure.update_yaxes(title="norm of the pull", row=2, col=1)
        self.figure.update_layout(
            barmode="relative", bargap=.3,
            legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"},
            margin={"t": 90, "b": 140, "l": 80, "autoexpand": False})  # not laid out twice

    def _added(self) -> None:
        """Take the name of the reader's file as the first guess of its text."""
        name, self.fault.value = self.pictures.list.label, ""
        self.right.value = name.rpartition(".")[0].replace("_", " ").replace("-", " ") or name
        self.draw()

    def _chosen(self) -> None:
        if self.pictures.list.value != UPLOADED:
            self.right.value = self.texts[self.pictures.list.value]
        self.draw()

    @staticmethod
    def found(clip: Clip, images: Tensor, own: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
        """Return `forces` of both losses, with columns class and method.

        own: the text of each image; it competes beside `texts`."""
        texts = list(dict.fromkeys([*own, *texts]))
        f, t, scale = features(clip, images), text_features(clip, texts), clip.scale().detach()
        target = torch.tensor([texts.index(one) for one in own], device=f.device)
        tables = [forces(f, t, scale, target, symmetric=method == "sit").assign(
            method=method, **{"class": texts}) for method in LOSSES]
        return pd.concat(tables, ignore_index=True)

    def draw(self) -> None:
        """Draw the batch, and the forces of both losses on its texts."""
        first = self.pictures.image
        others = [i for i in self.others.value if i != self.pictures.list.value]
        size = list(first.shape[1:])
        batch = torch.stack([first, *(resize(self.images[i], size) for i in others)])
        own = [self.right.value.strip() or "?", *(self.texts[i] for i in others)]
        self.table = self.found(self.clip, batch, own, [*self.texts, *self.rivals])
        names = list(dict.fromkeys(self.table["class"]))
        # Arrows of the picture's own text follow it; other arrows stay.
        kept = self.name.value in names and self.name.value != self.own
        self.own = own[0]
        chosen = self.name.value if kept else self.own
        offer(self.name, names, chosen)
        self.seen.value = card("<b>The batch</b><br>", gallery(batch, own))
        self._draw_forces(names, chosen)

    def _draw_forces(self, names: Sequence[str], chosen: str) -> None:
        """Draw the arrows of the text chosen and the bars of all, and name a loss that hardly
        pulls."""
        tables = {words: self.table[self.table.method == method].set_index("class")
                  for method, words in LOSSES.items()}
        tips = [tip for table in tables.values()
                for tip in arrows(*table.loc[chosen, [*NORMS]].astype(float)).values()]
        lengths = [float(np.hypot(*tip)) for tip in tips]
        reach = 1.15 * max(1e-9, np.abs(tips).max())
        heads = [[0, x] if length > .01 * reach else [None, None]  # no head without an arrow
                 for (x, _), length in zip(tips, lengths, strict=True)]
        bars = [table[part] for table in tables.values() for part in NORMS[:2]]
        heights = [(sign * bar).tolist() for bar, sign in zip(bars, (1, -1, 1, -1), strict=True)]
        most = {words: table[[*NORMS[:2]]].to_numpy().max() for words, table in tables.items()}
        high = 1.1 * max(*most.values(), 1e-9)
        sure = [SURE.format(words.partition(":")[0], top)
                for words, top in most.items() if top < .01]
        self.said.value = card(*sure, HELP)
        ends = dict.fromkeys(("xaxis", "yaxis", "xaxis2", "yaxis2"), reach)
        ends |= dict.fromkeys(("yaxis3", "yaxis4"), high)
        ranges = {f"{axis}.range": [-end, end] for axis, end in ends.items()}
        redraw(self.figure, self.figure.data, {
            "x": [*heads, *[names] * 4],
            "y": [*([0, y] for _, y in tips), *heights],
            "customdata": [*([length] * 2 for length in lengths), *(bar.tolist() for bar in bars)],
        }, ranges)
