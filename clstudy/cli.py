"""The `clstudy` command. Nothing heavy is imported before it is known what to do."""
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="A laboratory for continual learning of CLIP.")
Profile = Annotated[
    str,
    typer.Option(help="Which of a notebook's sets of parameters: quick, full, or paper (where a "
                 "notebook has the settings of its paper).")]


def fail(error: Exception | str) -> None:
    typer.secho(f"clstudy: {error}", fg="red", err=True)
    raise typer.Exit(2)


@app.command()
def run(
    notebooks: Annotated[list[str],
                         typer.Argument(
                             help="Names (03_candidates, 03, a part of the name) or paths.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME=VALUE. Beats the profile.")] = None,
    profile: Profile = "quick", out: Annotated[Path | None,
                                               typer.Option(help="Default: runs/notebooks")] = None,
    timeout: Annotated[float | None,
                       typer.Option(help="Seconds for one notebook.")] = None) -> None:
    """Execute notebooks headlessly; executed copies and HTML go to runs/notebooks."""
    from clstudy.notebooks import parameters

    try:
        given = dict(_pair(text) for text in parameter or [])
        found = parameters.find_notebooks(notebooks)
        tasks = [(path, parameters.choose_parameters(path, given, profile)) for path in found]
        parameters.check_data(tasks)
        ok = _execute(tasks, out or _out(), timeout)
    except (ValueError, OSError) as error:
        fail(error)
    raise typer.Exit(0 if ok else 1)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"-p {text!r}: write -p NAME=VALUE")
    return name.strip(), value


def _out() -> Path:
    from clstudy.utils import paths

    return paths.RUNS / "notebooks"


def _execute(tasks: list, out: Path, timeout: float | None = None) -> bool:
    from clstudy.notebooks import execute, html

    rows = []
    for path, given in tasks:
        typer.echo(f"── {path.stem} " + " ".join(f"{name}={value}"
                                                 for name, value in given.items()))
        rows.append((path.stem, execute.run_notebook(path, given, out, timeout=timeout)))
        html.index(out)
        if not rows[-1][1].ok:
            typer.secho(f"   failed: {rows[-1][1].error}", fg="red", err=True)
    typer.echo("")
    for name, done in rows:
        typer.echo(
            f"{'ok    ' if done.ok else 'FAILED'} {name:20} {done.seconds:6.0f} s  {done.html}")
    typer.echo(f"index: {out / 'index.html'}")
    return all(done.ok for _, done in rows)


@app.command()
def study(
    profile: Profile = "quick", part: Annotated[
        str,
        typer.Option("--part", help="main; memory: the notebooks on small memories; all")] = "main"
) -> None:
    """Run the notebooks of a study and draw their figures: the main study on the embedded data."""
    from clstudy.notebooks import parameters
    from clstudy.utils import paths
    from clstudy.utils.validation import choose

    started = time.perf_counter()
    try:
        known = {path: parameters.part(path) for path in parameters.find_notebooks()}
        choose("part", part, [*dict.fromkeys(known.values()), "all"])
        found = [path for path, of in known.items() if part in (of, "all")]
        without = [path.stem for path in found if profile not in parameters.profiles(path)]
        if len(without) == len(found):
            parameters.choose_parameters(found[0], {}, profile)  # raises, with the choices
        tasks = [(path, parameters.choose_parameters(path, {}, profile)) for path in found
                 if path.stem not in without]
        parameters.check_data(tasks)
    except (ValueError, OSError) as error:
        fail(error)
    if without:
        typer.echo(f"without a profile {profile!r}, left out: {', '.join(without)}")
    ok = _execute(tasks, _out())
    for table in sorted(paths.FIGURES.glob("*.md")):
        if table.stem[:2] in {path.stem[:2] for path in found}:
            typer.echo(f"\n{table.read_text()}")
    _gallery()
    typer.echo(f"figures: {paths.FIGURES}   runs: {paths.RUNS}   executed notebooks: {_out()}   "
               f"time: {(time.perf_counter() - started) / 60:.1f} min")
    raise typer.Exit(0 if ok else 1)


def _gallery() -> Path:
    from clstudy.notebooks import gallery
    from clstudy.utils import paths

    return gallery.write(paths.FIGURES)


@app.command()
def gallery() -> None:
    """Write figures/README.md: every figure with its question, its notebook, its command and its
    runs."""
    typer.echo(f"written: {_gallery()}")


@app.command()
def student(
    notebooks: Annotated[list[str] | None,
                         typer.Argument(help="Names, as for run. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Default: runs/student")] = None,
    overwrite: Annotated[bool,
                         typer.Option("--overwrite", help="Also what was changed there.")] = False
) -> None:
    """Write the student's version of notebooks: claims taken out, guesses to fill in; stubs and
    hints stay."""
    from clstudy.notebooks import parameters
    from clstudy.notebooks import student as students
    from clstudy.utils import paths

    try:
        for path in parameters.find_notebooks(notebooks or []):
            typer.echo(f"written: {students.write(path, out or paths.RUNS / 'student', overwrite)}")
        typer.echo(
            "In JupyterLab (`make lab`) the file list goes up from notebooks/ to the folder of the project."
        )
    except (ValueError, OSError) as error:
        fail(error)


@app.command()
def slides(notebooks: Annotated[list[str],
                                typer.Argument(
                                    help="Names, as for run; they must have been executed.")],
           out: Annotated[Path | None, typer.Option(help="Default: runs/slides")] = None) -> None:
    """Slides of executed notebooks: questions, figures and claims without code, one HTML file that
    needs no network."""
    from clstudy.notebooks import parameters
    from clstudy.notebooks import slides as decks
    from clstudy.utils import paths

    try:
        for path in parameters.find_notebooks(notebooks):
            typer.echo(f"written: {decks.write(_out() / path.name, out or paths.RUNS / 'slides')}")
    except (ValueError, OSError) as error:
        fail(error)


@app.command()
def train(
    file: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.json", help="Settings, as in a run's config.json.")],
    probes: Annotated[list[str] | None,
                      typer.Option("--probe", help="Store this probe's table; several.")] = None,
    keep_model: Annotated[bool, typer.Option("--keep-model", help="Store tuned weights.")] = False
) -> None:
    """Make one run. On several GPUs or processes: torchrun --nproc-per-node 2 -m clstudy.cli train
    CONFIG.json"""
    import json

    from clstudy.runs import multi_process
    from clstudy.runs.lock import Busy
    from clstudy.training.config import RunConfig
    from clstudy.utils import distributed

    try:
        config = RunConfig(**json.loads(file.read_text()))
        with distributed.joined():
            made = multi_process.load_or_train(config, keep_model=keep_model, probes=probes or [])
            if distributed.first():
                typer.echo(made.folder)
    except (ValueError, TypeError, OSError, Busy) as error:
        fail(error)
    except KeyboardInterrupt:  # what is saved has been said
        raise typer.Exit(130) from None


@app.command()
def sweep(words: Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=VALUES … | FILE.toml | NOTEBOOK …", help=
        ("method=sit,er seed=0..4 method_args.size=100,500: every combination. A TOML file with the same. Names "
         "of notebooks: their parameters, instead of a run's."))],
          plan: Annotated[bool,
                          typer.Option("--plan", help="Only show what would be done.")] = False,
          workers: Annotated[int | None,
                             typer.Option(
                                 help="Default: one per core, or one where a GPU computes; for "
                                 "notebooks one.", min=1)] = None,
          name: Annotated[str | None,
                          typer.Option(help="Default: the file's, or made from the grid.")] = None,
          profile: Annotated[str | None,
                             typer.Option(help="Of notebooks. Default: quick")] = None,
          probes: Annotated[
              list[str] | None,
              typer.Option("--probe", help="Store this probe's table; several.")] = None,
          keep_model: Annotated[
              bool | None,
              typer.Option("--keep-model", help="Store tuned weights. Default: not.")] = None,
          timeout: Annotated[float | None,
                             typer.Option(help="Seconds for one notebook.")] = None,
          scheduler: Annotated[
              str | None,
              typer.Option(help="dask: an address, or `local` for one started here.")] = None,
          slurm: Annotated[Path | None,
                           typer.Option(
                               help="dask: TOML file with options of SLURMCluster.")] = None
          ) -> None:
    """Make all runs (or notebooks) of a grid; what exists is not made again.

    Exit codes: 0 all is there, 1 something failed, 2 impossible or missing, nothing was started,
    130 interrupted."""
    given = {
        "workers": workers, "name": name, "profile": profile, "probes": probes,
        "keep_model": keep_model, "timeout": timeout, "scheduler": scheduler, "slurm": slurm
    }
    try:
        planned, options = _plan(words,
                                 {key: value for key, value in given.items() if value is not None})
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(planned)
    if not plan:
        raise typer.Exit(_carry_out(planned, options))


def _plan(words: list[str], given: dict):
    """The plan that some words mean, and all options; those given beat those of a file."""
    from clstudy.notebooks import parameters
    from clstudy.notebooks import sweep as notebook_sweeps
    from clstudy.runs import grid
    from clstudy.runs import sweep as sweeps
    from clstudy.runs.store import _check_probes

    files = [Path(word) for word in words if word.endswith(".toml")]
    names = [word for word in words if "=" not in word and not word.endswith(".toml")]
    if len(files) > 1:
        raise ValueError("one file at a time; it may hold several [[grid]]")
    grids, options = grid.read(files[0]) if files else ([{}], {})
    options = {**({"name": files[0].stem} if files else {}), **options, **given}
    profile = options.pop("profile", "quick")
    names = names or options.pop("notebooks", [])
    more = grid.words(word for word in words if "=" in word and not word.endswith(".toml"))
    grids = [{**one, **more} for one in grids]
    if names:
        tasks = notebook_sweeps.tasks(parameters.find_notebooks(names), grids, profile)
    else:
        tasks = grid.run_tasks(grids)
    _check_probes(options.get("probes", []))
    return sweeps.arrange(
        tasks, **{
            key: value for key, value in options.items() if key not in ("scheduler", "slurm")
        }), options


def _carry_out(planned, options: dict) -> int:
    from contextlib import nullcontext

    from clstudy.runs import status as board
    from clstudy.runs import sweep as sweeps

    engine = nullcontext((None, planned.workers))
    where = {key: options.get(key) for key in ("scheduler", "slurm") if options.get(key)}
    if where:
        from clstudy.runs.dask_workers import connect

        if "slurm" in where:
            where["slurm"] = Path(where["slurm"])
        engine = connect(**where, workers=options.get("workers"))
    try:
        with engine as (engine, planned.workers):
            made = sweeps.carry_out(planned, engine)
    except (ValueError, ImportError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        typer.secho("interrupted; what is finished stays. The same command goes on.", err=True)
        return board.INTERRUPTED
    typer.echo(made)
    return made.code


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Of a sweep. Default: the latest.")] = None
) -> None:
    """How a sweep stands: done, running (and where), waiting, failed; time left."""
    from clstudy.runs import status as board

    try:
        typer.echo(board.status(name))
    except ValueError as error:
        fail(error)


@app.command()
def clean(kinds: Annotated[
    list[str] | None,
    typer.Argument(
        help="drafts, runs, tables, notebooks, sweeps (default: all of these), weights.")] = None,
          do: Annotated[bool, typer.Option("--do", help="Remove; otherwise only shown.")] = False,
          figures: Annotated[Path | None,
                             typer.Option(help="Whose runs are kept. Default: figures")] = None
          ) -> None:
    """Remove what no figure needs and nobody is making. Shows what would go, unless --do is
    given."""
    from clstudy.runs import cleanup

    try:
        items = cleanup.unneeded(None, figures, tuple(kinds or cleanup.USUAL))
    except ValueError as error:
        fail(error)
    typer.echo(cleanup.table(items))
    if do:
        typer.echo(f"removed: {cleanup.megabytes(cleanup.remove(items))}")
    elif items:
        typer.echo("nothing was removed; --do removes it")


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            help="benchmarks, streams, tuners, methods, augmentations, vocabularies or notebooks"
        )] = None,
    markdown_: Annotated[
        Path | None,
        typer.
        Option("--markdown", metavar="FILE", help=(
            "Write the tables of the axes into this file, each between its two markers."))] = None
) -> None:
    """What there is to choose from, with all options; for notebooks, with their parameters."""
    from clstudy.losses.vocabularies import VOCABULARIES
    from clstudy.notebooks import parameters
    from clstudy.training.config import AXES, registry
    from clstudy.utils.validation import choose

    if markdown_:
        for axis in TABLES:
            markdown_.write_text(filled(markdown_.read_text(), axis))
        return
    axes = {f"{axis}s": axis for axis in AXES}
    try:
        known = [*axes, "augmentations", "vocabularies", "notebooks"]
        names = [choose("list", what, known)] if what else known
    except ValueError as error:
        fail(error)
    for name in names:
        typer.secho(name, bold=True)
        if name in axes:
            for key, kind in registry(axes[name]).items():
                typer.echo(
                    f"  {key:16} {_first_sentence(kind.__doc__ or '')}\n{_options(kind)}".rstrip())
        elif name == "notebooks":
            for path in parameters.find_notebooks():
                typer.echo(
                    f"  {path.stem}\n{_indent(parameters.table(parameters.parameters(path)))}")
        else:
            things = VOCABULARIES if name == "vocabularies" else registry("augmentation")
            for key, function in things.items():
                typer.echo(f"  {key:16} {_first_sentence(function.__doc__ or '')}")


TABLES = ("methods", "benchmarks", "streams", "tuners")


def filled(text: str, axis: str) -> str:
    """A text whose table of this axis, between `<!-- AXIS -->` and `<!-- /AXIS -->`, is that of the
    classes."""
    start, end = f"<!-- {axis} -->\n", f"<!-- /{axis} -->"
    if start not in text or end not in text:
        return text
    return text[:text.index(start)] + start + markdown(axis) + text[text.index(end):]


def markdown(axis: str) -> str:
    """All choices of an axis as a table: name, what it is, source and, of methods, how each was
    checked."""
    from clstudy.training.config import registry

    heads = ["name", "what it is", "source",
             "checked against the paper"][:4 if axis == "methods" else 3]
    rows = [heads, ["---"] * len(heads)]
    for name, kind in registry(axis.removesuffix("s")).items():
        rows.append(
            [f"`{name}`",
             _first_sentence(kind.__doc__ or "").removesuffix("."), kind.source])
        if axis == "methods":
            rows[-1].append(f"◐ {kind.checked}" if kind.checked else "")
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _options(kind: type) -> str:
    """A line for each option of a choice: default, what is allowed, help."""
    from clstudy.utils.options import described

    return "\n".join(
        f"  {'':16} {one.name}{f'={one.default}' if one.default else ''}: {one.allowed}"
        f"{f'; {one.help}' if one.help else ''}" for one in described(kind))


def _first_sentence(doc: str) -> str:
    """Of a docstring's first paragraph, in one line."""
    return re.split(r"(?<=[.:;]) (?=[A-Z])|:$", " ".join(doc.strip().split("\n\n")[0].split()))[0]


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


@app.command()
def show(
        metric: Annotated[str, typer.Option(help="Column to sort by.")] = "A_auc",
        csv: Annotated[Path | None,
                       typer.Option(help="Also write the table here.")] = None) -> None:
    """Table of finished runs."""
    import pandas as pd

    from clstudy.analysis.scores import metrics_of
    from clstudy.runs.run import finished
    from clstudy.utils import paths

    rows = [{
        "run": r.id, "benchmark": r.config.benchmark, "stream": r.config.stream,
        "method": r.config.method, "tuner": r.config.tuner, "tower": r.config.tower,
        "seed": r.config.seed, "seconds": r.result["seconds"], **metrics_of(r)
    } for r in finished(paths.RUNS)]
    if not rows:
        typer.echo(f"no finished runs in {paths.RUNS}: start with `clstudy study`")
        return
    table = pd.DataFrame(rows)
    if metric not in table:
        fail(f"metric={metric!r} is unknown. Choices: {', '.join(table.columns[7:])}")
    table = table.sort_values(metric, ascending=False)
    if csv:
        table.to_csv(csv, index=False)
    short = [*table.columns[:8], "A_auc", "A_last", "forgetting"]
    typer.echo(table[[*short,
                      *([metric] if metric not in short else [])]].round(1).to_string(index=False))


@app.command()
def data(
    words: Annotated[list[str] | None,
                     typer.Argument(metavar="[get NAME …]", help="Nothing: list them.")] = None
) -> None:
    """List the published data sets: what is there, its size, how to get the rest. `data get NAME …`
    fetches some."""
    if not words:
        return _list_data()
    from clstudy.data.benchmarks.datasets import SETS
    from clstudy.data.download import get
    from clstudy.utils.validation import choose

    try:
        choose("data", words[0], ("get",))
        names = [choose("data get", name, SETS) for name in words[1:]]
        if not names:
            raise ValueError(f"data get: name what to fetch. Choices: {', '.join(SETS)}")
        for name in names:
            typer.echo(f"{name}: {get(name)}")
    except (ValueError, OSError) as error:
        fail(error)


def _list_data() -> None:
    from clstudy.data import image_store
    from clstudy.data.benchmarks import BENCHMARKS, datasets
    from clstudy.utils import paths

    typer.echo(f"looked for in {paths.downloads()} (CLSTUDY_DATA names another folder)\n")
    for name, one in datasets.SETS.items():
        lacks, place = datasets.missing(name), paths.downloads() / one.folder
        use = "benchmark" if name in BENCHMARKS else one.use
        if not lacks:
            state = f"found    {image_store.size(place) / 1e9:6.2f} GB  {place}"
        elif place.exists():
            cure = f"move it away, then `clstudy data get {name}`" if one.archives else one.by_hand
            state = f"PARTLY             {place} lacks {', '.join(lacks)}: {cure}"
        else:
            get = f"`clstudy data get {name}` fetches {one.megabytes / 1000:.2f} GB" if one.archives else one.by_hand
            state = f"missing            {get}"
        typer.echo(f"{name:20} {use:10} {state}")
    decoded = paths.image_store()
    taken = image_store.size(decoded) / 1e9 if decoded.is_dir() else 0
    typer.echo(
        f"\ndecoded images: {taken:.2f} GB in {decoded} (CLSTUDY_CACHE names another folder; may be deleted at "
        "any time)")


@app.command()
def doctor() -> None:
    """Versions, device, threads, data found, what is missing and how to get it."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from clstudy.data.benchmarks.datasets import SETS
    from clstudy.data.benchmarks.datasets import missing as absent
    from clstudy.utils import paths

    typer.echo(f"python {sys.version.split()[0]}")
    for name in "clstudy torch torchvision open_clip_torch peft jupyterlab papermill plotly seaborn".split(
    ):
        try:
            typer.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} MISSING: make study installs it, or pip install -e .")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    typer.echo(
        f"cuda {cuda}; threads {torch.get_num_threads()} of {os.cpu_count()} cores; "
        f"bf16 autocast {'set precision=bf16' if _fast_bf16() else 'not faster here: keep precision=fp32'}"
    )
    missing = False
    for path, cure in (
        (paths.DATA / "emoji.parquet", "git checkout data, or python scripts/emoji/build_emoji.py"),
        (
            paths.DATA / "icon-clip/open_clip_model.safetensors",
            "git checkout data, or python scripts/icon_clip/pretrain.py",
        ),
        (paths.NOTEBOOKS, "run from a clone of the repository"),
    ):
        missing |= not path.exists()
        typer.echo(
            f"{'found  ' if path.exists() else 'MISSING'} {path.relative_to(paths.REPOSITORY)}"
            + ("" if path.exists() else f": {cure}"))
    there = [name for name in SETS if not absent(name)]
    typer.echo(
        f"found   {len(there)} of {len(SETS)} published sets in {paths.downloads()}; `clstudy data` lists them"
    )
    free = shutil.disk_usage(paths.REPOSITORY).free / 1e9
    typer.echo(f"disk {free:.0f} GB free")
    raise typer.Exit(1 if missing else 0)


def _fast_bf16() -> bool:
    """Whether a bf16 product beats fp32 here; measured in a tenth of a second."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, 1024, dtype=dtype,
                       device="cuda" if torch.cuda.is_available() else "cpu")
        (a @ a).sum().item()
        started = time.perf_counter()
        for _ in range(5):
            (a @ a).sum().item()
        return time.perf_counter() - started

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


if __name__ == "__main__":
    app()
