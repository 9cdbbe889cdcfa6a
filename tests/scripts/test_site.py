"""The documentation: its pages come from the sources, its links lead somewhere, its lesson plan
fits.

That it builds is tested where the packages of the extra `docs` are installed."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clstudy.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)")


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("build_site",
                                                  ROOT / "scripts" / "site" / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_links_of_hand_written_pages_lead_somewhere(path: Path) -> None:
    found = [link for link in LINK.findall(path.read_text()) if "://" not in link]
    generated = {"../methods.md"}
    assert [link for link in found
            if link not in generated and not (path.parent / link).exists()] == []


def test_the_lesson_plan_fits_its_sessions_and_quotes_tables_that_exist() -> None:
    text = (ROOT / "docs" / "lesson_plan.md").read_text()
    sessions = text.split("## Session ")[1:]
    assert len(sessions) == 3
    for one in sessions:
        assert sum(map(int, re.findall(r"^\| (\d+) \|", one, re.M))) == 90
    for command in re.findall(r"`clstudy student ([^`]+)`", text):
        assert all(
            list((ROOT / "notebooks").glob(f"{number}_*.ipynb")) for number in command.split())


def test_each_method_has_its_equation(site) -> None:
    text = site.methods()
    assert re.findall(r"^## (\w+)$", text, re.M) == sorted(METHODS)
    assert "L = −(1/B) Σ_i log p_{i,y_i}" in text.partition("## sit\n")[2].partition("\n## ")[0]


def test_a_paragraph_set_in_is_kept_as_it_stands_and_text_is_text(site) -> None:
    assert site.block("    a_b  =\n      2 * c") == "```text\na_b  =\n  2 * c\n```\n"
    assert site.block("p_i < 2 * q\nand") == "p\\_i \\< 2 \\* q\nand\n"
    assert site.block("see `a_b`") == "see `a_b`\n"


def test_every_module_of_the_reference_exists(site) -> None:
    for module in [module for modules in site.API.values() for module in modules]:
        place = ROOT / "clstudy" / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__init__.py").exists(), module
    assert "::: clstudy.training.loop" in site.api()["api/training.md"]


def test_links_to_sources_lead_to_the_reference(site, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(site, "PAGES", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "other.md").touch()
    page = tmp_path / "docs" / "page.md"
    assert site.links("[loop](../clstudy/training/loop.py)", page) == "[loop](../api/training.md)"
    assert site.links("[loop](clstudy/training/loop.py)",
                      tmp_path / "README.md") == "[loop](api/training.md)"
    for kept in ("[a](../other.md#b)", "[a](../missing.md)", "[a](https://example.org)", "[a](#b)",
                 "![a](b.png)"):
        assert site.links(kept, page) == kept
    assert site.links("[`x`](../scripts/site/build_site.py)", page) == "`x`"


def test_only_what_a_page_can_show_is_shown(site) -> None:
    def output(**data):
        return {"output_type": "display_data", "data": data, "metadata": {}}

    both = {"image/png": "x", "text/plain": "y"}
    assert site.showable(output(**both))["data"] == both
    assert site.showable(output(**{"application/vnd.plotly.v1+json": {}, "text/html": "z"})) is None
    assert site.showable({"output_type": "stream", "name": "stdout", "text": "t"})
    assert site.showable({"output_type": "stream", "name": "stderr", "text": "t"}) is None


def test_what_a_page_would_fetch_is_taken_out_or_told(site, tmp_path) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        '<script src="https://x.org/a.js"></script><script type="module">import("mermaid")</script>'
        '<script>kept</script><a href="https://x.org">link</a>')
    assert site.offline(tmp_path) == []
    assert page.read_text() == '<script>kept</script><a href="https://x.org">link</a>'
    page.write_text(
        '<img src="https://x.org/a.png"><link rel="stylesheet" href="https://x.org/a.css">')
    assert len(site.offline(tmp_path)) == 2


def test_formulas_become_mathml_outside_of_code(site) -> None:
    pytest.importorskip("latex2mathml", reason="pip install 'clstudy[docs]'")
    made = site.mathml("$x_i$ and `$PATH` and\n```\n$a$\n```\n$$y$$")
    assert made.count(
        "<math") == 2 and "`$PATH`" in made and "\n$a$\n" in made and 'display="block"' in made


@pytest.mark.slow
def test_it_builds_without_a_warning() -> None:
    for name in ("mkdocs_jupyter", "mkdocstrings", "material", "latex2mathml"):
        pytest.importorskip(name, reason="pip install 'clstudy[docs]'")
    done = subprocess.run([sys.executable, ROOT / "scripts" / "site" / "build_site.py"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
