"""Build the documentation into build/site: `make docs`.

Its pages are the repository's own files, laid out as they are here, and pages made from docstrings.
Nothing is written twice, and no notebook is executed. Formulas become MathML and scripts from
elsewhere are taken out, so that a page needs no network."""
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from clstudy.methods import METHODS
from clstudy.notebooks.cells import read, source, title
from clstudy.notebooks.html import mathml
from clstudy.utils import paths

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PAGES = BUILD / "site-pages"
RAN = paths.RUNS / "notebooks"
COPIED = ("README.md", "GLOSSARY.md", "DEVIATIONS.md", "CITATION.cff", "LICENSE", "docs",
          "figures", "data/README.md", "data/icon-clip/README.md", "data/icon-clip/curve.png")
SHOWN = ("image/png", "text/html", "text/plain"
         )  # of a notebook's outputs; a widget or a Plotly figure needs a kernel
ROOMS = (
    "data",
    "models",
    "losses",
    "methods",
    "probes",
    "training",
    "evaluation",
    "runs",
    "analysis",
    "plots",
    "notebooks",
)
API = {
    room: tuple(
        ".".join(path.relative_to(ROOT / "clstudy").with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "clstudy" / room).rglob("*.py"))) for room in ROOMS
}  # page → modules


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    for name in COPIED:
        place = PAGES / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
    for name, text in {"methods.md": methods(), **api()}.items():
        (PAGES / name).parent.mkdir(exist_ok=True)
        (PAGES / name).write_text(text, encoding="utf-8")
    notebooks()
    for path in PAGES.rglob("*.md"):
        path.write_text(links(path.read_text(encoding="utf-8"), path), encoding="utf-8")
    settings = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    (BUILD / "mkdocs.yml").write_text(settings.replace("[] # filled in", json.dumps(titles())),
                                      encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build",
               "--strict"]  # --quiet would hide warnings from --strict
    done = subprocess.run(command, cwd=BUILD, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
                          capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr)
        return done.returncode
    outside = offline(BUILD / "site")
    where = f"built: {BUILD / 'site' / 'index.html'} (search needs a server: python -m http.server -d build/site)"
    print("\n".join(outside) or where)
    return len(outside) > 0


def links(text: str, path: Path) -> str:
    """Lead links to source files to the page of their module, and turn links to other files of the
    repository into names. A link that leads nowhere stays, so that mkdocs complains."""
    def target(found: re.Match) -> str:
        place = (path.parent / found[2].partition("#")[0]).resolve()
        if place.exists() or not place.is_relative_to(PAGES) or not (
                ROOT / place.relative_to(PAGES)).exists():
            return found[0]
        module = ".".join(place.relative_to(PAGES).with_suffix("").parts[1:])
        page = next((page for page, modules in API.items() if module in modules), None)
        up = "../" * (len(path.relative_to(PAGES).parts) - 1)
        return f"[{found[1]}]({up}api/{page}.md)" if page else f"`{found[1].strip('`')}`"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", target, text)


def methods() -> str:
    """Write the page of the methods: the docstring of each file with its equation, as it is."""
    lines = [
        "# Methods", "",
        "One file each in `clstudy/methods/`: equation, symbols, estimator, departures. Options "
        "and defaults: `clstudy list methods`; what was checked against the paper: the first page's table.",
        ""
    ]
    for name, method in sorted(METHODS.items()):
        said = inspect.getdoc(inspect.getmodule(method))
        lines += [f"## {name}", "", *map(block, re.split(r"\n\n+", said)), ""]
    return "\n".join(lines)


def block(paragraph: str) -> str:
    """Write a paragraph of a docstring as text, or as it stands where it is set in."""
    lines = paragraph.splitlines()
    if all(line.startswith("    ") for line in lines):
        return "\n".join(["```text", *(line[4:] for line in lines), "```", ""])
    return (paragraph if "`" in paragraph else re.sub(r"([*<_])", r"\\\1", paragraph)) + "\n"


def api() -> dict[str, str]:
    return {
        f"api/{page}.md": f"# {page.capitalize()}\n\n" + "\n\n".join(f"::: clstudy.{name}"
                                                                     for name in modules) + "\n"
        for page, modules in API.items()
    }


def notebooks() -> None:
    """Write each notebook with the outputs that `clstudy study` left where the code is the same."""
    (PAGES / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, ran = read(path), RAN / path.name
        if ran.exists():
            done = {cell["id"]: cell for cell in read(ran)["cells"]}
            for cell in page["cells"]:
                same = done.get(cell["id"])
                if cell["cell_type"] == "code" and same and source(same) == source(cell):
                    cell["outputs"] = [
                        kept for output in same["outputs"] if (kept := showable(output))
                    ]
        for cell in page["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = mathml(source(cell))
        (PAGES / "notebooks" / path.name).write_text(json.dumps(page), encoding="utf-8")


def titles() -> list[dict[str, str]]:
    """List the notebooks for the menu."""
    return [{title(read(path)["cells"]): f"notebooks/{path.name}"}
            for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def showable(output: dict) -> dict | None:
    """Keep of an output what a page can show; None if there is nothing."""
    if "data" not in output:
        return output if output["output_type"] == "stream" and output["name"] == "stdout" else None
    data = {kind: value for kind, value in output["data"].items() if kind in SHOWN}
    live = set(output["data"]) - set(SHOWN) - {"text/latex", "image/svg+xml"}
    return {**output, "data": data, "metadata": {}} if data and not live else None


def offline(site: Path) -> list[str]:
    """Take out scripts from elsewhere, and list what else a page would fetch from outside."""
    outside = []
    for path in site.rglob("*.html"):
        text = re.sub(r'<script[^>]*src="https?://[^>]*>\s*</script>', "",
                      path.read_text(encoding="utf-8"))
        text = re.sub(r'<script type="module">(?:(?!</script>).)*mermaid.*?</script>', "", text,
                      flags=re.S)
        path.write_text(text, encoding="utf-8")
        found = re.findall(
            r'<(?:img|script|iframe|source)[^>]*src="(https?://[^"]+)"|<link[^>]*rel="(?:stylesheet|pre'
            r'connect|icon)"[^>]*href="(https?://[^"]+)"', text)
        outside += [f"{path.relative_to(site)} fetches {''.join(one)}" for one in found]
    return outside


if __name__ == "__main__":
    sys.exit(main())
