"""Rebuild the pretraining corpus: some 130,000 open-licensed pictograms with their names, as
arrays.

    python scripts/icon_clip/build_corpus.py           # needs npm and `pip install -e .[build]`

Writes `data/cache/corpus/`: `glyphs.npy` (alpha of monochrome icons, uint8 (n, 64, 64)),
`pictures.npy` (RGBA of coloured ones, uint8 (m, 64, 64, 4)) and `captions.json` (for each, in the
same order: set, name, words). It is not committed. The twelve emoji families are not in it:
pretraining takes its six from `data/emoji.parquet`.
"""
import argparse
import json
import re
import sys
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1] / "emoji"))
from draw import CACHE, IconSet, draw, packages

OUT = CACHE.parent / "corpus"
# Words in icon names that tell how an icon is drawn, not what it shows.
STYLE = set(
    "outline outlined filled fill line linear light thin bold duotone regular rounded round sharp broken solid "
    "twotone baseline block color remix icon ui flat fi".split())
LOGO = re.compile(r"(^|-)(brand|logo|logos|file-type|folder-type)(-|$)")


def words(name: str) -> str:
    """`arrow-down-bold-20` → `arrow down`: the name in words, without style, sizes and numbers at
    its end."""
    parts = [part for part in name.split("-") if part not in STYLE]
    while parts and re.fullmatch(r"\d+(px|dp)?|alt\d*|[a-z]", parts[-1]):
        parts.pop()
    return " ".join(parts)


def one_set(task: tuple[Path, str]) -> tuple[str, bool, list, list]:
    modules, prefix = task
    icons = IconSet(modules, prefix)
    colour = bool(icons.info.get("palette"))
    pictures, captions, seen = [], [], set()
    for name in icons.names(aliases=False):
        said = words(name)
        if not said or LOGO.search(name):
            continue
        if name.split("-")[-1].isdigit() or re.search(r"-\d+-(filled|regular|light|color)$", name):
            key = re.sub(r"\d+", "", name)  # sizes of one icon count once
            if key in seen:
                continue
            seen.add(key)
        try:
            picture = draw(icons.svg(name))
        except ValueError:  # some bodies are not valid SVG outside a browser
            continue
        if picture[..., 3].std() < 4:
            continue
        pictures.append(picture if colour else picture[..., 3])
        captions.append((prefix, name, said))
    return prefix, colour, pictures, captions


def build(out: Path, workers: int = 2) -> dict[str, int]:
    modules = packages()
    wanted = json.loads(
        (Path(__file__).parents[1] / "emoji" / "package.json").read_text())["dependencies"]
    emoji = {
        "noto", "twemoji", "openmoji", "noto-v1", "emojione", "emojione-v1", "emojione-monotone",
        "fxemoji", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast",
        "streamline-emojis"
    }
    prefixes = sorted({n.split("/")[1] for n in wanted if n.startswith("@iconify-json/")} - emoji)
    glyphs, coloured, glyph_captions, coloured_captions, counts = [], [], [], [], {}
    with Pool(workers) as pool:
        tasks = [(modules, prefix) for prefix in prefixes]
        for prefix, colour, pictures, captions in tqdm(pool.imap(one_set, tasks), total=len(tasks),
                                                       unit="set"):
            (coloured if colour else glyphs).extend(pictures)
            (coloured_captions if colour else glyph_captions).extend(captions)
            counts[prefix] = len(pictures)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "glyphs.npy", np.stack(glyphs))
    np.save(out / "pictures.npy", np.stack(coloured))
    (out / "captions.json").write_text(
        json.dumps({"glyphs": glyph_captions, "pictures": coloured_captions}))
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    found = build(arguments.out, arguments.workers)
    print(f"{sum(found.values())} pictures from {len(found)} sets in {arguments.out}")
