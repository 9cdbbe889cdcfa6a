"""From the tables of the probes to figures: the push on classes in time, norms, directions, drift.

Most functions take groups of runs, method → runs (one per seed), and return a long table with the
columns panel, method, seed, images_seen, value, and part where a line is made of parts;
`plots.bands` draws it."""
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from clstudy.analysis.intervals import Interval, interval
from clstudy.runs.run import Run

Groups = Mapping[str, Sequence[Run]]
PUSHES = {"push": "sum", "push attraction": "attraction", "push repulsion": "repulsion"}
DRIFTS = {"text": "texts moved, 1 − cos", "image": "images moved, 1 − cos",
          "match": "text with its images, cos"}


def learned(run: Run) -> pd.Series:
    """Return for each class the stage in which its first image came."""
    table = run.probe("classes")
    return table[table.present].groupby("class").stage.min()


def step(tables: Mapping[str, pd.DataFrame], stage: int, term: str = "task") -> pd.DataFrame:
    """Return the first step of a stage, class by class, from tables of the probe `classes`: a row
    for every class that any of the methods had in its loss. ValueError: a stage without steps."""
    rows = []
    for method, table in tables.items():
        stages = sorted(set(table.stage))
        if stage not in stages:
            raise ValueError(f"stage={stage!r}: the run has steps in the stages {stages}")
        mine = table[(table.stage == stage) & (table.term == term)]
        rows.append(mine[mine.step == mine.step.min()].assign(method=method))
    return pd.concat(rows, ignore_index=True)


def pushes(groups: Groups, stage: int = 1, term: str = "task") -> pd.DataFrame:
    """Return the cumulative push on the texts of the classes that `stage` brought, the mean over
    these classes. Panel: what was in the batch. A text that is not in the loss gets no push."""
    def of_run(run: Run) -> Iterable[pd.DataFrame]:
        table, classes = run.probe("classes"), _brought(run, stage)
        times = table.images_seen.drop_duplicates()
        mine = table[table["class"].isin(classes) & (table.term == term)]
        for panel, present in (("in the batch", True), ("seen, but absent", False)):
            sums = mine[mine.present == present].groupby("images_seen")[list(PUSHES)].sum()
            total = (sums / max(len(classes), 1)).reindex(times, fill_value=0.0).cumsum()
            for column, part in PUSHES.items():
                yield _line(total[column], panel).assign(part=part)

    return _collect(groups, of_run)


def norms(groups: Groups, column: str = "norm", term: str = "task") -> pd.DataFrame:
    """Return a column of the probe `gradients` per tower, the mean over the steps on a batch:
    "norm", "previous", "update", …"""
    def of_run(run: Run) -> Iterable[pd.DataFrame]:
        table = run.probe("gradients")
        table = table[(table.block == "all") & (table.term == term)]
        for tower, mine in table.groupby("tower"):
            means = mine.groupby("images_seen")[column].mean()
            yield _line(means.dropna(), f"{tower} tower")

    return _collect(groups, of_run)


def drifts(groups: Groups, stage: int = 1, columns: Mapping[str, str] = DRIFTS) -> pd.DataFrame:
    """Return columns of the probe `drift`, the mean over the classes that `stage` brought. Panel:
    the column in words."""
    def of_run(run: Run) -> Iterable[pd.DataFrame]:
        table = run.probe("drift")
        mine = table[table["class"].isin(_brought(run, stage))].groupby("images_seen")
        for column, panel in columns.items():
            yield _line(mine[column].mean(), panel)

    return _collect(groups, of_run)


def _brought(run: Run, stage: int) -> pd.Index:
    home = learned(run)
    return home.index[home == stage]


def _line(values: pd.Series, panel: str) -> pd.DataFrame:
    return values.rename("value").rename_axis("images_seen").reset_index().assign(panel=panel)


def _collect(groups: Groups, of_run: Callable[[Run], Iterable[pd.DataFrame]]) -> pd.DataFrame:
    """Join the tables of all runs, with the columns method and seed."""
    tables = [table.assign(method=method, seed=run.config.seed)
              for method, runs in groups.items() for run in runs for table in of_run(run)]
    return pd.concat(tables, ignore_index=True)


def fates(groups: Groups, term: str = "task") -> pd.DataFrame:
    """Return a row per run and class that was known at the end of its first stage, before the last
    stage (accuracy above 0: it had something to lose). Columns method, seed, class, and

    repelled   cumulative push on its text while it was absent
    parted     change of cos(text, mean of its images) from the end of its first stage to the end
    change     change of its accuracy (candidates: all classes) over the same time, in points"""
    def of_run(run: Run) -> Iterable[pd.DataFrame]:
        home, accuracy, table = learned(run), 100 * run.classes("all"), run.probe("classes")
        absent = table[~table.present & (table.term == term)].groupby("class").push.sum()
        ends = run.probe("drift").drop_duplicates(["stage", "class"], keep="last")
        match = ends.pivot(index="stage", columns="class", values="match")
        last, rows = int(home.max()), []
        for name, stage in home.items():
            if stage < last and name in match and accuracy.get(name, {}).get(stage, 0) > 0:
                rows.append({"class": name, "repelled": float(absent.get(name, 0.0)),
                             "parted": match[name][last] - match[name][stage],
                             "change": accuracy[name][last] - accuracy[name][stage]})
        yield pd.DataFrame(rows)

    return _collect(groups, of_run)


def agreement(table: pd.DataFrame, cause: str, effect: str = "change") -> Interval:
    """Return Spearman's rank correlation over classes, one per run: mean and 95 % half width over
    the runs.

    Runs in which one of the two is constant have none and are left out."""
    found = [rows[[cause, effect]].corr("spearman").iloc[0, 1]
             for _, rows in table.groupby(["method", "seed"])]
    found = pd.Series(found).dropna().to_numpy()
    return interval(found) if len(found) else Interval(float("nan"), float("nan"))


def rank(found: Interval) -> str:
    """Write a rank correlation with its interval in words."""
    low, high = found.mean - found.half_width, found.mean + found.half_width
    said = "no significant relation"
    if low > 0 or high < 0:
        said = "together" if low > 0 else "against each other"
    return f"Spearman {found.mean:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}: {said}"


def at_end(table: pd.DataFrame, name: str = "at the end") -> pd.DataFrame:
    """Return the last value of each run in each panel: columns panel, method, seed, part if there
    are any, and `name`."""
    return _by_run(table.sort_values("images_seen", kind="stable")).last().reset_index(name=name)


def _by_run(table: pd.DataFrame):
    keys = [name for name in ("panel", "method", "seed", "part") if name in table]
    return table.groupby(keys, sort=False).value


ENCODERS = {("learned", "learned"): "both as then", ("now", "learned"): "images as now",
            ("learned", "now"): "texts as now", ("now", "now"): "both as now"}


def exchanged(groups: Groups, candidates: str = "all") -> pd.DataFrame:
    """Return what a model of mixed times reaches on the tasks before the last, at the end of the
    stream: columns method, seed, encoders, accuracy (percent, the mean over these tasks).

    encoders: whose features are as they were at the end of the task's own stage, and whose are as
    they are now (probe `towers`)."""
    def of_run(run: Run) -> Iterable[pd.DataFrame]:
        table = run.probe("towers")
        table = table[(table.stage == table.stage.max()) & (table.candidates == candidates)]
        table = table[table.task.isin(table.task[table.image == "learned"])]
        for (image, text), encoders in ENCODERS.items():
            mine = table[(table.image == image) & (table.text == text)]
            accuracy = 100 * (mine.right / mine["count"]).mean()
            yield pd.DataFrame({"encoders": [encoders], "accuracy": accuracy})

    return _collect(groups, of_run)
