"""Slides of an executed notebook: its questions, figures, tables and claims, without the code.

They are one file that needs no network. Arrow keys move, and printing gives a page per slide.

A section is a slide, and each of its figures is another, with the lines printed about it. Cells
tagged `details` or `exercise` are left out. (nbconvert's slides load reveal.js from the network,
and a cell is too little for one slide and too much for the next.)"""
import html
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from clstudy.notebooks import cells as notebooks
from clstudy.notebooks.cells import Cell
from clstudy.notebooks.html import mathml
from clstudy.utils.files import write_text

LEFT_OUT = {"details", "exercise"}  # tags
LINES, LINES_UNDER_A_FIGURE = 16, 6  # of printed text on a slide
FIGURE = re.compile("<img|<table")
NOISE = re.compile(r"^(runs|lines|waiting|.*\d+%\|)|write mine=|You wrote no guess")  # lines
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
html { scroll-snap-type: y mandatory; } body { margin: 0; color: #222; background: #fff;
  font: clamp(15px, 1.65vw, 26px)/1.45 "DejaVu Sans", Verdana, sans-serif; }
section { box-sizing: border-box; height: 100vh; padding: 4vh 7vw 6vh; position: relative;
  scroll-snap-align: start; display: flex; flex-direction: column; justify-content: center;
  break-after: page; }
section::after { content: attr(data-number); position: absolute; right: 2vw; bottom: 2vh;
  font-size: .6em; color: #767676; }
h1 { font-size: 2em; margin: 0 0 .6em; }
h2 { font-size: 1.45em; margin: 0 0 .5em; color: #0b4f7d; }
p { margin: .4em 0; max-width: 46em; }
img { max-width: 100%; flex: 0 1 66vh; min-height: 0; object-fit: contain; object-position: left;
  align-self: flex-start; }
pre { font: .72em/1.45 "DejaVu Sans Mono", monospace; white-space: pre-wrap; margin: 1em 0 0; }
table { border-collapse: collapse; font-size: .66em; margin: .6em 0; }
td, th { padding: .15em .8em; text-align: right; border-top: 1px solid #ccc; }
code { font-size: .85em; } .small { font-size: .75em; color: #555; margin-bottom: .6em; }
@media print { @page { size: 13.33in 7.5in; margin: 0; } }
</style></head><body>
{% for slide in slides -%}
<section data-number="{{ loop.index }}">{{ slide|safe }}</section>
{% endfor -%}
<script>
const all = [...document.querySelectorAll('section')];
const at = () => all.reduce((best, s, i) => Math.abs(s.getBoundingClientRect().top) <
  Math.abs(all[best].getBoundingClientRect().top) ? i : best, 0);
addEventListener('keydown', e => {
  const by = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, ' ': 1,
    ArrowLeft: -1, ArrowUp: -1, PageUp: -1}[e.key];
  const to = e.key === 'Home' ? 0 : e.key === 'End' ? all.length - 1 : by ? at() + by : null;
  if (to !== null && all[to]) { e.preventDefault(); all[to].scrollIntoView(); }
});
</script></body></html>
"""


def write(executed: Path, out: Path) -> Path:
    """Write the slides of a notebook into `out`. FileNotFoundError: nobody executed it."""
    from jinja2 import Environment

    if not executed.exists():
        command = f"clstudy run {executed.stem}"
        raise FileNotFoundError(f"{executed} does not exist; execute the notebook first: {command}")
    cells = notebooks.read(executed)["cells"]
    template = Environment(autoescape=True).from_string(PAGE)
    page = template.render(title=notebooks.title(cells), slides=list(_slides(cells)))
    return write_text(out / f"{executed.stem}.html", page)


def _slides(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the HTML of each slide: a section's text, then each figure or table with its lines."""
    yield _markdown(f"# {notebooks.title(cells)}\n\n{notebooks.question(cells)}")
    shown = [cell for cell in cells[1:] if not LEFT_OUT.intersection(notebooks.tags(cell))]
    texts = [notebooks.source(cell) if cell["cell_type"] == "markdown" else "" for cell in shown]
    starts = [place for place, text in enumerate(texts) if text.startswith("## ")]
    for start, end in zip(starts, [*starts[1:], len(shown)], strict=True):
        section = list(_section(shown[start:end]))
        has_code = any(cell["cell_type"] == "code" for cell in shown[start:end])
        has_result = any(lines or FIGURE.search(body) for body, lines in section)
        if has_result or not has_code:  # else: an option of the notebook was not chosen
            for body, lines in section:
                yield from _with_lines(body, lines)


def _section(cells: Sequence[Cell]) -> Iterator[tuple[str, list[str]]]:
    """Yield the texts, figures and tables of a section, each with the lines printed after it."""
    text = notebooks.source(cells[0])
    heading = html.escape(text.partition("\n")[0].removeprefix("## ").strip())
    body, lines = _markdown(text), []
    for cell in cells[1:]:
        is_text = cell["cell_type"] == "markdown"
        for shown in [_markdown(notebooks.source(cell))] if is_text else _outputs(cell):
            if isinstance(shown, list):
                lines += shown
            else:
                yield body, lines
                body, lines = f'<div class="small">{heading}</div>{shown}', []
    yield body, lines


def _with_lines(body: str, lines: list[str]) -> Iterator[str]:
    """Yield a slide with the lines printed under it, and as many more as they take."""
    room = LINES_UNDER_A_FIGURE if FIGURE.search(body) else LINES
    yield body + (_printed(lines[:room]) if lines else "")
    for first in range(room, len(lines), LINES):
        yield _printed(lines[first:first + LINES])


def _printed(lines: Sequence[str]) -> str:
    return "<pre>" + html.escape("\n".join(lines)) + "</pre>"


def _outputs(cell: Cell) -> Iterator[str | list[str]]:
    """Yield figures and tables as HTML, printed lines as a list."""
    for output in notebooks.outputs([cell]):
        data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
        if "image/png" in data:
            yield f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
        elif "<table" in data.get("text/html", ""):
            yield re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        elif output["output_type"] == "stream" and output["name"] == "stdout":
            lines = "".join(output["text"]).splitlines()
            yield [line for line in lines if line.strip() and not NOISE.search(line)]


def _markdown(text: str) -> str:
    """Turn text into HTML, formulas into MathML where latex2mathml is there (the extra `docs`)."""
    from nbconvert.filters import markdown2html

    with suppress(ImportError):
        text = mathml(text)
    return re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
