"""stub"""
import io

import numpy as np
from PIL import Image

PRETRAINING = ("openmoji", "noto-v1", "emojione", "emojione-v1", "emojione-monotone", "fxemoji")


def decode(column) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGBA")) for cell in column])
