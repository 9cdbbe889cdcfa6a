"""Measure `data/icon-clip/` and write its model card, its curve and its figure.

    python scripts/icon_clip/model_card.py             # minutes; needs no corpus
"""
import json
from pathlib import Path

import pandas as pd
import torch
from pretrain import zero_shot
from pretraining_curve import pretraining

from clstudy import RunConfig, load_clip, load_or_train
from clstudy.data.benchmarks.emoji import COLOUR, OBJECTS, UNSEEN, Emoji, captioned, table
from clstudy.evaluation.accuracy import evaluate
from clstudy.evaluation.retrieval import retrieval

RATES = (1e-4, 3e-4, 1e-3)
FOLDER = Path(__file__).parents[2] / "data" / "icon-clip"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def family_table(clip) -> list[str]:
    scores = zero_shot(clip)
    head = "family", "concepts, top-1", "concepts, top-5", "49 classes, top-1", "R@1 image to text", "R@1 text to image"
    rows = ["| " + " | ".join(head) + " |",
            "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for family in UNSEEN:
        drawings = table([family])
        pairs = captioned(drawings[drawings.group.isin(OBJECTS)])["drawings"]
        found = {
            row["set"]: row["value"] for row in retrieval(clip, pairs, family)
            if row["metric"] == "recall@1"
        }
        cells = [scores[f"{family}/{column}"] for column in ("top1", "top5", "class")]
        cells += [found[f"{family}: image to text"], found[f"{family}: text to image"]]
        rows.append(f"| {family} | " + " | ".join(map(percent, cells)) + " |")
    means = [
        sum(scores[f"{family}/{column}"] for family in COLOUR) / 4
        for column in ("top1", "top5", "class")
    ]
    rows.append("| mean of the four colour families | " + " | ".join(map(percent, means))
                + " | | |")
    return rows


def emoji_rows(clip) -> list[str]:
    world = Emoji().load()
    rows = evaluate(clip, world, [tuple(range(len(world.test.class_names)))], [])
    found = {
        row["set"]: row["value"] for row in rows
        if row["metric"] == "accuracy" and row["candidates"] != "seen"
    }
    sets = ["all classes", *world.held_out]
    return [
        f"| {'`emoji`, test concepts, 49 classes' if name == 'all classes' else name} | {percent(found[name])} |"
        for name in sets
    ]


def from_nothing() -> tuple[float, float]:
    """One pass over `emoji` from random weights against the pretrained model's row 0: is there
    knowledge to lose?"""
    joint = {
        "stream": "joint", "tuner": "full", "method": "finetune", "precision": "bf16",
        "held_out_every": 9
    }
    blank = [load_or_train(RunConfig(pretrained="random", lr=lr, **joint)) for lr in RATES]
    known = load_or_train(
        RunConfig(method="frozen", tuner="none", stream="joint", precision="bf16",
                  held_out_every=9))
    return known.final("all classes", stage=0), max(run.final("all classes") for run in blank)


def settings(recipes: list[dict]) -> list[str]:
    """A row per setting, a column per stage; empty where a stage did not know the setting."""
    cells = [[
        f"{value:,}" if isinstance(value, int) else str(value) for value in (r.get(name, "")
                                                                             for r in recipes)
    ] for name in recipes[-1]]
    head = ["setting", *(f"stage {i + 1}" for i in range(len(recipes)))]
    rule = ["---", *["---:"] * len(recipes)]
    rows = [[f"`{name}`", *row] for name, row in zip(recipes[-1], cells, strict=True)]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


def main() -> None:
    clip = load_clip()
    clip.precision = "bf16"
    clip.eval()
    curve = pd.read_json(FOLDER / "curve.jsonl", lines=True)
    figure = pretraining(curve, UNSEEN,
                         title="zero-shot over 861 object concepts, families never seen")
    figure.savefig(FOLDER / "curve.png")
    known, blank = from_nothing()
    text = (Path(__file__).parent / "card.md").read_text()
    recipes = json.loads((FOLDER / "recipes.json").read_text())
    count = sum(p.numel() for p in clip.parameters())
    image = sum(p.numel() for _, p in clip.tower("image"))
    text = text.format(families="\n".join(family_table(clip)), emoji="\n".join(emoji_rows(clip)),
                       settings="\n".join(settings(recipes)),
                       images=f"{curve.images.max():,}", parameters=f"{count / 1e6:.1f}",
                       image=f"{image / 1e6:.1f}", known=percent(known), blank=percent(blank),
                       rates=", ".join(map(str, RATES)))
    (FOLDER / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
