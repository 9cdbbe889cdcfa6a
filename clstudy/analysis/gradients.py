"""From the tables of the probes to what a figure shows: the push on classes in time, norms,
directions, drift.

Most functions take groups of runs, method → runs (one per seed), and return a long table with the
columns panel, method, seed, images_seen, value, and part where a line is made of parts;
`plots.bands` draws it."""
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.stats import spearmanr

from clstudy.evaluation import metrics
from clstudy.runs.run import Run

Groups = Mapping[str, Sequence[Run]]
PUSHES = {"push": "sum", "push attraction": "attraction", "push repulsion": "repulsion"}


def learned(run: Run) -> pd.Series:
    """For each class, the stage in which its first image came."""
    table = run.probe("classes")
    return table[table.present].groupby("class").stage.min()


def step(tables: Mapping[str, pd.DataFrame], stage: int, term: str = "task") -> pd.DataFrame:
    """The first step of a stage, class by class, from tables of the probe `classes`; a row for
    every class that any of the methods had in its loss. ValueError: a stage that was not probed."""
    rows = []
    for method, table in tables.items():
        stages = sorted(set(table.stage))
        if stage not in stages:
            raise ValueError(f"stage={stage!r}: the run has steps in the stages {stages}")
        mine = table[(table.stage == stage) & (table.term == term)]
        rows.append(mine[mine.step == mine.step.min()].assign(method=method))
    return pd.concat(rows, ignore_index=True)


def pushes(groups: Groups, stage: int = 1, term: str = "task") -> pd.DataFrame:
    """Cumulative push on the texts of the classes that `stage` brought, mean over these classes.
    Panel: what was in the batch. A text that is not in the loss gets no push."""
    rows = []
    for method, runs in groups.items():
        for run in runs:
            table, home = run.probe("classes"), learned(run)
            classes = home.index[home == stage]
            times = table.images_seen.drop_duplicates()
            mine = table[table["class"].isin(classes) & (table.term == term)]
            for panel, present in (("in the batch", True), ("seen, but absent", False)):
                for column, part in PUSHES.items():
                    sums = mine[mine.present == present].groupby("images_seen")[column].sum() / max(
                        len(classes), 1)
                    sums = sums.reindex(times, fill_value=0.0).cumsum()
                    rows.append(
                        _rows(sums, panel=panel, method=method, seed=run.config.seed, part=part))
    return pd.concat(rows, ignore_index=True)


def norms(groups: Groups, column: str = "norm", term: str = "task") -> pd.DataFrame:
    """A column of the probe `gradients` per tower, mean over the steps on a batch: "norm",
    "previous", "update", …"""
    rows = []
    for method, runs in groups.items():
        for run in runs:
            table = run.probe("gradients")
            table = table[(table.block == "all") & (table.term == term)]
            for tower, mine in table.groupby("tower"):
                rows.append(
                    _rows(
                        mine.groupby("images_seen")[column].mean().dropna(), panel=f"{tower} tower",
                        method=method, seed=run.config.seed))
    return pd.concat(rows, ignore_index=True)


def blocks(groups: Groups, column: str = "norm", term: str = "task") -> pd.DataFrame:
    """The mean over all steps, per tower and block: columns panel, block, method, seed, value."""
    rows = []
    for method, runs in groups.items():
        for run in runs:
            table = run.probe("gradients")
            table = table[(table.block != "all") & (table.term == term)]
            means = table.groupby(["tower", "block"])[column].mean().rename("value").reset_index()
            rows.append(
                means.assign(panel=means.tower + " tower", method=method, seed=run.config.seed))
    return pd.concat(rows, ignore_index=True)


DRIFTS = {
    "text": "texts moved, 1 − cos", "image": "images moved, 1 − cos",
    "match": "text with its images, cos"
}


def drifts(groups: Groups, stage: int = 1, columns: Mapping[str, str] = DRIFTS) -> pd.DataFrame:
    """Columns of the probe `drift`, mean over the classes that `stage` brought. Panel: the column
    in words."""
    rows = []
    for method, runs in groups.items():
        for run in runs:
            table, home = run.probe("drift"), learned(run)
            mine = table[table["class"].isin(home.index[home == stage])]
            for column, panel in columns.items():
                rows.append(
                    _rows(
                        mine.groupby("images_seen")[column].mean(), panel=panel, method=method,
                        seed=run.config.seed))
    return pd.concat(rows, ignore_index=True)


def _rows(values: pd.Series, **about) -> pd.DataFrame:
    return pd.DataFrame({"images_seen": values.index, "value": values.to_numpy()}).assign(**about)


def fates(groups: Groups, term: str = "task") -> pd.DataFrame:
    """A row per run and class that was known at the end of its first stage, before the last stage
    (accuracy above 0: it had something to lose). Columns method, seed, class, and

    repelled   cumulative push on its text while it was absent
    parted     change of cos(text, mean of its images) from the end of its first stage to the end of the stream
    change     change of its accuracy (candidates: all classes of the stream) over the same time, in points"""
    rows = []
    for method, runs in groups.items():
        for run in runs:
            home, drift, accuracy = learned(run), run.probe("drift"), 100 * run.classes("all")
            table = run.probe("classes")
            absent = table[~table.present & (table.term == term)].groupby("class").push.sum()
            match = drift.drop_duplicates(["stage", "class"], keep="last").pivot(
                index="stage", columns="class", values="match")
            last = int(home.max())
            for name, stage in home.items():
                if stage < last and name in match and accuracy.get(name, {}).get(stage, 0) > 0:
                    rows.append({"method": method, "seed": run.config.seed, "class": name,
                                 "repelled": float(absent.get(name, 0.0)),
                                 "parted": float(match[name][last] - match[name][stage]),
                                 "change": float(accuracy[name][last] - accuracy[name][stage])})
    return pd.DataFrame(rows)


def agreement(table: pd.DataFrame, cause: str, effect: str = "change") -> metrics.Interval:
    """Spearman's rank correlation over classes, one per run: mean and 95 % half width over the
    runs.

    Runs in which one of the two does not vary have none and are left out."""
    found = [
        spearmanr(rows[cause], rows[effect]).statistic
        for _, rows in table.groupby(["method", "seed"])
        if rows[cause].nunique() > 1 and rows[effect].nunique() > 1
    ]
    return metrics.interval(found) if found else metrics.Interval(float("nan"), float("nan"))


def rank(found: metrics.Interval) -> str:
    """A rank correlation with its interval, in words."""
    low, high = (found.mean + sign * found.half_width for sign in (-1, 1))
    said = "together" if low > 0 else "against each other" if high < 0 else "no significant relation"
    return f"Spearman {found.mean:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}: {said}"


def at_end(table: pd.DataFrame, name: str = "at the end") -> pd.DataFrame:
    """The last value of each run in each panel: columns panel, method, seed, part if there are any,
    and `name`."""
    return _by_run(table.sort_values("images_seen", kind="stable")).last().reset_index(name=name)


def mean_over(table: pd.DataFrame, name: str = "mean over the stream") -> pd.DataFrame:
    """The mean over the stream of each run in each panel, with the columns of `at_end`."""
    return _by_run(table).mean().reset_index(name=name)


def _by_run(table: pd.DataFrame):
    return table.groupby([name for name in ("panel", "method", "seed", "part") if name in table],
                         sort=False).value
