"""Executed notebooks as pages that need no network, and an index of them.

nbconvert writes the pages. Only this module takes plotly's library: once for each page."""
import base64
import html
import io
import re
from pathlib import Path
from typing import Any

from clstudy.notebooks import cells
from clstudy.utils.files import write_text

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDTH = 480  # pixels of a picture in the index

# nbconvert's page without what needs a network: require.js (which also hides an inlined plotly.js),
# mermaid, widgets. MathJax stays: without a network a formula is shown as its TeX source, with one
# it is typeset.
OFFLINE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
"""


def write(path: Path) -> Path:
    """Write the executed notebook as one HTML file beside it, with its figures."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    copy = nbformat.read(path, as_version=4)
    _make_portable([output for output in cells.outputs(copy.cells) if "data" in output])
    exporter = HTMLExporter(template_file="offline.j2",
                            extra_loaders=[DictLoader({"offline.j2": OFFLINE})])
    body, _ = exporter.from_notebook_node(copy, resources={"metadata": {"name": path.stem}})
    return write_text(path.with_suffix(".html"), body)


def _make_portable(outputs: list[Any]) -> None:
    """Turn plotly's data into HTML, with the library once, and a widget into a remark."""
    from plotly.io import to_html

    library = True
    for output in outputs:
        if PLOTLY in output.data:
            figure = {
                key: output.data[PLOTLY].get(key, {})
                for key in ("data", "layout", "frames", "config")
            }
            config = figure.pop("config")
            markup = to_html(figure, config, include_plotlyjs=library, full_html=False,
                             validate=False)
            output.data, library = {"text/html": markup}, False
        elif WIDGET in output.data:
            what = html.escape(output.data.get("text/plain", "widget").split("(")[0])
            output.data = {
                "text/html": f"<p><em>{what}: an interactive view, in the notebook only.</em></p>"
            }


def mathml(text: str) -> str:
    """Turn $…$ and $$…$$ outside of code into MathML, which browsers draw without a script.

    ImportError: latex2mathml, a package of the extra `docs`, is missing."""
    from latex2mathml.converter import convert

    def drawn(text: str) -> str:
        text = re.sub(r"(?s)\$\$(.+?)\$\$", lambda m: convert(m[1].strip(), display="block"), text)
        return re.sub(r"(?<![\\$])\$([^$\n]+)\$", lambda m: convert(m[1]), text)

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)  # code at odd places
    parts[::2] = map(drawn, parts[::2])
    return "".join(parts)


# --- the index ----------------------------------------------------------------------------------------------

INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Executed notebooks</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .6em .8em; border-top: 1px solid #ddd; }}
code {{ font-size: 12px; overflow-wrap: anywhere; }} img {{ width: 22em; max-width: 100%; }}
.ok {{ color: #00734f; }} .failed {{ color: #b03a00; font-weight: 600; }} .error {{ font-size: 13px; }}
</style></head><body><h1>Executed notebooks</h1><p>{summary}</p>
<table><thead><tr><th>notebook</th><th>status</th><th>time</th><th>parameters</th><th>main figure</th></tr></thead>
<tbody>
{rows}
</tbody></table></body></html>
"""


def index(folder: Path) -> Path:
    """Write `folder`/index.html: status, time, parameters and main figure of every notebook.

    It lists the notebooks in the folder and in its folders, in one file that needs no network."""
    paths = sorted(path for path in folder.rglob("*.ipynb") if ".running-" not in path.name)
    found = [(path, document) for path in paths if (document := _executed(path)) is not None]
    failed = sum(_failed(path) for path, _ in found)
    rows = "\n".join(_row(path, one, folder) for path, one in found)
    page = INDEX.format(summary=f"{len(found)} notebooks, {failed} failed", rows=rows)
    return write_text(folder / "index.html", page)


def _failed(path: Path) -> bool:
    return path.stem.endswith(".failed")


def _row(path: Path, document: dict[str, Any], folder: Path) -> str:
    about = document.get("metadata", {}).get("papermill", {})
    page = path.with_suffix(".html").relative_to(folder).as_posix()
    name, error = path.stem.removesuffix(".failed"), _error(document) if _failed(path) else ""
    status = (f'<span class="failed">failed</span><div class="error">{html.escape(error)}</div>'
              if _failed(path) else '<span class="ok">finished</span>')
    given = "<br>".join(f"<code>{html.escape(f'{name} = {value!r}')}</code>"
                        for name, value in about.get("parameters", {}).items()) or "defaults"
    started = html.escape(str(about.get("start_time") or "")[:16].replace("T", " "))
    return (f'<tr><td><a href="{html.escape(page)}">{html.escape(name)}</a></td><td>{status}</td>'
            f"<td>{_duration(about.get('duration'))}<br>{started}</td><td>{given}</td>"
            f"<td>{_figure(document, html.escape(page))}</td></tr>")


def _duration(seconds: Any) -> str:
    return f"{seconds / 60:.1f} min" if isinstance(seconds, int | float) else "not known"


def _error(document: dict[str, Any]) -> str:
    """Say what the first failing cell raised; a notebook that was stopped has none."""
    for output in cells.outputs(document["cells"]):
        if output.get("output_type") == "error":
            return f"{output.get('ename')}: {output.get('evalue')}"[:300]
    return "stopped before its end"


def _figure(document: dict[str, Any], page: str) -> str:
    """Show the first picture of the cell tagged main; without one, the first picture of all."""
    found = document["cells"]
    for output in cells.outputs([*cells.tagged(found, "main"), *found]):
        if picture := output.get("data", {}).get("image/png"):
            data = f"data:image/png;base64,{_small(''.join(picture))}"
            return f'<a href="{page}"><img alt="" src="{data}"></a>'
    return ""


def _small(picture: str) -> str:
    """Make a picture (base64) as small as the index shows it; a broken one stays as it is."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            image.thumbnail((WIDTH, 2 * WIDTH))
            file = io.BytesIO()
            image.save(file, "PNG", optimize=True)
    except (OSError, ValueError):
        return picture.replace("\n", "")
    return base64.b64encode(file.getvalue()).decode()


def _executed(path: Path) -> dict[str, Any] | None:
    """Read an executed notebook; None if it is no notebook, or if nobody has executed it."""
    try:
        document = cells.read(path)
        return document if "papermill" in document["metadata"] and document["cells"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
