"""Learning without forgetting via a replayed vocabulary: the model before the stage teaches the
similarities of the images to random texts. Ding et al. 2022, arXiv
2207.09248, official code.

    L = CE(z) + α T² D(softmax(z°_·v / T), softmax(z_·v / T)) + 1[stage > 1] α KL(classes seen)
        └task┘  └──────────────── vocabulary ───────────────┘   └────────── classes ──────────┘

    symbol  field         unit     meaning
    z_iv    –             –        s f_i·t_v for a text v of the vocabulary V; z° by the teacher
    –       form          –        what D is and how V is drawn, see below
    V       vocabulary    –        what the texts are (`losses/vocabularies.py`)
    –       size, length  –        texts, and tokens of each where they are drawn token by token
    α       weight        –        of both distillations
    T       temperature   –        of the vocabulary's
    –       candidates    classes  of the task: "seen", or "phase" as in the code
    –       classes       –        whether the last term is there

    form      V                     text features  softmax over   D                 T, size, length
    official  drawn at each step    each its own   texts          KL(z° ‖ z)        1, 100, 8
    zscl      drawn once            the teacher's  texts, images  KL(z° ‖ z), both  2, 1000, 10
    wildclip  drawn once, captions  the teacher's  images         CE of z° under z  1, 100, –

Three things are called VR-LwF. The second is that of ZSCL's comparison (arXiv 2303.06628, code),
which moves no text tower by distillation; the third that of WildCLIP (Gabeff et al. 2024, doi
10.1007/s11263-024-02026-6, code), with the direction reversed. Fields that are None take the form's
value. Estimator: exact on the batch and on the texts drawn; both models see the same augmented
images. The teacher is a copy of the model at the start of the stage: the pretrained CLIP in one
session. Departures: the random numbers of V come from a generator of their own, so that weight 0 is
`finetune`; WildCLIP's sentences are its own, here captions of the benchmark's reference pairs.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from clstudy.data.streams import Stage
from clstudy.data.types import Batch, Candidates
from clstudy.losses import vocabularies
from clstudy.losses.functional import distillation, match, reversed_distillation
from clstudy.methods.base import Beside, Method, frozen_copy, state
from clstudy.models.clip import Clip


class Form(NamedTuple):
    vocabulary: str
    size: int
    length: int
    temperature: float
    fresh: bool  # drawn anew at every step
    own: bool  # the student encodes the texts itself
    over: tuple[str, ...]  # what the softmax runs over
    reverse: bool = False


FORMS = {"official": Form("random", 100, 8, 1.0, True, True, ("texts",)),
         "zscl": Form("random", 1000, 10, 2.0, False, False, ("texts", "images")),
         "wildclip": Form("captions", 100, 8, 1.0, False, False, ("images",), reverse=True)}


@dataclass
class VRLwF(Method):
    """Distils the similarities to random texts from the model before the stage."""

    title = "VR-LwF"
    source = "Ding et al. 2022, VR-LwF, arXiv 2207.09248"
    family = "distillation"
    published = {"VR-LwF with all classes seen in its task": {},
                 "VR-LwF (code)": {"candidates": "phase"}}
    checked = "each form against naive code; the one published number needs other weights"

    weight: Annotated[float, Ge(0)] = 0.5  # of both distillations
    form: Literal["official", "zscl", "wildclip"] = "official"  # three methods of this name
    vocabulary: str | None = None  # what the texts are; None: as the form has it
    size: Annotated[int, Ge(1)] | None = None  # how many
    length: Annotated[int, Ge(1)] | None = None  # tokens of each
    temperature: Annotated[float, Gt(0)] | None = None  # of the distillation on them
    candidates: Candidates = "seen"  # which texts compete in the task term
    classes: bool = True  # from the second stage on distil on the classes seen, too
    teacher: Clip | None = state(default=None)
    draws: torch.Generator | None = state(default=None)
    kept: tuple[Tensor, Tensor] | None = state(default=None)  # tokens, the teacher's features

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary", "size", "length", "temperature"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(FORMS[self.form], name))

    def check(self) -> None:
        if self.vocabulary is not None:
            vocabularies.check(self.vocabulary)

    @property
    def needs_reference(self) -> bool:
        return self.vocabulary == "captions"

    def loss(self, clip: Clip, batch: Batch) -> dict[str, Tensor]:
        encoded, among = clip.encode(batch), batch.narrow(self.candidates)
        form, scale = FORMS[self.form], encoded.scale
        with torch.no_grad():
            old_image, old_scale = self.teacher.encode_image(batch.image), self.teacher.scale()
            tokens, old_text = self.texts(batch)
        text = clip.encode_text(tokens) if form.own else old_text
        new, old = scale * encoded.image @ text.T, old_scale * old_image @ old_text.T
        terms = {"task": match(encoded.image, encoded.text[batch.rows(among)], scale, among.target),
                 "vocabulary": self.weight * self.distance(new, old)}
        if self.classes and batch.stage.number > 1:
            with torch.no_grad():
                taught = old_scale * old_image @ self.teacher.encode_text(batch.text).T
            logits = scale * encoded.image @ encoded.text.T
            terms["classes"] = self.weight * distillation(logits, taught)
        return terms

    def before_stage(self, clip: Clip, stage: Stage, batches: Iterable[Batch] = ()) -> None:
        self.teacher, self.kept = frozen_copy(clip), None
        self.draws = self.draws or torch.Generator().manual_seed(torch.initial_seed())

    @property
    def place_on_map(self) -> dict[str, Any] | Beside:
        found = self.options(size="texts")
        if found.pop("form") != "official":
            return Beside("finetune", "distils in another form than VR-LwF's own code")
        if self.classes and (self.vocabulary == "classes" or self.temperature != 1):
            return Beside("finetune", "distils a second time, or at another temperature")
        return found

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return tokens of the vocabulary and the teacher's features of them.

        Texts that are drawn once are encoded once a stage; class prompts follow the classes."""
        if FORMS[self.form].fresh or self.kept is None or self.vocabulary == "classes":
            tokens = vocabularies.draw(self.vocabulary, self.teacher, batch, self.size, self.length,
                                       self.draws)
            self.kept = tokens, self.teacher.encode_text(tokens)
        return self.kept

    def distance(self, new: Tensor, old: Tensor) -> Tensor:
        """Return D, summed over the softmax axes of the form. new, old: (images, texts)."""
        loss = reversed_distillation if FORMS[self.form].reverse else distillation
        pairs = [(new, old) if axis == "texts" else (new.T, old.T)
                 for axis in FORMS[self.form].over]
        return sum(loss(*pair, self.temperature) for pair in pairs)
