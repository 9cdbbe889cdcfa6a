"""Rebuild `data/emoji.parquet`: every Unicode emoji as twelve icon families draw it.

    python scripts/emoji/build_emoji.py            # needs npm and `pip install -e .[build]`

A concept is one emoji of `emojibase-data` without skin tone; of variants by gender only the neutral
one is kept where there is one. A family's icon belongs to a concept by its code point where the set
lists them, and otherwise by its name. A picture is kept if it shows anything on white.
"""
import argparse
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from draw import IconSet, draw, on_white, packages
from PIL import Image
from tqdm import tqdm

FAMILIES = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast",
            "streamline-emojis", "openmoji", "noto-v1", "emojione", "emojione-v1",
            "emojione-monotone", "fxemoji")
OUT = Path(__file__).parents[2] / "data" / "emoji.parquet"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "").replace("&", "and")).strip("-")


def plain(hexcode: str) -> str:
    """A code point sequence without presentation selectors, as the icon sets write it."""
    return "-".join(part for part in hexcode.upper().split("-") if part not in ("FE0F", "FE0E"))


def concepts(modules: Path) -> list[dict]:
    """The emoji that count: no components, no skin tones, and one entry where only the gender
    differs."""
    base = modules / "emojibase-data"
    rows = json.loads((base / "en" / "data.json").read_text(encoding="utf-8"))
    words = json.loads((base / "meta" / "groups.json").read_text(encoding="utf-8"))
    unicode_names = json.loads((base / "meta" / "unicode-names.json").read_text(encoding="utf-8"))
    known = {plain(row["hexcode"]) for row in rows}
    kept = []
    for row in sorted(rows, key=lambda row: row.get("order", 0)):
        if row.get("group") is None or words["groups"][str(row["group"])] == "component":
            continue
        code = plain(row["hexcode"])
        neutral = re.sub(r"-200D-(2640|2642)$", "", re.sub(r"^(1F468|1F469)(?=-200D)", "1F9D1",
                                                           code))
        if neutral != code and neutral in known:
            continue
        kept.append({
            "hexcode": row["hexcode"], "code": code, "emoji": row["emoji"], "label": row["label"],
            "tags": row.get("tags", []), "group": words["groups"][str(row["group"])],
            "subgroup": words["subgroups"][str(row["subgroup"])], "unicode_name": unicode_names.get(
                row["hexcode"], "")
        })
    return kept


def name_table(found: list[dict], sets: dict[str, IconSet], modules: Path) -> dict[str, str]:
    """Icon name → code. Labels first, then the names that sets with code points use, then Unicode's
    and shortcodes."""
    table: dict[str, str] = {}
    for concept in found:
        table.setdefault(slug(concept["label"]), concept["code"])
    for icons in sets.values():
        for code, name in icons.chars.items():
            table.setdefault(name, plain(code))
    for concept in found:
        table.setdefault(slug(concept["unicode_name"]), concept["code"])
    for file in sorted((modules / "emojibase-data" / "en" / "shortcodes").glob("*.json")):
        for code, names in json.loads(file.read_text(encoding="utf-8")).items():
            for name in [names] if isinstance(names, str) else names:
                table.setdefault(slug(name), plain(code))
    return table


def match(icons: IconSet, table: dict[str, str]) -> dict[str, str]:
    """Code → icon name for one family; the first name in the set's order wins."""
    if icons.chars:
        return {plain(code): name for code, name in sorted(icons.chars.items(), reverse=True)}
    squashed = {name.replace("-", ""): code for name, code in reversed(table.items())}
    matched: dict[str, str] = {}
    for name in icons.names():
        bare = re.sub(r"-\d+$", "", name) if icons.prefix == "streamline-emojis" else name
        code = table.get(name) or table.get(bare) or squashed.get(bare.replace("-", ""))
        if code:
            matched.setdefault(code, name)
    return matched


def build(out: Path, families: tuple[str, ...] = FAMILIES,
          limit: int | None = None) -> dict[str, int]:
    modules = packages("emojibase-data", *(f"@iconify-json/{family}" for family in families))
    found = concepts(modules)[:limit]
    sets = {family: IconSet(modules, family) for family in families}
    table = name_table(concepts(modules), sets, modules)
    rows, counts = [], {}
    for family, icons in sets.items():
        names = match(icons, table)
        for concept in tqdm(found, desc=family, unit="icon"):
            name = names.get(concept["code"])
            if name is None:
                continue
            picture = draw(icons.svg(name))
            if on_white(picture).std() < 4:  # grey levels: nothing to see
                continue
            file = io.BytesIO()
            Image.fromarray(picture, "RGBA").save(file, "WEBP", lossless=True, quality=75, method=4)
            rows.append({
                "family": family, "hexcode": concept["hexcode"], "emoji": concept["emoji"],
                "label": concept["label"], "tags": concept["tags"], "group": concept["group"],
                "subgroup": concept["subgroup"], "icon": name, "image": {
                    "bytes": file.getvalue(), "path": f"{family}/{name}.webp"
                }
            })
            counts[family] = counts.get(family, 0) + 1
    write(rows, out)
    return counts


def write(rows: list[dict], out: Path) -> None:
    """Parquet with the feature types that `datasets` reads, so that the column `image` arrives as
    pictures."""
    text = pa.string()
    image = pa.struct({"bytes": pa.binary(), "path": text})
    schema = pa.schema({
        "family": text, "hexcode": text, "emoji": text, "label": text, "tags": pa.list_(text),
        "group": text, "subgroup": text, "icon": text, "image": image
    })
    word = {"dtype": "string", "_type": "Value"}
    features = {name: word for name in schema.names} | {"tags": {"feature": word, "_type": "List"},
                                                        "image": {"_type": "Image"}}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist(rows, schema), out, compression="zstd", row_group_size=500)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    for family, count in build(arguments.out).items():
        print(f"{family:28} {count:5}")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")
