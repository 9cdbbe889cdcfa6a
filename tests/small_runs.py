"""Small finished runs, written by hand in the form in which they lie on disk, with numbers that can
be checked.

`make(folder, rows)` writes one. Nothing is trained, and settings are not checked, for that would
import open_clip."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from clstudy.evaluation.metrics import EXAMPLE
from clstudy.runs.run import Run
from clstudy.training.config import RunConfig

OWN = [[.9, .5, .5], [.9, .8, .5], [.9, .8, .7]]  # after the stages 1, 2, 3
SEEN = [[.9, .0, .0], [.5, .7, .0], [.4, .4, .4]]
CLASSES = {"a": {1: .8, 2: .6, 3: .5}, "b": {2: .5, 3: .6}, "c": {1: .0, 2: .0, 3: .9}}


def row(stage: int, name: str, candidates: str, value: float, metric: str = "accuracy",
        images: int | None = None, end: bool = True) -> dict:
    """One evaluation, named as `said` names it. A stage has 40 images."""
    kind, what, metric = meant(name, metric)
    return {
        "stage": stage, "images_seen": 40 * stage if images is None else images, "stage_end": end,
        "kind": kind, "name": what, "candidates": candidates, "metric": metric, "value": value,
        "count": 10
    }


def meant(name: str, metric: str = "accuracy") -> tuple[str, str, str]:
    """Kind, name and metric of "task 1", "class dog", "drawings: image to text", "concepts", …"""
    if name in ("seen classes", "all classes"):
        return "all", name, metric
    if ": " in name:
        pairs, direction = name.split(": ")
        return "retrieval", pairs, f"{direction.replace(' ', '-')} {metric}"
    kind, _, rest = name.partition(" ")
    return (kind, rest,
            metric) if rest and kind in ("task", "class", "domain") else ("held-out set", name,
                                                                          metric)


def said(row) -> str:
    """One name for what a row of `evals` is about: the reverse of `meant`."""
    if row["kind"] == "retrieval":
        return f"{row['name']}: {row['metric'].split(' ')[0].replace('-', ' ')}"
    return f"{row['kind']} {row['name']}" if row["kind"] in ("task", "class",
                                                             "domain") else row["name"]


def train(config, keep=None, probes=(), notes=None, progress=None) -> tuple[list[dict], list[dict]]:
    """`clstudy.training.loop.train`; its evaluations and steps as rows, each evaluation with `said`
    as "set".

    keep is called with the model; notes takes the cost and the tables of the probes."""
    from clstudy.training import loop

    made = loop.train(config, progress, probes)
    if keep:
        keep(made.model)
    if notes is not None:
        notes.update(cost=made.cost, **made.probes)
    rows = made.evals.to_dict("records")
    return [{**row, "set": said(row)} for row in rows], made.steps.to_dict("records")


def register(monkeypatch, name: str, method) -> None:
    """Under this name a run takes this very object for its method."""
    from clstudy.methods import METHODS

    class Given(type(method)):
        def __new__(cls):
            return method

    monkeypatch.setitem(METHODS, name, Given)


def evaluations(last: float = .4, concepts: float = .7) -> list[dict]:
    """Three stages and tasks; candidates "all" are the matrix of `metrics`' worked examples.

    last: accuracy on the classes seen, at the end; concepts: on a held-out set, at the end (0.9
    before)."""
    rows = [
        row(1, "seen classes", "seen", .9, images=20, end=False),
        row(1, "seen classes", "seen", .8, end=False),
        row(1, "seen classes", "seen", .8),
        row(2, "seen classes", "seen", .5, images=60, end=False),
        row(2, "seen classes", "seen", .6),
        row(3, "seen classes", "seen", last)
    ]
    for stage, values in enumerate(EXAMPLE.tolist()):
        rows += [row(stage, f"task {task}", "all", value) for task, value in enumerate(values, 1)]
        rows.append(row(stage, "task 1", "all", .01, "class-balanced accuracy"))
    for candidates, matrix in (("own", OWN), ("seen", SEEN)):
        rows += [
            row(stage, f"task {task}", candidates, value) for stage, values in enumerate(matrix, 1)
            for task, value in enumerate(values, 1)
        ]
    rows += [row(stage, f"class {name}", "seen", value) for name, values in CLASSES.items()
             for stage, value in values.items()]
    for stage, known, side, found in ((0, .4, .9, .5), (2, .6, .8, .4), (3, .65, concepts, .35)):
        rows += [row(stage, "all classes", "all", known), row(stage, "concepts", "own", side),
                 row(stage, "pets", "own", .2 + .1 * stage),
                 row(stage, "drawings: image to text", "all", 1., "recall@5"),
                 row(stage, "drawings: image to text", "all", found, "recall@1"),
                 row(stage, "drawings: text to image", "all", .6 + .01 * stage, "recall@1")]
    return rows


def make(folder: Path, rows: Sequence[dict] = (), seed: int = 0, steps: Sequence[dict] = (),
         probes: Mapping[str, pd.DataFrame] | None = None, **result) -> Run:
    """A finished run. probes: tables by name; result: what stands in result.json besides its id."""
    folder.mkdir(parents=True)
    for name, lines in (("evals", rows or evaluations()), ("steps", steps)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, table in (probes or {}).items():
        table.to_parquet(folder / f"{name}.parquet")
    stages = sorted({line["stage"] for line in rows or evaluations() if line["stage_end"]})
    bits = [{
        "stage": stage, "images_seen": 40 * stage, "stage_end": True, "set": "test",
        "candidates": "seen", "count": 10, "bits": bytes([stage, 0])
    } for stage in stages]
    pd.DataFrame(bits).to_parquet(folder / "correct.parquet")
    tests = {"set": "test", "label": [0] * 10, "concept": range(10), "domain": -1, "task": 1,
             "arrived": 40}
    pd.DataFrame(tests).to_parquet(folder / "tests.parquet")
    (folder / "result.json").write_text(
        json.dumps({"run_id": folder.name, "seconds": 1.0, **result}))
    return Run(RunConfig.model_construct(seed=seed), folder)
