"""The gallery lists every figure with its question, its command and its runs, and is up to date."""
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clstudy.cli import app
from clstudy.notebooks import gallery
from clstudy.utils import paths
from clstudy.utils.paths import REPOSITORY

FIGURES = REPOSITORY / "figures"


def test_the_gallery_is_up_to_date():
    said = (FIGURES / "README.md").read_text(encoding="utf-8")
    assert said == gallery.page(
        FIGURES), "figures/README.md is not that of figures/ and notebooks/: `clstudy gallery`"


def test_the_gallery_lists_every_figure_and_table_once_and_links_to_what_is_there():
    said = gallery.page(FIGURES)
    listed = re.findall(r"^### (\w+)$", said, re.M)
    files = {path.name for path in FIGURES.iterdir() if path.is_file()} - {"README.md"}
    there = {Path(name).stem for name in files - {"runs.parquet"}}
    assert sorted(listed) == sorted(there) and len(listed) > 20
    links = set(re.findall(r"\]\(([^)]+)\)", said))
    assert files | {"lab/README.md"} <= links
    assert all((FIGURES / link).exists() for link in links)


@pytest.fixture
def small(tmp_path):
    """Two notebooks, a figure, a table, both of one name, and a figure that nobody draws."""
    for name in ("figures", "notebooks"):
        (tmp_path / name).mkdir()
    for stem, question, code in (("01_one", "Is it <so>?",
                                  'plots.save(figure, "01_b")\nplots.save(f, "01_a")'),
                                 ("02_two", "And now?", 'tables.save(table, "02_c", caption)')):
        cells = [("markdown", [
            f"# {stem[:2]} · Title {stem}\n", "\n", f"**Question.** {question}\n", "\n", "More."
        ]), ("code", [code])]
        cells = [{
            "cell_type": kind, "source": source,
            "metadata": {"tags": ["figure"] if kind == "code" else []}
        } for kind, source in cells]
        (tmp_path / "notebooks" / f"{stem}.ipynb").write_text(json.dumps({"cells": cells}))
    folder = tmp_path / "figures"
    settings = {
        "benchmark": ["emoji"], "stream": ["disjoint", "joint"], "tuner": ["lora"], "seed": [0, 2],
        "method": ["finetune", "sit"]
    }
    about = {"caption": 'Some "bars"; 95 % intervals.', "runs": ["x", "y"], "settings": settings}
    (folder / "01_b.json").write_text(json.dumps(about))
    (folder / "01_a.json").write_text(json.dumps({"caption": "Of before.", "runs": ["x"]}))
    for name in ("01_b.png", "01_b.pdf", "01_a.png", "09_old.png", "02_c.csv", "02_c.tex"):
        (folder / name).write_text("")
    for name in ("01_b", "02_c"):
        (folder / f"{name}.md").write_text(f"What stands in {name}.\n\n| a |\n")
    return tmp_path


def test_a_figure_has_its_question_command_caption_and_runs(small):
    said = gallery.page(small / "figures", small / "notebooks")
    first, second, nobody = (said.split("\n## ")[i] for i in (1, 2, 3))
    assert first.startswith(
        "01 · Title 01_one\n\nIs it <so>?\n\n[`01_one`](../notebooks/01_one.ipynb) · "
        "`clstudy run 01_one`\n\n### 01_a\n")
    assert first.split("### 01_b\n")[1] == (
        '\n<img src="01_b.png" alt="Some &quot;bars&quot;; 95 % intervals." width="720">\n\n'
        'Some "bars"; 95 % intervals.\n\n2 runs: emoji; disjoint, joint; lora; finetune, sit; seeds 0, 2.\n\n'
        "Table: What stands in 01_b.\n\n[PNG](01_b.png) · [PDF](01_b.pdf) · [JSON](01_b.json) · [MD](01_b.md)\n"
    )
    assert "Of before.\n\n1 run.\n" in first
    assert "And now?" in second and "img" not in second
    assert "[MD](02_c.md) · [CSV](02_c.csv) · [TEX](02_c.tex)" in second
    assert nobody.startswith("No notebook draws these") and "### 09_old" in nobody


def test_the_page_is_written_and_not_listed(small):
    path = gallery.write(small / "figures", small / "notebooks")
    assert path.read_text(encoding="utf-8") == gallery.page(small / "figures", small / "notebooks")
    assert "README" not in gallery.names(small / "figures")


def test_the_command_writes_it(small, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", small / "figures")
    done = CliRunner().invoke(app, ["gallery"])
    assert done.exit_code == 0 and "README.md" in done.output
    assert "### 09_old" in (small / "figures" / "README.md").read_text(encoding="utf-8")
