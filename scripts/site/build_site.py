"""Build the documentation into build/site: `make docs`. Pages are the repository's own files, laid out as they are
here, beside pages made from docstrings; nothing is written twice, and nothing is executed.

Formulas become MathML and scripts from elsewhere are taken out, so that a page needs no network."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PAGES = BUILD / "site-pages"
RAN = Path(os.environ.get("CLSTUDY_RUNS", ROOT / "runs")) / "notebooks"
COPIED = ("README.md", "VOCABULARY.md", "DEVIATIONS.md", "CITATION.cff", "LICENSE", "docs", "figures", "data/README.md",
          "data/icon-clip/README.md", "data/icon-clip/curve.png")
SHOWN = ("image/png", "text/html", "text/plain")  # of a notebook's outputs; a widget or a Plotly figure needs a kernel
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
API = {room: tuple(".".join(path.relative_to(ROOT / "clstudy").with_suffix("").parts).removesuffix(".__init__")
                   for path in sorted((ROOT / "clstudy" / room).rglob("*.py"))) for room in ROOMS}  # page → modules


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
    (BUILD / "mkdocs.yml").write_text(settings.replace("[] # filled in", json.dumps(titles())), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # --quiet would hide warnings from --strict
    done = subprocess.run(command, cwd=BUILD, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
                          text=True)
    if done.returncode:
        print(done.stdout + done.stderr)
        return done.returncode
    outside = offline(BUILD / "site")
    where = f"built: {BUILD / 'site' / 'index.html'} (search needs a server: python -m http.server -d build/site)"
    print("\n".join(outside) or where)
    return len(outside) > 0


def links(text: str, path: Path) -> str:
    """Links to source files lead to the page of their module, and files of the repository that are no page become a
    name. A link that leads nowhere stays, so that mkdocs complains."""
    def target(found: re.Match) -> str:
        place = (path.parent / found[2].partition("#")[0]).resolve()
        if place.exists() or not place.is_relative_to(PAGES) or not (ROOT / place.relative_to(PAGES)).exists():
            return found[0]
        module = ".".join(place.relative_to(PAGES).with_suffix("").parts[1:])
        page = next((page for page, modules in API.items() if module in modules), None)
        up = "../" * (len(path.relative_to(PAGES).parts) - 1)
        return f"[{found[1]}]({up}api/{page}.md)" if page else f"`{found[1].strip('`')}`"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", target, text)


def methods() -> str:
    """Each method with its equation: the docstring of its file, as it stands."""
    lines = ["# Methods", "", "One file each in `clstudy/methods/`: equation, symbols, estimator, departures. Options "
             "and defaults: `clstudy list methods`; what was checked against the paper: the first page's table.", ""]
    for name, path in sorted(method_files().items()):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        lines += [f"## {name}", "", *map(block, re.split(r"\n\n+", said)), ""]
    return "\n".join(lines)


def block(paragraph: str) -> str:
    """A paragraph of a docstring: text, or as it stands where it is set in (equations and tables)."""
    lines = paragraph.splitlines()
    if all(line.startswith("    ") for line in lines):
        return "\n".join(["```text", *(line[4:] for line in lines), "```", ""])
    return (paragraph if "`" in paragraph else re.sub(r"([*<_])", r"\\\1", paragraph)) + "\n"


def method_files() -> dict[str, Path]:
    """Name of a method → its file, as the dict METHODS says."""
    folder = ROOT / "clstudy" / "methods"
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    where = {alias.asname or alias.name: ROOT / f"{node.module.replace('.', '/')}.py" for node in tree.body
             if isinstance(node, ast.ImportFrom) for alias in node.names}
    (table,) = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)
                and ast.unparse(node).startswith("METHODS")]
    return {ast.literal_eval(key): where[value.id] for key, value in zip(table.keys, table.values, strict=True)}


def api() -> dict[str, str]:
    return {f"api/{page}.md": f"# {page.capitalize()}\n\n" + "\n\n".join(f"::: clstudy.{name}" for name in modules)
            + "\n" for page, modules in API.items()}


def notebooks() -> None:
    """Each notebook, executed where `clstudy study` left it so and its code is the same; formulas as MathML."""
    (PAGES / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, ran = read(path), RAN / path.name
        if ran.exists():
            done = {cell["id"]: cell for cell in read(ran)["cells"]}
            for cell in page["cells"]:
                same = done.get(cell["id"])
                if cell["cell_type"] == "code" and same and "".join(same["source"]) == "".join(cell["source"]):
                    cell["outputs"] = [kept for output in same["outputs"] if (kept := showable(output))]
        for cell in page["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = mathml("".join(cell["source"]))
        (PAGES / "notebooks" / path.name).write_text(json.dumps(page), encoding="utf-8")


def titles() -> list[dict[str, str]]:
    """The notebooks for the menu."""
    return [{"".join(read(path)["cells"][0]["source"]).splitlines()[0].removeprefix("# "): f"notebooks/{path.name}"}
            for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def showable(output: dict) -> dict | None:
    if "data" not in output:
        return output if output["output_type"] == "stream" and output["name"] == "stdout" else None
    data = {kind: value for kind, value in output["data"].items() if kind in SHOWN}
    live = set(output["data"]) - set(SHOWN) - {"text/latex", "image/svg+xml"}
    return {**output, "data": data, "metadata": {}} if data and not live else None


def mathml(text: str) -> str:
    """$…$ and $$…$$ outside of code as MathML, which browsers draw themselves."""
    from latex2mathml.converter import convert

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1].strip(), display="block"), parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\\$])\$([^$\n]+)\$", lambda m: convert(m[1]), parts[i])
    return "".join(parts)


def offline(site: Path) -> list[str]:
    """Take out scripts from elsewhere; what else a page would fetch from outside."""
    outside = []
    for path in site.rglob("*.html"):
        text = re.sub(r'<script[^>]*src="https?://[^>]*>\s*</script>', "", path.read_text(encoding="utf-8"))
        text = re.sub(r'<script type="module">(?:(?!</script>).)*mermaid.*?</script>', "", text, flags=re.S)
        path.write_text(text, encoding="utf-8")
        found = re.findall(r'<(?:img|script|iframe|source)[^>]*src="(https?://[^"]+)"|<link[^>]*rel="(?:stylesheet|pre'
                           r'connect|icon)"[^>]*href="(https?://[^"]+)"', text)
        outside += [f"{path.relative_to(site)} fetches {''.join(one)}" for one in found]
    return outside


if __name__ == "__main__":
    sys.exit(main())
