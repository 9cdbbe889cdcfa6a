"""`clstudy pretrain`: makes `data/icon-clip/`, the small CLIP that knows drawings.

Every step takes drawings of three kinds: emoji of the six pretraining families, coloured icons, and monochrome
glyphs that are coloured at random. The loss is a sum of four terms:

    L =  names     images of emoji against prompts of concepts, those of the batch and 300 others
      +  kinds     images of emoji against the names of all subgroups ("mammal", "aircraft"), weight 1
      +  pairs     CLIP's symmetric loss over all images and one caption each; equal captions are shared positives
      +  teacher   1 − cos of a linear map of the image feature and the teacher's feature (ImageNet network), weight 2

Half of the patches are dropped in training (FLIP, arXiv 2212.00794) but for the last tenth. What a step draws depends
on (seed, step) alone, so a run that was stopped goes on from its last saved step with the same batches. What is saved
is a moving average of the weights, in fp16.
"""
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .augment import affine, colour
from .benchmarks import emoji
from .clip import EMBEDDED, Clip, openclip_keys
from .host import keep_freed_memory
from .losses import contrastive, match

CORPUS = Path(__file__).parent.parent / "data" / "cache" / "corpus"
STATE = CORPUS.parent / "pretrain"
TEMPLATES = (emoji.TEMPLATE, "a drawing of {}.", "an icon of {}.", "a picture of a {}.", "{}", "{}")
MODEL = {"embed_dim": 256,
         "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
         "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 3}}


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
    patch_dropout: float = 0.5
    average: float = 0.995  # of the moving average, per step
    seed: int = 0

    @property
    def batch(self) -> int:
        return self.emoji + self.pictures + self.glyphs

    @property
    def steps(self) -> int:
        return self.images // self.batch


class Corpus:
    """The drawings in memory, and `draw(step)`: a batch of pictures with a caption each."""

    def __init__(self, recipe: Recipe, clip: Clip, folder: Path = CORPUS):
        for file in ("glyphs.npy", "pictures.npy", "captions.json", "teacher_emoji.npy", "teacher_pictures.npy"):
            if not (folder / file).exists():
                raise FileNotFoundError(f"{folder / file} is missing: run scripts/build_corpus.py and build_teacher.py")
        self.recipe = recipe
        every = emoji.table()
        seen = every.family.isin(emoji.PRETRAINING).to_numpy()
        self.rows = every[seen].reset_index(drop=True)
        self.emoji = torch.from_numpy(emoji.decode(self.rows.image))
        self.pictures = torch.from_numpy(np.load(folder / "pictures.npy"))
        self.glyphs = np.load(folder / "glyphs.npy", mmap_mode="r")
        captions = json.loads((folder / "captions.json").read_text())
        self.words = {kind: [said for _, _, said in captions[kind]] for kind in captions}
        self.teacher = [torch.from_numpy(np.load(folder / "teacher_emoji.npy")[seen]).float(),
                        torch.from_numpy(np.load(folder / "teacher_pictures.npy")).float()]
        self.concepts = list(dict.fromkeys(self.rows.label))
        self.concept = torch.tensor([self.concepts.index(label) for label in self.rows.label])
        self.kinds = [emoji.readable(subgroup) for subgroup in dict.fromkeys(self.rows.subgroup)]
        kind = {name: i for i, name in enumerate(self.kinds)}
        self.kind = torch.tensor([kind[emoji.readable(subgroup)] for subgroup in self.rows.subgroup])
        self.turnable = torch.tensor(self.rows.group.isin(emoji.OBJECTS).to_numpy())
        self.prompts = [clip.tokenizer([t.format(n) for n in self.concepts]) for t in TEMPLATES]
        self.kind_prompts = [clip.tokenizer([t.format(n) for n in self.kinds]) for t in TEMPLATES]

    def caption(self, row: int, rng: np.random.Generator) -> str:
        label, tags, choice = self.rows.label[row], list(self.rows.tags[row]), rng.random()
        if choice < 0.3 and tags:
            return ", ".join(rng.permutation(tags)[: rng.integers(1, 4)])
        if choice < 0.5:
            return f"{label}: {emoji.readable(self.rows.subgroup[row])}"
        return TEMPLATES[rng.integers(len(TEMPLATES))].format(label)

    def draw(self, step: int) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """Pictures (batch, 3, 64, 64) in [0, 1], captions, the emoji's rows, and the pictures' rows."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rows = rng.choice(len(self.emoji), recipe.emoji, replace=False)
        pictures = rng.choice(len(self.pictures), recipe.pictures, replace=False)
        glyphs = np.sort(rng.choice(len(self.glyphs), recipe.glyphs, replace=False))
        coloured = torch.cat([self.emoji[rows], self.pictures[pictures]]).permute(0, 3, 1, 2).float() / 255
        turn = torch.rand(recipe.emoji, generator=generator) < 0.5
        turn = torch.cat([turn & self.turnable[rows], torch.zeros(recipe.pictures, dtype=torch.bool)])
        coloured = torch.where(turn.view(-1, 1, 1, 1), coloured.flip(-1), coloured)
        alpha = torch.from_numpy(self.glyphs[glyphs]).float().unsqueeze(1) / 255
        ink = torch.rand(recipe.glyphs, 3, 1, 1, generator=generator)
        ink = ink * torch.rand(recipe.glyphs, 1, 1, 1, generator=generator)  # dark rather than light
        rgb = torch.cat([coloured[:, :3], ink.expand(-1, 3, 64, 64)])
        alpha = torch.cat([coloured[:, 3:], alpha])
        images = augment(rgb, alpha, generator)
        captions = [self.caption(row, rng) for row in rows.tolist()]
        for kind, chosen in (("pictures", pictures), ("glyphs", glyphs)):
            captions += [TEMPLATES[rng.integers(len(TEMPLATES))].format(self.words[kind][i]) for i in chosen]
        return images, captions, torch.from_numpy(rows), torch.from_numpy(pictures)


def augment(rgb: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Paper of a random colour (white for two thirds), moves, colour, ink drawings, negatives."""
    count = len(rgb)

    def chance(p: float) -> Tensor:
        return (torch.rand(count, generator=generator) < p).view(-1, 1, 1, 1)

    tint = torch.rand(count, 3, 1, 1, generator=generator)
    paper = torch.where(chance(0.3), 0.6 + 0.4 * tint, torch.ones_like(tint))
    images = rgb * alpha + paper * (1 - alpha)
    images = affine(images, generator, degrees=15, scale=(0.7, 1.15), shift=0.1, flip=False, fill=paper)
    images = colour(images, generator, brightness=0.25, contrast=0.4, saturation=0.6, grey=0.1)
    hue = torch.rand(count, 3, 1, 1, generator=generator)
    images = torch.where(chance(0.2), (images * (0.6 + 0.8 * hue)).clamp(0, 1), images)
    luma = images.mean(1, keepdim=True).expand_as(images)
    sharp = 4 + 16 * torch.rand(count, 1, 1, 1, generator=generator)
    level = 0.35 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    images = torch.where(chance(0.12), torch.sigmoid(sharp * (luma - level)), images)  # as cut in black and white
    images = torch.where(chance(0.03), 1 - images, images)
    blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return torch.where(chance(0.15), blurred, images)


def loss(clip: Clip, head: nn.Module, corpus: Corpus, step: int) -> dict[str, Tensor]:
    recipe = corpus.recipe
    images, captions, rows, pictures = corpus.draw(step)
    generator = torch.Generator().manual_seed(step)
    template = step % len(TEMPLATES)
    others = torch.randperm(len(corpus.concepts), generator=generator)[: recipe.others]
    offered, target = torch.cat([corpus.concept[rows], others]).unique(return_inverse=True)
    distinct = list(dict.fromkeys(captions))
    place = torch.tensor([distinct.index(caption) for caption in captions])
    texts = [corpus.prompts[template][offered], corpus.kind_prompts[template], clip.tokenizer(distinct)]
    image = clip.encode_image(images)
    names, kinds, pairs = encode_by_length(clip, torch.cat(texts)).split([len(text) for text in texts])
    scale = clip.scale()
    same = place[:, None] == place[None, :]
    concept = corpus.concept[rows]
    same[: len(rows), : len(rows)] |= concept[:, None] == concept[None, :]
    wanted = torch.cat([corpus.teacher[0][rows], corpus.teacher[1][pictures]])
    taught = F.normalize(head(image[: len(wanted)]).float(), dim=-1)
    return {"names": match(image[: len(rows)], names, scale, target[: len(rows)]),
            "kinds": recipe.kinds * match(image[: len(rows)], kinds, scale, corpus.kind[rows]),
            "pairs": contrastive(image, pairs[place], scale, same.float()),
            "teacher": recipe.teacher * (1 - (taught * wanted).sum(-1)).mean()}


def encode_by_length(clip: Clip, tokens: Tensor, parts: int = 4) -> Tensor:
    """As `encode_text`, in groups of like length, so that one long caption does not pad all others."""
    order = tokens.argmax(1).argsort(stable=True)
    features = torch.cat([clip.encode_text(clip.cut(tokens[part])) for part in order.chunk(parts)])
    return features[order.argsort()]


@torch.inference_mode()
def zero_shot(clip: Clip, families=emoji.UNSEEN) -> dict[str, float]:
    """Top-1 and top-5 over all object concepts on each family, and top-1 over the classes of `emoji`."""
    rows = emoji.table(families)
    rows = rows[rows.group.isin(emoji.OBJECTS)].reset_index(drop=True)
    pixels = torch.from_numpy(emoji.on_white(emoji.decode(rows.image)))
    image = torch.cat([clip.encode_image(chunk) for chunk in pixels.split(512)])
    names = list(dict.fromkeys(rows.label))
    classes = [emoji.readable(subgroup) for subgroup in dict.fromkeys(rows.subgroup)]
    text = clip.encode_text(clip.class_text(names, emoji.TEMPLATE))
    kinds = clip.encode_text(clip.class_text(classes, emoji.TEMPLATE))
    hit = (image @ text.T).topk(5).indices == torch.tensor([names.index(label) for label in rows.label])[:, None]
    kind = (image @ kinds.T).argmax(1) == torch.tensor([classes.index(emoji.readable(s)) for s in rows.subgroup])
    scores = pd.DataFrame({"family": rows.family, "top1": hit[:, 0], "top5": hit.any(1), "class": kind})
    means = scores.groupby("family").mean()
    return {f"{family}/{name}": round(float(means.loc[family, name]), 4) for family in means.index for name in means}


def blank(recipe: Recipe) -> Clip:
    torch.manual_seed(recipe.seed)
    cfg = {**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "patch_dropout": recipe.patch_dropout}}
    clip = Clip(open_clip.model.CLIP(**cfg), open_clip.SimpleTokenizer(context_length=32), "icon-clip")
    clip.precision = "bf16"
    return clip


def pretrain(recipe: Recipe = Recipe(), out: Path = EMBEDDED["icon-clip"], state: Path = STATE,
             every: int = 250) -> Path:
    """Train, or go on training, and write the model folder. Returns it. Minutes: the model card's."""
    keep_freed_memory()
    clip = blank(recipe)
    head = nn.Linear(MODEL["embed_dim"], 256)
    average = blank(recipe)
    corpus = Corpus(recipe, clip)
    parameters = dict(clip.named_parameters()) | {f"head.{n}": p for n, p in head.named_parameters()}
    plain = [p for n, p in parameters.items() if p.ndim < 2 or "embedding" in n]
    matrices = [p for n, p in parameters.items() if not (p.ndim < 2 or "embedding" in n)]
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": recipe.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], recipe.lr, betas=(0.9, 0.98), fused=True)
    start = restore(state, recipe, parameters, average, optimiser)
    bar = tqdm(total=recipe.images, initial=start * recipe.batch, unit="img", unit_scale=True, smoothing=0.05)
    clip.train()
    for step in range(start, recipe.steps):
        torch.manual_seed(recipe.seed * 10**9 + step)  # which patches are dropped
        if step >= 0.9 * recipe.steps:
            clip.model.visual.patch_dropout = nn.Identity()
        wave = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * min((step + 1) / recipe.warmup, 1.0) * wave
        terms = loss(clip, head, corpus, step)
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
            row = {"step": step + 1, "images": bar.n, "time": round(time.time()), **values, **scores}
            save(state, recipe, step + 1, parameters, average, optimiser)
            with open(state / "curve.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            bar.write(re.sub(r'["{}]', "", json.dumps(row)))
    return export(average, out)


def save(state: Path, recipe: Recipe, step: int, parameters: dict, average: Clip, optimiser) -> None:
    """Weights, average and moments as safetensors; written new and renamed, the step's number last."""
    state.mkdir(parents=True, exist_ok=True)
    names = {p: n for n, p in parameters.items()}
    tensors = {f"weight/{n}": p.detach() for n, p in parameters.items()}
    tensors |= {f"average/{n}": p.detach() for n, p in average.named_parameters()}
    tensors |= {f"{key}/{names[p]}": value for p, moments in optimiser.state.items() for key, value in moments.items()}
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
        raise ValueError(f"{file} belongs to another recipe ({meta['recipe']}); remove it to start anew")
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            optimiser.state[parameter] = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in average.named_parameters():
            parameter.copy_(tensors[f"average/{name}"])
    return int(meta["step"])


def export(clip: Clip, out: Path) -> Path:
    """A folder that open_clip reads itself: `create_model("local-dir:…")`."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in openclip_keys(clip.model.state_dict()).items()}
    save_file(weights, out / "open_clip_model.safetensors")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD,
                  "interpolation": "bicubic", "resize_mode": "squash", "size": [64, 64]}
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return out
