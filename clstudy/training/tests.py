"""What the images are that a run is tested on: their class, concept and domain, and when the stream
brings their class."""
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clstudy.data.streams import Stage
from clstudy.data.types import BenchmarkData, Captioned, Labelled
from clstudy.training.config import RunConfig


def tests(benchmark: BenchmarkData, stages: Sequence[Stage], config: RunConfig) -> pd.DataFrame:
    """Return a row for each image of each set, in the order of the bits of `Trained.correct`.

    Columns: set ("test", a held-out set, retrieval, "NAME: captions" for its captions); label (of
    retrieval: −1); concept (images of one concept are no independent tests); domain, task (home
    stage of the class), −1 where there is none; arrived: the images that the stream has brought
    when the class is first seen, −1 where it never is."""
    task, arrived = (np.full(len(benchmark.test.class_names), -1) for _ in range(2))
    before = 0
    for stage in stages:
        task[list(stage.classes)] = stage.number
        labels, first = np.unique(benchmark.train.labels[stage.index], return_index=True)
        ends = np.minimum((first // config.batch_size + 1) * config.batch_size, len(stage.index))
        new = arrived[labels] < 0
        arrived[labels[new]] = before + ends[new]
        before += config.epochs * len(stage.index)
    test = benchmark.test
    tables = [_table("test", test.labels, test, task=task[test.labels],
                     arrived=arrived[test.labels])]
    tables += [_table(name, each.labels, each) for name, each in benchmark.held_out.items()]
    for name, pairs in benchmark.retrieval.items():
        images = _table(name, np.full(len(pairs), -1), pairs)
        tables += [images, images.iloc[pairs.owner].assign(set=f"{name}: captions")]
    return pd.concat(tables, ignore_index=True).astype({"set": "category"})


def _table(name: str, labels: np.ndarray, of: Labelled | Captioned, task: np.ndarray | int = -1,
           arrived: np.ndarray | int = -1) -> pd.DataFrame:
    concepts = np.arange(len(labels)) if of.concepts is None else of.concepts
    domains = getattr(of, "domains", None)
    columns = {"label": labels, "concept": concepts, "domain": -1 if domains is None else domains,
               "task": task, "arrived": arrived}
    return pd.DataFrame({"set": name, **columns}).astype(dict.fromkeys(columns, np.int32))
