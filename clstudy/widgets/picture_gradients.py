"""Your own picture under the gradient microscope: what one step would do to every text, with both
losses."""
from collections.abc import Sequence

import ipywidgets as ipw
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from clstudy.evaluation.features import features, text_features
from clstudy.models.clip import Clip
from clstudy.plots import gradients
from clstudy.widgets.common import (
    ARROWS,
    GREEN,
    PINK,
    WHOLE,
    Shown,
    card,
    gallery,
    headless,
    offer,
    panels,
    redraw,
    stack,
    watch,
)
from clstudy.widgets.microscope import arrows
from clstudy.widgets.zero_shot import UPLOADED, uploaded

LOSSES = {
    "finetune": "asymmetric: all texts compete", "sit": "symmetric: the texts of the batch compete"
}
HELP = (
    "<b>Arrows</b>: where a step would move one text. Attraction, by the pictures that match it, points to the "
    "right; repulsion, by all others, stands at its true angle (without attraction there is no angle: it is drawn "
    "to the left); black is their sum. <b>Bars</b>: the lengths of both, for every text. A text without a picture "
    "in the batch is only pushed away by the asymmetric loss, and left alone by the symmetric one.")

SURE = (
    "<b>{}</b>: the strongest pull of this step is {:.1g}. Among its texts the model is nearly sure of every "
    "picture of the batch, so there is little left to learn (the axes follow the stronger loss).<br>"
)


def forces(image: Float[Tensor, "batch dim"], text: Float[Tensor, "texts dim"], scale: Float[Tensor, ""],
           target: Int[Tensor, " batch"], symmetric: bool = False) -> pd.DataFrame:
    """What descent on `losses.match` does to each text, from its gradient in closed form (arXiv
    2405.15155):

        −∂L/∂t_k = (s/B) Σ_i (1[y_i = k] − p_ik) f_i      attraction: i with y_i = k, repulsion: all others

    symmetric: only texts that match an image compete. A row per text: present, and norms of
    attraction, repulsion, gradient."""
    present = torch.zeros(len(text), dtype=torch.bool, device=text.device).scatter(0, target, True)
    logits = scale * image @ text.T
    p = (logits.masked_fill(~present, -torch.inf) if symmetric else logits).softmax(-1)
    own = torch.nn.functional.one_hot(target, len(text)).to(p.dtype)
    pull = scale / len(image) * (own * (1 - p)).T @ image
    push = -scale / len(image) * ((1 - own) * p).T @ image
    norms = {"attraction": pull, "repulsion": push, "gradient": pull + push}
    return pd.DataFrame({"present": present.tolist()} | {name: value.norm(dim=1).tolist()
                                                         for name, value in norms.items()})


def picture_microscope(clip: Clip, images: UInt8[Tensor, "images 3 height width"], names: Sequence[str],
                       texts: Sequence[str], rivals: Sequence[str] = ()) -> Shown:
    """Choose a picture or bring your own, say which text is right for it, choose what else is in
    the batch: the pull on every text under the asymmetric and under the symmetric loss.

    names, texts: of the pictures; rivals: more texts, of classes seen before. ValueError: not as
    many names or texts as pictures."""
    if not len(images) == len(names) == len(texts):
        raise ValueError(
            f"images={len(images)}, names={len(names)}, texts={len(texts)}: there must be as many of each"
        )
    if headless():
        some = _Microscope.found(clip.eval(), images[:3], list(texts[:3]), [*texts, *rivals])
        return gradients.anatomy(some, "one step")
    return _Microscope(clip.eval(), images, names, texts, rivals).box


class _Microscope:
    """The controls; features of pictures and texts are kept."""

    def __init__(self, clip: Clip, images: Tensor, names: Sequence[str], texts: Sequence[str],
                 rivals: Sequence[str]):
        self.clip, self.images, self.texts, self.uploaded = clip, images, list(texts), None
        self.rivals, self.own = list(rivals), None
        self.picture = ipw.Dropdown(options=[(name, i) for i, name in enumerate(names)],
                                    description="picture")
        self.upload = ipw.FileUpload(accept="image/*", description="your own picture",
                                     layout=ipw.Layout(width="max-content"))
        self.right = ipw.Text(texts[0], description="its text (then Enter)",
                              continuous_update=False, style=WHOLE, layout=ipw.Layout(width="24em"))
        self.others = ipw.SelectMultiple(options=[(name, i) for i, name in enumerate(names)],
                                         value=tuple(range(1, min(3, len(names)))),
                                         description="also in the batch (Ctrl: several)",
                                         rows=min(len(names), 6), style=WHOLE)
        self.name = ipw.Dropdown(options=[], description="arrows of", style=WHOLE,
                                 layout=ipw.Layout(width="24em"))
        self.seen, self.said, self.fault = ipw.HTML(), ipw.HTML(card(HELP)), ipw.HTML()
        self._draw_once()
        self.upload.observe(lambda change: self._take(), "value")
        watch([self.picture], self._named)
        watch([self.right, self.others, self.name], self.draw)
        self.draw()
        left = ipw.VBox([self.picture, self.upload, self.fault, self.right, self.others, self.name])
        row = ipw.Layout(flex_flow="row wrap")
        self.box = stack(ipw.HBox([left, self.seen], layout=row), self.figure, self.said)

    def _draw_once(self) -> None:
        self.figure = panels(2, 2, 640, 980, vertical_spacing=.16, horizontal_spacing=.08,
                             row_heights=[1, .8], subplot_titles=[*LOSSES.values(), "", ""])
        for column in (1, 2):
            for part, (colour, width) in ARROWS.items():
                head = {"symbol": "arrow", "angleref": "previous", "size": [0, 14], "color": colour}
                self.figure.add_scatter(x=[0, 0], y=[0, 0], mode="lines+markers", name=part,
                                        legendgroup=part, showlegend=column == 1, row=1, col=column,
                                        marker=head, line={"color": colour, "width": width},
                                        hovertemplate=f"{part}: %{{customdata:.2g}}<extra></extra>")
        for column in (1, 2):
            for part, colour in (("attraction", GREEN), ("repulsion", PINK)):
                self.figure.add_bar(
                    marker={"color": colour}, name=part, showlegend=False, row=2, col=column,
                    hovertemplate=f"%{{x}}, {part}: %{{customdata:.2g}}<extra></extra>")
        self.figure.update_xaxes(tickangle=-45, row=2)
        self.figure.update_yaxes(title="norm of the pull", row=2, col=1)
        self.figure.update_xaxes(zeroline=True, zerolinecolor="#dddddd", row=1)
        self.figure.update_yaxes(zeroline=True, zerolinecolor="#dddddd", row=1)
        self.figure.update_layout(
            barmode="relative",
            bargap=.3,
            margin={"t": 90, "b": 140, "l": 80, "autoexpand": False},  # not laid out twice
            legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"})

    def _take(self) -> None:
        """A file was chosen: it joins the list, and its name is the first guess of its text."""
        try:
            taken = uploaded(self.upload, self.picture, self.images.shape[-1])
        except ValueError as error:
            self.fault.value = card(str(error))
            return
        if taken is None:
            return
        self.uploaded, self.fault.value = taken, ""
        name = self.picture.label
        self.right.value = name.rpartition(".")[0].replace("_", " ").replace("-", " ") or name
        self.draw()

    def _named(self) -> None:
        if self.picture.value != UPLOADED:
            self.right.value = self.texts[self.picture.value]
        self.draw()

    @staticmethod
    def found(clip: Clip, images: Tensor, own: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
        """`forces` of both losses, with columns class and method. own: the text of each image,
        among `texts`."""
        texts = list(dict.fromkeys([*own, *texts]))
        f, t = features(clip, images), text_features(clip, texts)
        target = torch.tensor([texts.index(one) for one in own], device=f.device)
        tables = [
            forces(f, t,
                   clip.scale().detach(), target, method == "sit").assign(
                       method=method, **{"class": texts}) for method in LOSSES
        ]
        return pd.concat(tables, ignore_index=True)

    def draw(self) -> None:
        first = self.uploaded if self.picture.value == UPLOADED else self.images[self.picture.value]
        others = [i for i in self.others.value if i != self.picture.value]
        batch = torch.stack([first, *(_sized(self.images[i], first) for i in others)])
        own = [self.right.value.strip() or "?", *(self.texts[i] for i in others)]
        self.table = self.found(self.clip, batch, own, [*self.texts, *self.rivals])
        names = list(dict.fromkeys(self.table["class"]))
        kept = self.name.value in names and self.name.value != self.own  # arrows of a picture's own text go with it
        self.own = own[0]
        chosen = self.name.value if kept else self.own
        offer(self.name, names, chosen)
        self.seen.value = card("<b>The batch</b><br>", gallery(batch, own))
        tables = [self.table[self.table.method == method].set_index("class") for method in LOSSES]
        heads = [
            arrows(*(float(table.loc[chosen, part])
                     for part in ("attraction", "repulsion", "gradient"))) for table in tables
        ]
        reach = 1.15 * max(
            1e-9, *(abs(value) for head in heads for tip in head.values() for value in tip))
        tips = [tip for head in heads for tip in head.values()]
        lengths = [(x * x + y * y) ** .5 for x, y in tips]
        span = {
            f"{axis}axis{number}.range": [-reach, reach] for number in ("", "2") for axis in "xy"
        }
        bars = [(table[part], sign) for table in tables
                for part, sign in (("attraction", 1), ("repulsion", -1))]
        most = {words: float(table[["attraction", "repulsion"]].to_numpy().max())
                for words, table in zip(LOSSES.values(), tables, strict=True)}
        high = 1.1 * max(*most.values(), 1e-9)
        self.said.value = card(
            *(SURE.format(words.partition(":")[0], top) for words, top in most.items()
              if top < .01), HELP)
        redraw(
            self.figure,
            self.figure.data,
            {
                "x": [
                    *(
                        [0, x] if length > .01 * reach else [None, None]  # no head without an arrow
                        for (x, _), length in zip(tips, lengths, strict=True)),
                    *([names] * 4)
                ],
                "y": [
                    *([0, y] for _, y in tips), *((sign * column).tolist() for column, sign in bars)
                ],
                "customdata": [
                    *([length] * 2 for length in lengths), *(column.tolist() for column, _ in bars)
                ]
            },
            {**span, "yaxis3.range": [-high, high], "yaxis4.range": [-high, high]})


def _sized(image: Tensor, like: Tensor) -> Tensor:
    """The same picture at the size of another one."""
    if image.shape == like.shape:
        return image
    sized = torch.nn.functional.interpolate(image[None].float(), size=tuple(like.shape[1:]),
                                            mode="bilinear", antialias=True)[0]
    return sized.round().clamp(0, 255).to(torch.uint8)
