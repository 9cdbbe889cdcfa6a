"""stub"""
import io

import numpy as np
import pandas as pd
from PIL import Image
from pathlib import Path

PATH = Path(__file__).parent.parent.parent / "data" / "emoji.parquet"
PRETRAINING = ("openmoji", "noto-v1", "emojione", "emojione-v1", "emojione-monotone", "fxemoji")
UNSEEN = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "streamline-emojis")
OBJECTS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
TEMPLATE = "a drawing of a {}."
CLASS_NAMES = {
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-amphibian": "amphibian", "animal-reptile": "reptile",
    "animal-marine": "sea animal", "animal-bug": "insect or bug", "plant-flower": "flower", "plant-other": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food-prepared": "prepared meal", "food-asian": "asian food",
    "food-sweet": "sweet or dessert", "drink": "drink", "dishware": "dishware", "place-map": "map",
    "place-geographic": "landscape", "place-building": "building", "place-religious": "religious building",
    "place-other": "scenic place", "transport-ground": "land vehicle", "transport-water": "ship or boat",
    "transport-air": "aircraft", "hotel": "hotel item", "time": "clock", "sky-weather": "weather or sky",
    "event": "celebration", "award-medal": "award or medal", "sport": "sport", "game": "game or toy",
    "arts-crafts": "arts and crafts", "clothing": "clothing", "sound": "sound or loudspeaker", "music": "music",
    "musical-instrument": "musical instrument", "phone": "telephone", "computer": "computer", "light-video": "light or camera",
    "book-paper": "book or paper", "money": "money", "mail": "mail", "writing": "writing tool", "office": "office item",
    "lock": "lock or key", "tool": "tool or weapon", "science": "science instrument", "medical": "medical item",
    "household": "household item", "other-object": "other object"}


def readable(subgroup: str) -> str:
    """`transport-air` → `aircraft`: the class name that stands in a prompt."""
    return CLASS_NAMES.get(subgroup, subgroup.replace("-", " "))


def decode(column) -> np.ndarray:
    """Image cells of the parquet file → RGBA, uint8 (n, 64, 64, 4)."""
    return np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGBA")) for cell in column])


def on_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA → RGB on white: uint8 (n, h, w, 4) to (n, 3, h, w)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))


def table(families=None) -> pd.DataFrame:
    rows = pd.read_parquet(PATH)
    return rows if families is None else rows[rows.family.isin(families)].reset_index(drop=True)
