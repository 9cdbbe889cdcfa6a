"""The `clstudy` command. A command imports what it needs when it is called."""
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from clstudy.utils import paths

# what several commands take
Notebooks = Annotated[list[str], Argument(
    help="Names (03_candidates, 03, a part of the name) or paths.")]
AnyNotebooks = Annotated[list[str] | None, Argument(help="Names, as for run. Default: all.")]
Profile = Annotated[str, Option(
    help="Which of a notebook's sets of parameters: quick, full, or paper (where a notebook has "
         "the settings of its paper).")]
Out = Annotated[Path | None, Option(help="The folder to write to. Default: a folder in runs.")]
Timeout = Annotated[float | None, Option(help="Seconds for one notebook.")]
Probes = Annotated[list[str] | None, Option("--probe", help="Store this probe's table; several.")]
KeepModel = Annotated[bool | None, Option("--keep-model", help="Store tuned weights.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="A laboratory for continual learning of CLIP.")


@contextmanager
def refusing(*more: type[Exception]) -> Iterator[None]:
    """Print an error that the user can mend in one line, and exit with code 2."""
    try:
        yield
    except (ValueError, OSError, *more) as error:
        typer.secho(f"clstudy: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


# ---- notebooks


@app.command()
@refusing()
def run(notebooks: Notebooks,
        parameter: Annotated[list[str] | None, Option(
            "-p", "--parameter", help="NAME=VALUE. Beats the profile.")] = None,
        profile: Profile = "quick", out: Out = None, timeout: Timeout = None) -> None:
    """Execute notebooks headlessly; executed copies and HTML go to runs/notebooks."""
    from clstudy.notebooks import parameters

    given = {}
    for text in parameter or []:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"-p {text!r}: write -p NAME=VALUE")
        given[name.strip()] = value
    tasks = [(path, parameters.choose_parameters(path, given, profile))
             for path in parameters.find_notebooks(notebooks)]
    parameters.check_data(tasks)
    raise typer.Exit(_execute(tasks, out or _executed(), timeout))


@app.command()
@refusing()
def study(profile: Profile = "quick", part: Annotated[str, Option(
        help="main: the main questions; more: the other notebooks; all")] = "main",
        stored: Annotated[bool, Option(
            "--stored", help="Draw from figures/runs.parquet; train nothing.")] = False,
        pack: Annotated[bool, Option(
            "--pack", help="Pack the runs into figures/runs.parquet.")] = False) -> None:
    """Run the notebooks of a study and draw their figures: the main study on the embedded data.

    The profile full draws into figures/, every other one into a folder of the runs, and tells its
    primary outcomes beside the stored evidence."""
    from clstudy.notebooks import study as studies

    started = time.perf_counter()
    if stored and pack:
        raise ValueError("--stored takes runs from the file that --pack writes; choose one")
    tasks, without = studies.of_part(part, profile)
    if without:
        typer.echo(f"without a profile {profile!r}, left out: {', '.join(without)}")
    if stored:
        tasks, live = studies.divided(tasks)
        typer.echo(f"computed in the notebook, so their figures stay: {', '.join(live) or 'none'}")
    with studies.surroundings(profile, stored, listed=pack):
        code = _execute(tasks, _executed(), kernels=2 * stored)
        numbers = {path.stem[:2] for path, _ in tasks}
        for table in sorted(paths.FIGURES.glob("*.md")):
            if table.stem[:2] in numbers:
                typer.echo(f"\n{table.read_text()}")
        gallery()
        studies.fill_readme()
        if pack:
            typer.echo("not packed: a notebook failed" if code else studies.pack(part == "all"))
        elif not stored:
            typer.echo(f"\n{studies.beside_stored()}\n")
        minutes = (time.perf_counter() - started) / 60
        typer.echo(f"figures: {paths.FIGURES}   runs: {paths.RUNS}   "
                   f"executed notebooks: {_executed()}   time: {minutes:.1f} min")
    raise typer.Exit(code)


def _executed() -> Path:
    return paths.RUNS / "notebooks"


def _execute(tasks: list[tuple[Path, dict[str, Any]]], out: Path,
             timeout: float | None = None, kernels: int = 0) -> int:
    """Execute notebooks one after the other, or some at a time in warm kernels; return the exit
    code."""
    from clstudy.notebooks import execute, html

    def one_by_one() -> Iterator[tuple[Path, Any]]:
        for path, given in tasks:
            settings = " ".join(f"{name}={value}" for name, value in given.items())
            typer.echo(f"── {path.stem} {settings}")
            yield path, execute.run_notebook(path, given, out, timeout=timeout)
            html.index(out)

    ended = {}
    for path, done in execute.run_beside(tasks, out, kernels, timeout) if kernels else one_by_one():
        ended[path] = done
        if kernels:
            typer.echo(f"── {path.stem}  {done.seconds:.0f} s")
        if not done.ok:
            typer.secho(f"   failed: {done.error}", fg="red", err=True)
    html.index(out)
    typer.echo("")
    for path, done in sorted(ended.items()):
        state = "ok    " if done.ok else "FAILED"
        typer.echo(f"{state} {path.stem:20} {done.seconds:6.0f} s  {done.html}")
    typer.echo(f"index: {out / 'index.html'}")
    return 0 if all(done.ok for done in ended.values()) else 1


@app.command()
@refusing()
def gallery() -> None:
    """Write figures/README.md: every figure with its question, notebook, command and runs."""
    from clstudy.notebooks import gallery as page

    typer.echo(f"written: {page.write(paths.FIGURES)}")


@app.command()
@refusing()
def student(notebooks: AnyNotebooks = None, out: Out = None, overwrite: Annotated[bool, Option(
        "--overwrite", help="Also what was changed there.")] = False) -> None:
    """Write the students' version of notebooks to runs/student: no claims, guesses to fill in."""
    from clstudy.notebooks import parameters
    from clstudy.notebooks import student as students

    for path in parameters.find_notebooks(notebooks or []):
        typer.echo(f"written: {students.write(path, out or paths.RUNS / 'student', overwrite)}")
    typer.echo("In JupyterLab (`make lab`) the file list goes up from notebooks/ to the folder of "
               "the project.")


@app.command()
@refusing()
def slides(notebooks: Notebooks, out: Out = None) -> None:
    """Write slides of executed notebooks to runs/slides: figures and claims without code.

    One HTML file for each notebook, which needs no network."""
    from clstudy.notebooks import parameters
    from clstudy.notebooks import slides as decks

    for path in parameters.find_notebooks(notebooks):
        deck = decks.write(_executed() / path.name, out or paths.RUNS / "slides")
        typer.echo(f"written: {deck}")


# ---- runs


@app.command()
@refusing()
def train(file: Annotated[Path, Argument(metavar="CONFIG.json",
                                         help="Settings, as in a run's config.json.")],
          probes: Probes = None, keep_model: KeepModel = None) -> None:
    """Make one run. On several GPUs or processes: torchrun --nproc-per-node 2 -m clstudy.cli train
    CONFIG.json"""
    from clstudy.runs import multi_process
    from clstudy.runs.lock import Busy
    from clstudy.training.config import RunConfig
    from clstudy.utils import distributed

    config = RunConfig.model_validate_json(file.read_text())
    try:
        with refusing(Busy), distributed.joined():
            made = multi_process.load_or_train(config, keep_model=bool(keep_model),
                                               probes=probes or [])
            if distributed.first():
                typer.echo(made.folder)
    except KeyboardInterrupt:  # the run has said what is saved
        raise typer.Exit(130) from None


@app.command()
@refusing(ImportError)
def sweep(
    words: Annotated[list[str], Argument(
        metavar="NAME=VALUES … | FILE.toml | NOTEBOOK …",
        help="method=sit,er seed=0..4 method_args.size=100,500: every combination. A TOML file "
             "with the same. Names of notebooks: their parameters, instead of a run's.")],
    plan: Annotated[bool, Option("--plan", help="Only show what would be done.")] = False,
    workers: Annotated[int | None, Option(min=1, help=(
        "Default: one per core, or one where a GPU computes; for notebooks one."))] = None,
    name: Annotated[str | None, Option(
        help="Default: the file's, or made from the grid.")] = None,
    profile: Annotated[str | None, Option(help="Of notebooks. Default: quick")] = None,
    probes: Probes = None, keep_model: KeepModel = None, timeout: Timeout = None,
    scheduler: Annotated[str | None, Option(
        help="dask: an address, or `local` for one started here.")] = None,
    slurm: Annotated[Path | None, Option(
        help="dask: TOML file with options of SLURMCluster.")] = None,
) -> None:
    """Make all runs (or notebooks) of a grid; finished ones are reused.

    Exit codes: 0 everything exists, 1 something failed, 2 impossible or missing, nothing was
    started, 130 interrupted."""
    given = {"workers": workers, "name": name, "profile": profile, "probes": probes,
             "keep_model": keep_model, "timeout": timeout, "scheduler": scheduler, "slurm": slurm}
    given = {key: value for key, value in given.items() if value is not None}
    planned, engine = _plan(words, given)
    typer.echo(planned)
    if not plan:
        raise typer.Exit(_carry_out(planned, engine))


def _plan(words: list[str], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the plan that words and options mean, and where to find dask workers."""
    from clstudy.notebooks import parameters
    from clstudy.notebooks import sweep as notebook_sweeps
    from clstudy.runs import grid
    from clstudy.runs.sweep import arrange

    grids, names, options = grid.command(words, given)
    elsewhere = {name: options.pop(name, None) for name in ("scheduler", "slurm")}
    profile = options.pop("profile", "quick")
    if names:
        tasks = notebook_sweeps.tasks(parameters.find_notebooks(names), grids, profile)
    else:
        tasks = grid.run_tasks(grids)
    return arrange(tasks, **options), elsewhere | {"workers": options.get("workers")}


def _carry_out(planned: Any, where: dict[str, Any]) -> int:
    """Carry out a plan on workers here, or on those of dask; return the exit code."""
    from clstudy.runs.status import INTERRUPTED
    from clstudy.runs.sweep import carry_out

    engine = nullcontext((None, planned.workers))
    if where["scheduler"] or where["slurm"]:
        from clstudy.runs.dask_workers import connect

        slurm = Path(where["slurm"]) if where["slurm"] else None
        engine = connect(**where | {"slurm": slurm})
    try:
        with engine as (engine, planned.workers):
            made = carry_out(planned, engine)
    except KeyboardInterrupt:
        typer.secho("The sweep was interrupted; what is finished stays. The same command goes on.",
                    err=True)
        return INTERRUPTED
    typer.echo(made)
    return made.code


@app.command()
@refusing()
def status(name: Annotated[str | None, Argument(help="Of a sweep. Default: the latest.")] = None
           ) -> None:
    """Show how a sweep stands: done, running (and where), waiting, failed; time left."""
    from clstudy.runs.status import status as described

    typer.echo(described(name))


@app.command()
@refusing()
def clean(
    kinds: Annotated[list[str] | None, Argument(
        help="drafts, runs, tables, notebooks, sweeps (default: all of these), weights.")] = None,
    do: Annotated[bool, Option("--do", help="Remove; otherwise only shown.")] = False,
    figures: Annotated[Path | None, Option(help="Whose runs are kept. Default: figures")] = None,
) -> None:
    """Show what no figure needs and nobody is making; remove it if --do is given."""
    from clstudy.runs import cleanup

    items = cleanup.unneeded(None, figures, tuple(kinds or cleanup.USUAL))
    typer.echo(cleanup.table(items))
    if do:
        typer.echo(f"removed: {cleanup.megabytes(cleanup.remove(items))}")
    elif items:
        typer.echo("nothing was removed; --do removes it")


@app.command()
@refusing()
def show(metric: Annotated[str, Option(help="Column to sort by.")] = "A_auc",
         csv: Annotated[Path | None, Option(help="Also write the table here.")] = None) -> None:
    """Show a table of the finished runs."""
    import pandas as pd

    from clstudy.analysis.scores import metrics_of
    from clstudy.runs.run import finished
    from clstudy.utils.validation import choose

    settings = ["benchmark", "stream", "method", "tuner", "tower", "seed"]
    rows = [{"run": run.id, **{name: getattr(run.config, name) for name in settings},
             "seconds": run.result["seconds"], **metrics_of(run)} for run in finished(paths.RUNS)]
    if not rows:
        typer.echo(f"There is no finished run in {paths.RUNS}. `clstudy study` makes some.")
        return
    table = pd.DataFrame(rows)
    choose("metric", metric, table.columns)
    table = table.sort_values(metric, ascending=False)
    if csv:
        table.to_csv(csv, index=False)
    columns = ["run", *settings, "seconds", "A_auc", "A_last", "forgetting", metric]
    typer.echo(table[list(dict.fromkeys(columns))].round(1).to_string(index=False))


# ---- what there is


@app.command("list")
@refusing()
def list_(
    what: Annotated[str | None, Argument(
        help="benchmarks, streams, tuners, methods, augmentations, vocabularies or notebooks"
    )] = None,
    markdown: Annotated[Path | None, Option(
        metavar="FILE",
        help="Write the tables of the axes into this file, each between its two markers.")] = None,
) -> None:
    """List what there is to choose from, with all options; notebooks with their parameters."""
    from clstudy.analysis import catalogue
    from clstudy.notebooks import parameters
    from clstudy.utils.validation import choose

    if markdown:
        for name in catalogue.TABLES:
            markdown.write_text(catalogue.filled(markdown.read_text(), name))
        return
    known = [*catalogue.NAMES, "notebooks"]
    for name in [choose("list", what, known)] if what else known:
        typer.secho(name, bold=True)
        if name != "notebooks":
            typer.echo(catalogue.listing(name))
            continue
        for path in parameters.find_notebooks():
            typer.echo(f"  {path.stem}")
            for line in parameters.table(parameters.parameters(path)).splitlines():
                typer.echo(f"    {line}")


@app.command()
@refusing()
def data(words: Annotated[list[str] | None, Argument(
        metavar="[get NAME …]", help="Nothing: list them.")] = None) -> None:
    """List the published data sets: what is here, its size, how to get the rest.

    `data get NAME …` fetches some."""
    if not words:
        from clstudy.data import inventory

        typer.echo(inventory.report())
        return
    from clstudy.data.benchmarks.datasets import SETS
    from clstudy.data.download import get
    from clstudy.utils.validation import choose

    choose("data", words[0], ("get",))
    names = [choose("data get", name, SETS) for name in words[1:]]
    if not names:
        raise ValueError(f"data get: name what to fetch. Choices: {', '.join(SETS)}")
    for name in names:
        typer.echo(f"{name}: {get(name)}")


PACKAGES = ("clstudy", "torch", "torchvision", "open_clip_torch", "peft", "jupyterlab", "papermill",
            "plotly", "seaborn")
FILES = {  # what has to be there → how to get it
    "data/emoji.parquet": "git checkout data, or python scripts/emoji/build_emoji.py",
    "data/icon-clip/open_clip_model.safetensors":
        "git checkout data, or python scripts/icon_clip/pretrain.py",
    "notebooks": "run from a clone of the repository",
}


@app.command()
def doctor() -> None:
    """Show versions, device, threads, the data that are here, and how to get what is missing."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from clstudy.data.benchmarks.datasets import SETS, missing

    typer.echo(f"python {sys.version.split()[0]}")
    for name in PACKAGES:
        try:
            typer.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} MISSING: make study installs it, or pip install -e .")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    bf16 = "set precision=bf16" if _fast_bf16() else "not faster here: keep precision=fp32"
    typer.echo(f"cuda {cuda}; threads {torch.get_num_threads()} of {os.cpu_count()} cores; "
               f"bf16 autocast {bf16}")
    absent = [name for name in FILES if not (paths.REPOSITORY / name).exists()]
    for name, cure in FILES.items():
        typer.echo(f"MISSING {name}: {cure}" if name in absent else f"found   {name}")
    here = sum(not missing(name) for name in SETS)
    typer.echo(f"found   {here} of {len(SETS)} published sets in {paths.downloads()}; "
               "`clstudy data` lists them")
    typer.echo(f"disk {shutil.disk_usage(paths.REPOSITORY).free / 1e9:.0f} GB free")
    raise typer.Exit(1 if absent else 0)


def _fast_bf16() -> bool:
    """Return whether a matrix product in bf16 beats fp32 here, measured in a tenth of a second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, 1024, dtype=dtype, device=device)
        (a @ a).sum().item()
        started = time.perf_counter()
        for _ in range(5):
            (a @ a).sum().item()
        return time.perf_counter() - started

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


if __name__ == "__main__":
    app()
