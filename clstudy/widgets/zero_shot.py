"""The playground: own pictures, own texts, and CLIP's answers before and after tuning."""
from collections.abc import Sequence
from html import escape
from textwrap import wrap

import ipywidgets as ipw
import torch
from jaxtyping import Float, UInt8
from plotly.graph_objects import FigureWidget
from torch import Tensor

from clstudy.evaluation.features import features, text_features
from clstudy.models.clip import Clip
from clstudy.plots import images as image_plots
from clstudy.utils.paths import headless
from clstudy.widgets.choosers import WHOLE, PictureChooser, row, stack, watch
from clstudy.widgets.common import BLUE, RED, Shown, card, gallery, panels, redraw

NEAREST = 8


@torch.inference_mode()
def probabilities(clip: Clip, image: UInt8[Tensor, "3 height width"],
                  texts: Sequence[str]) -> dict[str, float]:
    """Return CLIP's answer for one picture: the softmax over the texts of s f·t."""
    image_feature = clip.encode_image(image[None].to(clip.device))
    text_features = clip.encode_text(clip.tokenize(list(texts)).to(clip.device))
    values = (clip.scale() * image_feature @ text_features.T).softmax(-1)[0]
    return dict(zip(texts, values.tolist(), strict=True))


def playground(clip: Clip, images: UInt8[Tensor, "images 3 height width"], names: Sequence[str],
               texts: Sequence[str], tuned: Clip | None = None,
               pool: UInt8[Tensor, "pool 3 _ _"] | None = None) -> Shown:
    """Choose a picture or bring your own, and write texts, one a line: bars show the probabilities.
    Write one text: the nearest pictures are shown.

    tuned: another model, whose bars stand beside. pool: the pictures to search (default:
    `images`)."""
    if headless():
        return image_plots.bars(probabilities(clip.eval(), images[0], texts), title=names[0],
                                xlabel="probability")
    models = {"CLIP": clip} if tuned is None else {"before tuning": clip, "after tuning": tuned}
    return _Playground(models, images, names, texts, images if pool is None else pool).box


class _Playground:
    """The controls, and features of the pool under each model, which are computed once."""

    def __init__(self, models: dict[str, Clip], images: Tensor, names: Sequence[str],
                 texts: Sequence[str], pool: Tensor):
        self.models, self.pool = {name: model.eval() for name, model in models.items()}, pool
        self.features = {name: features(model, pool) for name, model in models.items()}
        self.seen, self.said, self.near = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.pictures = PictureChooser(images, names, self.draw, self.said)
        self.written = ipw.Textarea("\n".join(texts), description="texts", rows=8,
                                    layout=ipw.Layout(width="26em"))
        self.wanted = ipw.Text(texts[0], description="nearest pictures to", style=WHOLE,
                               layout=ipw.Layout(width="32em"))
        self.figure = _bar_figure(list(models))
        watch([self.pictures.list, self.written], self.draw)
        watch([self.wanted], self.search)
        self.draw()
        self.search()
        left = ipw.VBox([self.pictures.list, self.pictures.upload, self.seen, self.written,
                         self.said])
        self.box = stack(row(left, self.figure), self.wanted, self.near)

    def draw(self) -> None:
        """Show the picture chosen, and what each model answers for it."""
        image, lines = self.pictures.image, map(str.strip, self.written.value.splitlines())
        texts = list(dict.fromkeys(filter(None, lines)))
        self.seen.value = card(gallery(image[None], [self.pictures.list.label or ""]))
        if not texts:
            self.said.value = card("Write at least one text.")
            return
        answers = {name: probabilities(model, image, texts) for name, model in self.models.items()}
        values = [list(answer.values()) for answer in answers.values()]
        names = ["<br>".join(wrap(escape(text), 28)) for text in texts]
        height = (130 + (22 + 16 * len(answers)) * len(texts)
                  + 14 * sum(name.count("<br>") for name in names))
        redraw(self.figure, self.figure.data, {
            "x": values,
            "y": [names] * len(values),
            "text": [[f"{value:.2f}" for value in each] for each in values],
        }, {"height": height})
        first = [f"{name}: <b>{escape(max(answer, key=answer.get))}</b>"
                 for name, answer in answers.items()]
        self.said.value = card("<br>".join(first))

    @torch.inference_mode()
    def search(self) -> None:
        """Show the pictures of the pool with the largest cosine to one text, under each model."""
        text = self.wanted.value.strip()
        if not text:
            self.near.value = card("Write a text.")
            return
        rows = []
        for name, model in self.models.items():
            cosines: Float[Tensor, " pool"] = self.features[name] @ text_features(model, [text])[0]
            best = cosines.topk(min(NEAREST, len(cosines)))
            words = [f"cos {value:.2f}" for value in best.values.tolist()]
            rows.append(f"<div><b>{name}</b></div>{gallery(self.pool[best.indices.cpu()], words)}")
        self.near.value = card(*rows)


def _bar_figure(names: Sequence[str]) -> FigureWidget:
    """Make horizontal bars of probabilities, in one colour for each model."""
    figure = panels(height=320, width=560, layout={"margin": {"l": 10, "r": 30, "t": 40, "b": 40}})
    for name, colour in zip(names, (BLUE, RED), strict=False):
        figure.add_bar(orientation="h", name=name, marker={"color": colour}, cliponaxis=False,
                       textposition="outside",
                       hovertemplate="%{y}: %{x:.3f}<extra>" + name + "</extra>")
    figure.update_xaxes(title="probability", range=[0, 1.08])
    figure.update_yaxes(autorange="reversed", automargin=True)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    figure.update_layout(showlegend=len(names) > 1, legend=legend)
    return figure
