"""Executed notebooks as pages that need no network, and an index of them.

nbconvert writes the pages. Only this module takes plotly's library: once for each page."""
import base64
import html
import io
import re
from collections.abc import Sequence
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
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Executed notebooks</title><style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
  color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .6em .8em; border-top: 1px solid #ddd; }
code { font-size: 12px; overflow-wrap: anywhere; } img { width: 22em; max-width: 100%; }
.ok { color: #00734f; } .failed { color: #b03a00; font-weight: 600; } .error { font-size: 13px; }
</style></head><body><h1>Executed notebooks</h1>
<p>{{ rows|length }} notebooks, {{ rows|selectattr("error")|list|length }} failed</p>
<table><thead><tr>
<th>notebook</th><th>status</th><th>time</th><th>parameters</th><th>main figure</th>
</tr></thead><tbody>
{%- for row in rows %}
<tr><td><a href="{{ row.page }}">{{ row.name }}</a></td>
<td>{% if row.error -%}
<span class="failed">failed</span><div class="error">{{ row.error }}</div>
{%- else %}<span class="ok">finished</span>{% endif %}</td>
<td>{{ row.time }}<br>{{ row.started }}</td>
<td>{% for one in row.parameters %}<code>{{ one }}</code><br>{% else %}defaults{% endfor %}</td>
<td>{% if row.picture -%}
<a href="{{ row.page }}"><img alt="" src="data:image/png;base64,{{ row.picture }}"></a>
{%- endif %}</td></tr>
{%- endfor %}
</tbody></table></body></html>
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


def _make_portable(outputs: Sequence[Any]) -> None:
    """Turn plotly's data into HTML, with the library once, and a widget into a remark."""
    from plotly.io import to_html

    library = True
    for output in outputs:
        if PLOTLY in output.data:
            figure = dict(output.data[PLOTLY])
            markup = to_html(figure, figure.pop("config", {}), include_plotlyjs=library,
                             full_html=False, validate=False)
            output.data, library = {"text/html": markup}, False
        elif WIDGET in output.data:
            name = html.escape(output.data.get("text/plain", "widget").split("(")[0])
            remark = f"<p><em>{name}: an interactive view, in the notebook only.</em></p>"
            output.data = {"text/html": remark}


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


def index(folder: Path) -> Path:
    """Write `folder`/index.html: status, time, parameters and main figure of every notebook.

    It lists the executed notebooks in the folder and in its folders, and needs no network."""
    from jinja2 import Environment

    paths = sorted(path for path in folder.rglob("*.ipynb") if ".running-" not in path.name)
    rows = [row for path in paths if (row := _row(path, folder))]
    page = Environment(autoescape=True).from_string(INDEX).render(rows=rows)
    return write_text(folder / "index.html", page)


def _row(path: Path, folder: Path) -> dict[str, Any] | None:
    """Return what the index shows of a notebook; None if nobody has executed it."""
    try:
        document = cells.read(path)
    except (OSError, ValueError):
        return None
    about = document.get("metadata", {}).get("papermill")
    if about is None or not document.get("cells"):
        return None
    seconds, failed = about.get("duration"), path.stem.endswith(".failed")
    return {
        "page": path.with_suffix(".html").relative_to(folder).as_posix(),
        "name": path.stem.removesuffix(".failed"),
        "error": _error(document["cells"]) if failed else "",
        "time": "not known" if seconds is None else f"{seconds / 60:.1f} min",
        "started": str(about.get("start_time") or "")[:16].replace("T", " "),
        "parameters": [f"{name} = {value!r}"
                       for name, value in about.get("parameters", {}).items()],
        "picture": _picture(document["cells"]),
    }


def _error(found: Sequence[cells.Cell]) -> str:
    """Say what the first failing cell raised; a notebook that was stopped has none."""
    for output in cells.outputs(found):
        if output.get("output_type") == "error":
            return f"{output.get('ename')}: {output.get('evalue')}"[:300]
    return "stopped before its end"


def _picture(found: Sequence[cells.Cell]) -> str:
    """Return the main figure, or else the first, as small as the index shows it (base64 PNG)."""
    from PIL import Image

    for output in cells.outputs([*cells.tagged(found, "main"), *found]):
        if picture := "".join(output.get("data", {}).get("image/png", "")):
            try:
                with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
                    image.thumbnail((WIDTH, 2 * WIDTH))
                    file = io.BytesIO()
                    image.save(file, "PNG", optimize=True)
            except (OSError, ValueError):  # a broken picture stays as it is
                return picture.replace("\n", "")
            return base64.b64encode(file.getvalue()).decode()
    return ""
