"""Time the comparisons of a notebook: 10 methods against a base, 3 metrics, 8 seeds, 850 concepts.

    python scripts/statistics/benchmark.py

Runs are written by hand, with drawings that are right at random; reading them is part of the
time. It should stay below five seconds of one core."""
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from clstudy.analysis.comparisons import compare, tell
from clstudy.runs.run import Run
from clstudy.training.config import RunConfig

METHODS, SEEDS, CONCEPTS, CLASSES, STAGES, POINTS, IMAGES = 11, 8, 850, 50, 5, 25, 2000
METRICS = ["A_last", "A_auc", "forgetting"]


def make(folder: Path, method: int, seed: int) -> Run:
    """Write a run with two drawings of each concept. Classes arrive in an order of the seed."""
    rng = np.random.default_rng([method, seed])
    order = np.random.default_rng(seed).permutation(CLASSES)
    label = np.repeat(np.arange(CONCEPTS) % CLASSES, 2)
    task = 1 + np.argsort(order)[label] // (CLASSES // STAGES)
    per_stage = IMAGES // STAGES
    tests = pd.DataFrame({"set": "test", "label": label, "concept": np.arange(2 * CONCEPTS) // 2,
                          "domain": -1, "task": task, "arrived": (task - 1) * per_stage + 20})
    bits, evals = [], []
    for images in sorted({*range(0, IMAGES + 1, IMAGES // POINTS),
                          *range(0, IMAGES + 1, per_stage)}):
        end, stage = images % per_stage == 0, -(-images // per_stage)
        where = {"stage": stage, "images_seen": images, "stage_end": end}
        for candidates in ("own", "seen", "all") if end else ("seen",):
            right = rng.random(2 * CONCEPTS) < 0.6 + 0.01 * method
            bits.append({**where, "set": "test", "candidates": candidates,
                         "count": len(right), "bits": np.packbits(right).tobytes()})
            evals += _rows(where, candidates, right, tests)
    folder.mkdir()
    (folder / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
    (folder / "steps.jsonl").write_text("")
    pd.DataFrame(bits).to_parquet(folder / "correct.parquet")
    tests.to_parquet(folder / "tests.parquet")
    (folder / "result.json").write_text(json.dumps({"run_id": folder.name}))
    return Run(RunConfig.model_construct(method=f"method {method}", seed=seed), folder)


def _rows(where: dict, candidates: str, right: np.ndarray, tests: pd.DataFrame) -> list[dict]:
    known = tests.arrived <= where["images_seen"] if candidates == "seen" else tests.arrived >= 0
    groups = [("all", f"{candidates} classes", known)] * bool(known.any() and candidates != "own")
    if where["stage_end"]:
        groups += [(kind, str(name), tests[column] == name) for kind, column in
                   (("task", "task"), ("class", "label")) for name in sorted(set(tests[column]))]
    return [{**where, "kind": kind, "name": name, "candidates": candidates, "metric": "accuracy",
             "value": float(right[among].mean()), "count": int(among.sum())}
            for kind, name, among in groups]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        runs = [make(Path(place) / f"{method}-{seed}", method, seed)
                for method in range(METHODS) for seed in range(SEEDS)]
        compare(runs[:2 * SEEDS], "A_last", base="method 0")  # imports
        runs = [Run(run.config, run.folder) for run in runs]
        start = time.process_time()
        found = compare(runs, METRICS, base="method 0")
        seconds = time.process_time() - start
    print(tell(found))
    print(f"{len(found)} comparisons of {SEEDS} pairs, {found.interval.value_counts().to_dict()}: "
          f"{seconds:.1f} CPU seconds")


if __name__ == "__main__":
    main()
