"""What the probes share: names of classes as plain values, the angle of two gradients, rows as a
table."""
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

Names = Sequence[Hashable] | Tensor | np.ndarray


def listed(names: Names) -> list[Hashable]:
    """Plain values, which are equal where they look equal."""
    return names.tolist() if isinstance(names, Tensor | np.ndarray) else list(names)


def cosine(a: Tensor, b: Tensor | None) -> Tensor | float:
    """NaN where there is no direction to compare with."""
    if b is None or a.shape != b.shape:
        return float("nan")
    return torch.where((norms := a.norm() * b.norm()) > 0, a @ b / norms,
                       torch.full_like(norms, torch.nan))


def to_table(rows: list[dict]) -> pd.DataFrame:
    """Rows with numbers that may still be on the device, as a table."""
    return pd.DataFrame(settled(rows))


def settled(rows: list[dict]) -> list[dict]:
    """The same rows with all numbers on the host, in place."""
    keys = [(i, key) for i, row in enumerate(rows) for key, value in row.items()
            if isinstance(value, Tensor)]
    if keys:
        values = torch.stack([rows[i][key].detach().float() for i, key in keys]).cpu().tolist()
        for (i, key), value in zip(keys, values, strict=True):
            rows[i][key] = value
    return rows
