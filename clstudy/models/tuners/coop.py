"""Learned context vectors before the class name, in place of the words of a prompt: CoOp. Zhou et
al. 2022, arXiv 2109.01134.

    [start] [V]_1 … [V]_M [name] . [end]  →  text tower, all of it frozen  →  t_k

    symbol  field   unit     meaning
    V       –       –        learned vectors in the place of word embeddings, M × d
    M       length  tokens   of the context
    –       shared  –        one context for all classes, or one for each class of the stream
    –       init    –        words that V starts as; else N(0, 0.02)

Nothing else is trained, and the image tower is as it was. A class's prompt is `{}.` behind the
context, whatever template the benchmark has, also in held-out sets. The context stands before every
other text too (captions, replayed vocabularies): otherwise a loss on such texts could not hold it.
With the words of the benchmark's template as `init`, and the same full stop, an untrained CoOp is
the model as it was, in class texts. With M = 16 on ViT-B/16: 8,192 parameters, or that for each
class.

A context of each class (class-specific) is found by the tokens of its prompt. Every other text gets
the context that all started from, and so have classes that did not come yet (but for weight decay,
which pulls at all contexts). In the paper a random start differs from class to class; here all
classes start alike, so that there is one for other texts.

Departures: in the released code words as `init` mean a shared context; here either can start from
words. Its other places of the name, in the middle or in front, are left out. A text that no longer
fits behind the context is cut, its last token being the end token.
"""
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor, nn

from clstudy.models.clip import Clip
from clstudy.models.tuners.base import Tuner

TEMPLATE = "{}."  # of every class prompt, behind the context
LENGTH = 16  # as in the paper
ROOM = 8  # tokens that are left for a text, with its start and end


class Context(nn.Embedding):
    """A table of word embeddings that puts learned vectors behind the start token.

    prompts: the tokens of each class's prompt where each has a context of its own; else None.
    size: tokens, context included, that the text tower takes."""

    def __init__(self, source: nn.Embedding, start: Float[Tensor, "length dim"],
                 prompts: Int[Tensor, "classes tokens"] | None, size: int):
        super().__init__(*source.weight.shape, _weight=source.weight)
        self.weight, self.room = source.weight, size - len(start)
        copies = start if prompts is None else start.repeat(len(prompts), 1, 1)
        self.context = nn.Parameter(copies.clone())
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("prompts", prompts, persistent=False)

    def forward(self, tokens: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts longer dim"]:
        own, words = self.contexts(tokens), super().forward(self.fitting(tokens))
        return torch.cat([words[:, :1], own, words[:, 1:]], dim=1)

    def contexts(self, tokens: Tensor) -> Float[Tensor, "texts length dim"]:
        """Return the context of each text."""
        if self.prompts is None:
            return self.context.expand(len(tokens), -1, -1)
        width = max(tokens.shape[1], self.prompts.shape[1])
        text, prompts = (nn.functional.pad(rows, (0, width - rows.shape[1]))
                         for rows in (tokens, self.prompts))
        same = (text[:, None] == prompts).all(-1)
        known = torch.cat([same, ~same.any(1, keepdim=True)], dim=1)  # the last is `start`
        return torch.cat([self.context, self.start[None]])[known.int().argmax(1)]

    def fitting(self, tokens: Tensor) -> Tensor:
        """Return tokens that leave room for the context, each row with its end token."""
        if tokens.shape[1] <= self.room:
            return tokens
        end = tokens.max(dim=1)  # the end token has the highest number
        last = torch.where(end.indices < self.room, tokens[:, self.room - 1], end.values)
        return torch.cat([tokens[:, :self.room - 1], last[:, None]], dim=1)


@dataclass
class CoOp(Tuner):
    """Trains context vectors before the class names, in place of a prompt's words (CoOp)."""

    title: ClassVar[str] = "CoOp"
    source: ClassVar[str] = "Zhou et al. 2022, arXiv 2109.01134"
    towers: ClassVar[tuple[str, ...]] = ("text",)
    reason: ClassVar[str] = "its context stands in texts"

    length: Annotated[int, Ge(1)] | None = None  # tokens; None: as many as `init` has, or 16
    shared: bool = True  # one context for all classes; False: one for each class of the stream
    init: str | None = None  # words that the context starts as; None: N(0, 0.02)

    def apply(self, clip: Clip, tower: str) -> None:
        self.check_tower(tower)
        if not clip.causal:
            raise ValueError(f"the tuner {self.title} needs a causal text tower whose feature is "
                             f"read at the end token; that of model={clip.name!r} is not")
        if not (self.shared or clip.class_names):
            raise ValueError("tuner_args: shared=False: a context for each class needs the names "
                             "of the classes, clip.class_names, which a run gives")
        start = self.start(clip)
        clip.requires_grad_(False)
        clip.context, clip.template = len(start), TEMPLATE
        prompts = None
        if not self.shared:
            prompts = clip.class_text(list(clip.class_names), TEMPLATE).to(clip.device)
        text = clip.owner("text")
        text.token_embedding = Context(text.token_embedding, start, prompts,
                                       len(text.positional_embedding))

    def start(self, clip: Clip) -> Float[Tensor, "length dim"]:
        """Return what the context starts as. ValueError: it does not fit."""
        text, words = clip.owner("text"), None
        if self.init is not None:
            row = clip.tokenizer([self.init])[0]
            words = row[1:int(row.argmax())]
            if self.length not in (None, len(words)) or not len(words):
                raise ValueError(f"tuner_args: init={self.init!r} has {len(words)} tokens: choose "
                                 f"length={max(len(words), 1)} or None")
        length = len(words) if words is not None else self.length or LENGTH
        most = len(text.positional_embedding) - ROOM
        if length > most:
            raise ValueError(f"tuner_args: length={length!r}: must be from 1 to {most}, so that "
                             "names fit behind the context")
        if words is not None:
            return text.token_embedding.weight[words.to(clip.device)].detach().clone()
        width = text.token_embedding.embedding_dim
        return (0.02 * torch.randn(length, width)).to(clip.device)
