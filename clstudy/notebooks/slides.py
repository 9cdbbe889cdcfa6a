"""Slides of an executed notebook: its questions, figures, tables and claims, without the code. One file that needs no
network; arrow keys move, printing gives a page per slide.

nbconvert's own slides load reveal.js from the network, and a cell per slide is too little on one and too much on the
next; here a section is a slide, and each of its figures, with what was printed about it, is another."""
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = ("The runs", "Try it", "Exercises", "References", "Questions")  # for readers of the notebook
LINES = 16  # of printed text on a slide
NOISE = re.compile(r"^(runs|lines|waiting|.*\d+%\|)|not written yet\.$|write mine=|^No guess|No guess was written")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
html {{ scroll-snap-type: y mandatory; }} body {{ margin: 0; color: #222; background: #fff;
  font: clamp(15px, 1.65vw, 26px)/1.45 "DejaVu Sans", Verdana, sans-serif; }}
section {{ box-sizing: border-box; height: 100vh; padding: 4vh 7vw 6vh; scroll-snap-align: start; display: flex;
  flex-direction: column; justify-content: center; position: relative; break-after: page; }}
section::after {{ content: attr(data-number); position: absolute; right: 2vw; bottom: 2vh; font-size: .6em;
  color: #767676; }}
h1 {{ font-size: 2em; margin: 0 0 .6em; }} h2 {{ font-size: 1.45em; margin: 0 0 .5em; color: #0b4f7d; }}
p {{ margin: .4em 0; max-width: 46em; }} img {{ max-width: 100%; flex: 0 1 66vh; min-height: 0; object-fit: contain;
  object-position: left; align-self: flex-start; }}
pre {{ font: .72em/1.45 "DejaVu Sans Mono", monospace; white-space: pre-wrap; margin: 1em 0 0; }}
table {{ border-collapse: collapse; font-size: .66em; margin: .6em 0; }} td, th {{ padding: .15em .8em;
  text-align: right; border-top: 1px solid #ccc; }}
code {{ font-size: .85em; }} .small {{ font-size: .75em; color: #555; margin-bottom: .6em; }}
@media print {{ @page {{ size: 13.33in 7.5in; margin: 0; }} }}
</style></head><body>
{slides}
<script>
const all = [...document.querySelectorAll('section')];
const at = () => all.reduce((best, s, i) => Math.abs(s.getBoundingClientRect().top) <
  Math.abs(all[best].getBoundingClientRect().top) ? i : best, 0);
addEventListener('keydown', e => {{
  const by = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, ' ': 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1}}[e.key];
  const to = e.key === 'Home' ? 0 : e.key === 'End' ? all.length - 1 : by ? at() + by : null;
  if (to !== null && all[to]) {{ e.preventDefault(); all[to].scrollIntoView(); }}
}});
</script></body></html>
"""


def write(executed: Path, out: Path) -> Path:
    """Slides of an executed notebook, as `out`/STEM.html. FileNotFoundError: it was not executed."""
    import nbformat

    if not executed.exists():
        raise FileNotFoundError(f"{executed} is not there: run the notebook first, clstudy run {executed.stem}")
    notebook = nbformat.read(executed, as_version=4)
    slides = "\n".join(f'<section data-number="{number}">{body}</section>'
                       for number, body in enumerate(_slides(notebook.cells), 1))
    first = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"{executed.stem}.html"
    draft = page.with_suffix(".new")
    draft.write_text(PAGE.format(title=html.escape(first), slides=slides), encoding="utf-8")
    return draft.replace(page)


def _slides(cells: list[Any]) -> Iterator[str]:
    """The HTML of each slide: of every section its text, then each figure or table with what was printed about it."""
    yield _title(cells[0].source)
    for heading, inside in _sections(cells[1:]):
        small = f'<div class="small">{html.escape(heading)}</div>'
        found: list[tuple[str, list[str]]] = [(_markdown(inside[0].source), [])]
        for cell in inside[1:]:
            if cell.cell_type == "markdown":
                found.append((small + _markdown(cell.source), []))
            for shown in _outputs(cell):
                if isinstance(shown, list):
                    found[-1][1].extend(shown)
                else:
                    found.append((small + shown, []))
        coded = any(cell.cell_type == "code" for cell in inside)
        gave = any(said or "<img" in body or "<table" in body for body, said in found)
        if gave or not coded:  # else: a part that was not asked for
            for body, said in found:
                yield from _printed(body, said)


def _sections(cells: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Heading and cells of each section that belongs on slides."""
    starts = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    for start, end in zip(starts, [*starts[1:], len(cells)], strict=True):
        heading = cells[start].source[3:].partition("\n")[0].strip()
        if heading not in LEFT_OUT:
            yield heading, cells[start:end]


def _printed(body: str, said: list[str]) -> Iterator[str]:
    """A slide with what was printed under it, and as many more as that takes."""
    room = 6 if "<img" in body or "<table" in body else LINES
    yield body + (f"<pre>{html.escape(chr(10).join(said[:room]))}</pre>" if said else "")
    for first in range(room, len(said), LINES):
        yield f"<pre>{html.escape(chr(10).join(said[first:first + LINES]))}</pre>"


def _outputs(cell: Any) -> Iterator[str | list[str]]:
    """Figures and tables as HTML; printed lines as a list."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
        elif "<table" in "".join(data.get("text/html", "")):
            yield re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        elif output.output_type == "stream" and output.name == "stdout":
            lines = [line for line in output.text.splitlines() if line.strip() and not NOISE.search(line)]
            if lines:
                yield lines


def _title(source: str) -> str:
    """The first cell: its title and its question."""
    heading, _, text = source.partition("\n")
    question = next((part for part in text.split("\n\n") if part.strip().startswith("**Question.**")), "")
    return _markdown(f"{heading}\n\n{question.strip().removeprefix('**Question.**').strip()}")


def _markdown(text: str) -> str:
    """Hints that unfold stay in the notebook; formulas become MathML where latex2mathml is there (the extra `docs`)."""
    from nbconvert.filters import markdown2html

    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    try:
        from latex2mathml.converter import convert

        text = re.sub(r"\$\$(.+?)\$\$", lambda found: convert(found[1], display="block"), text, flags=re.DOTALL)
        text = re.sub(r"\$([^$\n]+)\$", lambda found: convert(found[1]), text)
    except ImportError:
        pass
    return re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
