"""The playground: own pictures, own texts, and what CLIP makes of them before and after tuning."""
import io
from collections.abc import Sequence
from html import escape
from textwrap import wrap

import ipywidgets as ipw
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clstudy.evaluation.features import features, text_features
from clstudy.models.clip import Clip
from clstudy.plots import images as images_module
from clstudy.widgets.common import BLUE, RED, WHOLE, Shown, card, gallery, headless, offer, panels, redraw, stack, watch

NEAREST = 8
UPLOADED = -1


@torch.inference_mode()
def probabilities(clip: Clip, image: UInt8[Tensor, "3 height width"],
                  texts: Sequence[str]) -> dict[str, float]:
    """What CLIP answers for one picture: the softmax over the texts of s f·t."""
    image_feature = clip.encode_image(image[None].to(clip.device))
    text_features = clip.encode_text(clip.tokenize(list(texts)).to(clip.device))
    values = (clip.scale() * image_feature @ text_features.T).softmax(-1)[0]
    return dict(zip(texts, values.tolist(), strict=True))


def read_picture(content: bytes | memoryview, size: int) -> UInt8[Tensor, "3 size size"]:
    """A file of any kind that Pillow knows, on white, its middle square, at the size of a model.

    ValueError: it is no picture."""
    try:
        with Image.open(io.BytesIO(bytes(content))) as found:
            drawn = found.convert("RGBA")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"this file is no picture that can be read: {error}") from error
    paper = Image.new("RGBA", drawn.size, "white")
    paper.alpha_composite(drawn)
    side = min(drawn.size)
    left, top = ((length - side) // 2 for length in drawn.size)
    square = paper.convert("RGB").crop((left, top, left + side, top + side)).resize((size, size),
                                                                                    Image.BICUBIC)
    return torch.from_numpy(np.asarray(square).transpose(2, 0, 1).copy())


def uploaded(upload: ipw.FileUpload, pictures: ipw.Dropdown,
             size: int) -> UInt8[Tensor, "3 _ _"] | None:
    """The file that was chosen, which joins the list of pictures and is chosen there; None: no file
    was.

    ValueError: it is no picture."""
    if not upload.value:
        return None
    file = upload.value[-1]
    image = read_picture(file["content"], max(size, 64))
    options = [one for one in pictures.options if one[1] != UPLOADED]
    offer(pictures, [*options, (file["name"], UPLOADED)], UPLOADED)
    return image


def playground(clip: Clip, images: UInt8[Tensor, "images 3 height width"], names: Sequence[str],
               texts: Sequence[str], tuned: Clip | None = None,
               pool: UInt8[Tensor, "pool 3 _ _"] | None = None) -> Shown:
    """Choose a picture or bring your own, write texts, one a line: the bars follow; write one text:
    the nearest pictures follow.

    tuned: another model, whose bars stand beside. pool: the pictures to search (default:
    `images`)."""
    models = {"before tuning" if tuned else "CLIP": clip.eval()
              } | ({"after tuning": tuned.eval()} if tuned else {})
    if headless():
        return images_module.bars(probabilities(clip, images[0], texts), title=names[0],
                                  xlabel="probability")
    return _Playground(models, images, names, texts, images if pool is None else pool).box


class _Playground:
    """The controls, and features of the pool under each model, which are computed once."""

    def __init__(self, models: dict[str, Clip], images: Tensor, names: Sequence[str],
                 texts: Sequence[str], pool: Tensor):
        self.models, self.images, self.pool, self.uploaded = models, images, pool, None
        self.features = {name: features(model, pool) for name, model in models.items()}
        self.picture = ipw.Dropdown(options=[(name, i) for i, name in enumerate(names)],
                                    description="picture")
        self.upload = ipw.FileUpload(accept="image/*", description="your own picture",
                                     layout=ipw.Layout(width="max-content"))
        self.written = ipw.Textarea("\n".join(texts), description="texts", rows=8,
                                    layout=ipw.Layout(width="26em"))
        self.wanted = ipw.Text(texts[0], description="nearest pictures to", style=WHOLE,
                               layout=ipw.Layout(width="32em"))
        self.seen, self.said, self.near = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.figure = panels(height=320, width=560,
                             layout={"margin": {"l": 10, "r": 30, "t": 40, "b": 40}})
        for name, colour in zip(models, (BLUE, RED), strict=False):
            self.figure.add_bar(orientation="h", name=name, marker={"color": colour},
                                textposition="outside", cliponaxis=False,
                                hovertemplate="%{y}: %{x:.3f}<extra>" + name + "</extra>")
        self.figure.update_xaxes(title="probability", range=[0, 1.08])
        self.figure.update_yaxes(autorange="reversed", automargin=True)
        self.figure.update_layout(
            showlegend=len(models) > 1,
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"})
        self.upload.observe(lambda change: self._take(), "value")
        watch([self.picture, self.written], self.draw)
        watch([self.wanted], self.search)
        self.draw()
        self.search()
        left = ipw.VBox([self.picture, self.upload, self.seen, self.written, self.said])
        row = ipw.Layout(flex_flow="row wrap")
        self.box = stack(ipw.HBox([left, self.figure], layout=row), self.wanted, self.near)

    def _take(self) -> None:
        try:
            taken = uploaded(self.upload, self.picture, self.images.shape[-1])
        except ValueError as error:
            self.said.value = card(str(error))
            return
        if taken is not None:
            self.uploaded = taken
            self.draw()

    def chosen(self) -> UInt8[Tensor, "3 height width"]:
        return self.uploaded if self.picture.value == UPLOADED else self.images[self.picture.value]

    def texts(self) -> list[str]:
        return list(
            dict.fromkeys(line.strip() for line in self.written.value.splitlines() if line.strip()))

    def draw(self) -> None:
        texts, image = self.texts(), self.chosen()
        self.seen.value = card(gallery(image[None], [self.picture.label or ""]))
        if not texts:
            self.said.value = card("Write at least one text.")
            return
        answers = {name: probabilities(model, image, texts) for name, model in self.models.items()}
        values = [list(found.values()) for found in answers.values()]
        names = ["<br>".join(wrap(escape(text), 28)) for text in texts]
        redraw(
            self.figure, self.figure.data, {
                "x": values, "y": [names] * len(values),
                "text": [[f"{value:.2f}" for value in each] for each in values]
            }, {
                "height": 130 + (22 + 16 * len(answers)) * len(texts)
                + 14 * sum(name.count("<br>") for name in names)
            })
        first = [
            f"{name}: <b>{escape(max(found, key=found.get))}</b>"
            for name, found in answers.items()
        ]
        self.said.value = card("<br>".join(first))

    @torch.inference_mode()
    def search(self) -> None:
        """The pictures of the pool with the largest cosine to one text, under each model."""
        text = self.wanted.value.strip()
        if not text:
            self.near.value = card("Write a text.")
            return
        rows = []
        for name, model in self.models.items():
            values: Float[Tensor, " pool"] = (self.features[name] @ text_features(model, [text])[0])
            best = values.topk(min(NEAREST, len(values)))
            words = [f"cos {value:.2f}" for value in best.values.tolist()]
            rows.append(f"<div><b>{name}</b></div>{gallery(self.pool[best.indices.cpu()], words)}")
        self.near.value = card(*rows)
