"""The index over executed notebooks. The pages themselves are tested with the notebooks that become
them."""
import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from clstudy.notebooks import html


def picture(colour: str, width: int = 900) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, 300), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def executed(path: Path, *cells: tuple[str, dict], main: int | None = None, **papermill) -> Path:
    content = [{"cell_type": "code", "source": source, "outputs": [output],
                "metadata": {"tags": ["figure", "main"] if number == main else []}}
               for number, (source, output) in enumerate(cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": content, "metadata": {"papermill": papermill}}))
    return path


def shows(colour: str) -> dict:
    return {"output_type": "display_data", "data": {"image/png": picture(colour)}}


@pytest.fixture
def rows(tmp_path) -> dict[str, str]:
    """The rows of an index over four executed notebooks, by name; beside them what does not belong
    there."""
    executed(tmp_path / "01_a.ipynb", ("plots.save(x, \"01_first\")", shows("red")),
             ("plots.save(y, \"01_second\")", shows("blue")), main=1, duration=95.0,
             start_time="2026-01-02T03:04:05.6", parameters={"seeds": [0, 1], "text": "<b>"})
    executed(tmp_path / "02_b.ipynb", ("x", shows("green")), ("y", shows("black")), duration=None,
             parameters={})
    executed(
        tmp_path / "03_c.failed.ipynb",
        ("1 / 0",
         {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by <zero>"}),
        duration=3.0)
    executed(tmp_path / "01_a-1234" / "01_a.ipynb", ("x", {"output_type": "stream"}), duration=1.0)
    executed(tmp_path / "04_d.running-12345678.ipynb", ("x", {}))
    (tmp_path / "05_e.ipynb").write_text('{"cells": [')
    (tmp_path / "06_f.ipynb").write_text(
        '{"cells": [{"cell_type": "code"}], "metadata": {}}')  # never executed
    page = html.index(tmp_path)
    assert page == tmp_path / "index.html" and not list(tmp_path.glob("*.new"))
    text = page.read_text()
    assert "4 notebooks, 1 failed" in text
    assert not re.search(r"https?://", text)  # nothing from a network
    found = re.findall(r'<tr><td><a href="([^"]+)">.*?</tr>', text, re.S)
    return dict(zip(found, re.findall(r"<tr><td>.*?</tr>", text, re.S), strict=True))


def colour(row: str) -> tuple[tuple, int]:
    image = Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)"', row)[1])))
    return image.convert("RGB").getpixel((0, 0)), image.width


def test_a_row_has_status_time_parameters_and_the_main_figure(rows):
    assert list(rows) == ["01_a-1234/01_a.html", "01_a.html", "02_b.html", "03_c.failed.html"]
    row = rows["01_a.html"]
    assert "finished" in row and "1.6 min" in row and "2026-01-02 03:04" in row
    assert "seeds = [0, 1]" in row and "text = &#39;&lt;b&gt;&#39;" in row
    assert colour(row) == ((0, 0, 255), html.WIDTH)  # the one tagged main, made small


def test_without_a_main_figure_the_first_is_shown_and_without_any_none(rows):
    assert colour(rows["02_b.html"])[0] == (0, 128, 0)
    assert "not known" in rows["02_b.html"] and "defaults" in rows["02_b.html"]
    assert "<img" not in rows["01_a-1234/01_a.html"]


def test_a_failed_one_says_why(rows):
    assert "ZeroDivisionError: division by &lt;zero&gt;" in rows["03_c.failed.html"]
    assert 'class="failed"' in rows["03_c.failed.html"] and ">03_c<" in rows["03_c.failed.html"]


def test_an_empty_folder_has_an_empty_index(tmp_path):
    assert "0 notebooks, 0 failed" in html.index(tmp_path).read_text()
