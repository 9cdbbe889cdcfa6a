"""What the probes share: names of classes, the cosine of two gradients, tables of rows."""
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

Names = Sequence[Hashable] | Tensor | np.ndarray


def listed(names: Names) -> list[Hashable]:
    """Return names as plain values, of which equal ones compare as equal."""
    return names.tolist() if isinstance(names, Tensor | np.ndarray) else list(names)


def cosine(a: Tensor, b: Tensor | None) -> Tensor | float:
    """Return the cosine of two vectors; NaN where there is no direction to compare with."""
    if b is None or a.shape != b.shape:
        return float("nan")
    norms = a.norm() * b.norm()
    return torch.where(norms > 0, a @ b / norms, torch.nan)


def to_table(rows: list[dict]) -> pd.DataFrame:
    """Return rows, whose numbers may still be on the device, as a table."""
    return pd.DataFrame(settled(rows))


def settled(rows: list[dict]) -> list[dict]:
    """Bring all numbers of the rows to the host, in place and at once; return the rows."""
    keys = [(i, key) for i, row in enumerate(rows) for key, value in row.items()
            if isinstance(value, Tensor)]
    if keys:
        values = torch.stack([rows[i][key].detach().float() for i, key in keys]).cpu().tolist()
        for (i, key), value in zip(keys, values, strict=True):
            rows[i][key] = value
    return rows
