"""Every notebook in a real JupyterLab, in Chromium: it runs, its widgets answer to keyboard and
mouse, the console stays empty and no page asks for anything outside. Skipped without a Chromium.

    make browser        small parameters and a toy model, nothing needs to be there
    make screenshots    the notebooks as they are, on the runs of `make study`; pictures of
                        widgets go to figures/lab/
"""
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nbformat
import pytest
from conftest import TOY_MODEL
from PIL import Image

from clstudy.utils.paths import NOTEBOOKS
from clstudy.widgets import __all__ as WIDGETS

pytest.importorskip("playwright",
                    reason="playwright is not installed: pip install 'clstudy[browser]'")
from playwright.sync_api import Locator, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
PICTURES = os.environ.get("CLSTUDY_SCREENSHOTS")  # their folder; then notebooks run as they are
HAND = {"benchmark_args": {"families": ["streamline-emojis"]}, "seeds": [0, 1], "precision": "fp32"}
FEW = {"benchmark_args": {"update": ["activities"], "held_out": ["validation"]}, "seeds": [0, 1],
       "tasks": 2, "precision": "fp32"}
RATE = {"seeds": [0, 1], "precision": "fp32", "tasks": 2, "rates": [0.005],
        "more": {"steps_per_batch": 1, "held_out_every": 5}}
UPDATE = {"update": ["activities"],
          "held_out": ["other classes", "validation", "validation, other classes"]}
SMALL = {  # parameters that make it small; the model is a toy's wherever it can be chosen
    "00_start_here": {"things": ["dog", "pizza"], "extra": ["an animal"]},
    "01_forgetting": {"precision": "fp32", "tasks": [["food-drink"], ["activities"]],
                      "benchmark_args": {"update": ["food-drink", "activities"]}},
    "02_the_loop": {"tasks": 2, "batch_size": 256},
    "03_candidates": FEW | {"rates": {"lora": [0.005]}},
    "04_gradients": FEW | {"look_at": 2, "model": "icon-clip"},  # a toy has nothing to lose
    "05_which_encoder": RATE | {"benchmark_args": UPDATE},
    "06_streams": RATE,
    "07_vocabulary": {
        "seeds": [0, 1], "precision": "fp32", "epochs": 1, "more": {}, "in_sessions": ["vr_lwf"],
        "lines": {"finetune": {"method": "finetune"}, "text": {"method": "finetune", "tower": "text"},
                  "vr_lwf": {"method": "vr_lwf", "weight": [1]},
                  "class_means": {"method": "class_means", "tuner": "none", "text": [0, 0.5]}},
        "sessions": {"tasks": 2, "held_out_every": 2}},
    "08_weights": {"seeds": [0, 1], "precision": "fp32", "epochs": 1, "shares": [0.5],
                   "more": {"steps_per_batch": 1}},
    "09_small_memory": FEW | {"more": {}, "classes": 5},
    "10_domains": {"seeds": [0, 1], "size": 29, "precision": "fp32", "more": {"held_out_every": 100}},
    "11_the_map": HAND | {"benchmark_args": {"update": ["food-drink"]}, "tasks": 2, "size": 20,
                          "new": {"SIT with class weights": ["batch", "batch", "kl", "none", "reservoir", "sit"]}},
    "12_leaderboard": {},
}
FINGERPRINT = """node => {
    const marks = [...node.querySelectorAll('path, rect, text, image, img, [style*=width]')];
    const names = ['d', 'x', 'y', 'transform', 'href', 'src', 'style'];
    const said = e => names.map(a => (e.getAttribute(a) || '').slice(-2000));
    return [node.innerText, ...marks.map(said)].join('|');
}"""
WATCH = """node => {  // when a key or a button goes down, and when the picture last changed
    window.began = window.answered = null;
    const start = () => { window.began ??= performance.now() };
    for (const kind of ['keydown', 'pointerdown', 'input'])
        document.addEventListener(kind, start, {capture: true});
    window.watcher?.disconnect();
    window.watcher = new MutationObserver(() => { window.answered = performance.now() });
    window.watcher.observe(node, {subtree: true, childList: true, attributes: true, characterData: true});
}"""
PAGE = """# The widgets

Pictures of a JupyterLab in a browser, by `make screenshots`: do not edit. The notebooks are those
of `make study` and `make memory`, with their runs; each control was used by keyboard, on two cores
without a GPU. Times: from a key to the last change of the picture, of lists and sliders the median
of three.

"""
LAB = "window.jupyterapp.shell.currentWidget"


WHERE: list[str] = []  # what is being done
TIMES: dict[str, list[float]] = {}  # milliseconds, by notebook and widget


@pytest.fixture(scope="session", autouse=True)
def told():
    """The pictures on a page, with what was measured now or, of widgets not tried now, before."""
    yield
    said = {}
    for name, times in TIMES.items():
        if len(times) > 1:
            said[name] = f"{len(times)} controls, {min(times):.0f} to {max(times):.0f} ms"
        elif times:
            said[name] = f"1 control, {times[0]:.0f} ms"
    print("\nfrom a key to the last change of the picture",
          *(f"{name}: {one}" for name, one in said.items()), sep="\n")
    if PICTURES:
        kept = Path(PICTURES) / "times.json"
        said = (json.loads(kept.read_text()) if kept.exists() else {}) | said
        kept.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
        parts = [f"## {name[3:].replace('_', ' ').capitalize()}, {name[:2]}\n\n"
                 f"<img src=\"{name}.png\" width=\"720\">\n\nNotebook {name[:2]}"
                 + (f"; {said[name]}." if name in said else ".")
                 for name in sorted(path.stem for path in Path(PICTURES).glob("*.png"))]
        (Path(PICTURES) / "README.md").write_text(PAGE + "\n\n".join(parts) + "\n")


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with the notebooks, and with a toy model."""
    place = tmp_path_factory.mktemp("lab")
    if not PICTURES:
        import open_clip
        import torch
        from safetensors.torch import save_file

        (place / "toy").mkdir()
        preprocess = {"mean": [0.5] * 3, "std": [0.2] * 3, "size": [64, 64],
                      "interpolation": "bicubic", "resize_mode": "squash"}
        about = {"model_cfg": TOY_MODEL, "preprocess_cfg": preprocess}
        (place / "toy" / "open_clip_config.json").write_text(json.dumps(about))
        torch.manual_seed(0)
        weights = open_clip.model.CLIP(**TOY_MODEL).state_dict()
        save_file(weights, place / "toy" / "open_clip_model.safetensors")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        if not PICTURES:
            small(notebook, SMALL[path.stem], place / "toy")
        nbformat.write(notebook, place / path.name)
    return place


def small(notebook: nbformat.NotebookNode, changes: dict, model: Path) -> None:
    """Put a cell behind the parameters, as papermill does."""
    at, cell = next((i, cell) for i, cell in enumerate(notebook.cells)
                    if "parameters" in cell.metadata.get("tags", []))
    if "\nmodel: str" in cell.source and "seeds" in changes:
        changes = {"model": str(model)} | changes
    source = "\n".join(f"{name} = {value!r}" for name, value in changes.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(source, id="made-small"))


@pytest.fixture(scope="session")
def server(place, tmp_path_factory) -> Iterator[str]:
    """A server of its own, with no settings of this user; its address, and the token."""
    home, token = tmp_path_factory.mktemp("home"), secrets.token_hex(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    news = home / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}')
    env = {key: value for key, value in os.environ.items()
           if key not in ("CLSTUDY_HEADLESS", "MPLBACKEND")}
    env |= {
        "JUPYTER_CONFIG_DIR": str(home / "c"),
        "JUPYTER_DATA_DIR": str(home / "d"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path_factory.mktemp("r")),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "w"),
        "IPYTHONDIR": str(home / "i"),
        "CLSTUDY_FIGURES": str(home / "figures"),
        "CLSTUDY_STUDENT": str(home / "student"),
        "CLSTUDY_RUNS": str(NOTEBOOKS.parent / "runs" if PICTURES else home / "runs"),
        "PYTHONPATH": f"{NOTEBOOKS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={place}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly"]
    log = home / "log"
    with open(log, "wb") as file, subprocess.Popen(command, env=env, stdout=file,
                                                   stderr=file) as process:
        try:
            end, address = time.monotonic() + 120, f"http://127.0.0.1:{port}"
            while True:
                try:
                    urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < end, log.read_text()
                    time.sleep(0.5)
            yield f"{address}/lab/tree/NAME?token={token}&reset"
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-component-update", "--disable-background-networking",
                   "--disable-sync"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page that must ask nothing of the outside and say nothing on the console."""
    page, said, asked = browser.new_page(viewport={"width": 1400, "height": 1600}), [], []

    def console(message) -> None:
        if message.type == "error":
            said.append((*WHERE, message.text))

    page.on("console", console)
    page.on("pageerror", lambda error: said.append((*WHERE, str(error))))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    # a kernel holds up to 2 GB, and so does each worker
    page.evaluate(f"() => {LAB}?.sessionContext?.shutdown?.()")
    page.close()
    inside = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")
    assert [url for url in asked if not url.startswith(inside)] == []
    assert said == []


def opened(page: Page, server: str, stem: str) -> bool:
    """Open a notebook, wait for its kernel, run all its cells; whether all ran."""
    page.goto(server.replace("NAME", f"{stem}.ipynb"))
    page.wait_for_function(
        f"() => {{ const w = {LAB.replace('app.', 'app?.').replace('shell.', 'shell?.')}; "
        "return !!(w && w.sessionContext && w.content?.widgets) }", timeout=120_000)
    page.evaluate(
        f"async () => {{ const w = {LAB}; await w.context.ready; await w.sessionContext.ready; "
        "await w.sessionContext.session.kernel.info }")
    page.wait_for_function(
        f"() => {LAB}.sessionContext.session?.kernel?.status === 'idle'")  # before: not run at all
    page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    return page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")


def errors(page: Page) -> list[str]:
    """The errors of the cells."""
    return page.evaluate(f"""() => {LAB}.content.widgets.filter(w => w.model.outputs)
        .flatMap(w => w.model.outputs.toJSON())
        .filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)""")


def widgets(page: Page) -> dict[str, Locator]:
    """The output of each cell that shows a widget of ours, by the widget's name."""
    found = page.evaluate(f"() => {LAB}.content.widgets.map(w => w.model.sharedModel.getSource())")
    ours = re.compile(rf"^(?:widgets\.)?({'|'.join(WIDGETS)})\(", re.M)
    names = {i: called[1] for i, source in enumerate(found) if (called := ours.search(source))}
    cells = page.locator(".jp-Notebook .jp-Cell")
    return {name: cells.nth(i).locator(".jp-Cell-outputArea") for i, name in names.items()}


def changes(page: Page, output: Locator, act, seconds: float = 10) -> float:
    """Milliseconds from the key or button of `act()` to the last change of the picture; 0: it is
    the same picture."""
    before, end = output.evaluate(FINGERPRINT), time.monotonic() + seconds
    output.evaluate(WATCH)
    act()
    while time.monotonic() < end:
        if output.evaluate(FINGERPRINT) != before:
            page.wait_for_timeout(300)
            return max(page.evaluate("() => window.answered - window.began"), 0.1)
        page.wait_for_timeout(50)
    return 0


def pictured(page: Page, output: Locator, name: str) -> None:
    if PICTURES:
        output.scroll_into_view_if_needed()
        page.mouse.move(0, 0)
        page.wait_for_timeout(800)
        shown = output.locator(".jp-OutputArea-output:has(.jupyter-widgets)").first
        shown.screenshot(path=Path(PICTURES) / name)


def press(page: Page, control: Locator, key: str) -> None:
    control.scroll_into_view_if_needed()
    control.focus()
    page.keyboard.press(key)
    if key.startswith("Arrow"):  # JupyterLab walks through the cells with them
        focused = control.evaluate("node => document.activeElement === node")
        assert focused, f"{key} was taken from it"


def tried(page: Page, output: Locator) -> dict[str, float]:
    """Every list, slider and row of buttons of a widget, by keyboard: milliseconds to its answer
    (of lists and sliders the median of three: there, back, there), 0 for none."""
    found = {}
    page.mouse.move(0, 0)  # on a figure it would hover
    for kind, key in (("select:not([multiple])", "ArrowDown"), (".noUi-handle", "ArrowRight"),
                      (".widget-toggle-buttons button", "Enter")):
        controls = output.locator(kind)
        for i in range(controls.count()):
            control = controls.nth(i)
            single = kind.startswith("select") and control.locator("option").count() < 2
            if not control.is_visible() or single:
                continue
            ways = [key, {"ArrowDown": "ArrowUp", "ArrowRight": "ArrowLeft"}.get(key, key)]
            for way, back in (ways, ways[::-1]):
                moved = [changes(page, output, partial(press, page, control, way), 12)]
                if moved[0] and way != back:
                    moved += [changes(page, output, partial(press, page, control, key), 12)
                              for key in (back, way)]
                    # and as it was: some choices leave others nothing to change
                    press(page, control, back)
                    page.wait_for_timeout(500)
                found[f"{kind} {i}"] = statistics.median(moved)
                if moved[0]:
                    break
    return found


@pytest.mark.parametrize("stem", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_and_its_widgets_answer(page, server, stem, tmp_path):
    WHERE[:] = ["running", stem]
    ran = opened(page, server, stem)
    assert errors(page) == [] and ran
    for name, output in widgets(page).items():
        WHERE[:] = ["shown", name]
        output.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        page.wait_for_function(f"() => {LAB}.sessionContext.session?.kernel?.status === 'idle'")
        assert output.locator(".jupyter-widgets").count(), f"{name} shows no widget"
        taken = f"{stem[:2]}_{name}.png"
        if name != "live_training":  # that one when it is finished; the others as they greet
            pictured(page, output, taken)
        more = globals().get(f"use_{name}")
        if more:
            WHERE[:] = [more.__name__]
            try:
                more(page, output, tmp_path)
            except Exception:
                page.screenshot(path=tmp_path / f"{name}.png")
                print(f"what was to be seen: {tmp_path / name}.png")
                raise
        if name == "live_training":
            pictured(page, output, taken)
        WHERE[:] = ["by keyboard", name]
        answers = tried(page, output)
        idle = [control for control, ms in answers.items() if not ms]
        if name != "live_training" and name != "playground":
            assert idle == [], f"{name}: {idle} changed nothing"
        TIMES[f"{stem[:2]}_{name}"] = [ms for ms in answers.values() if ms]


# ---- what is particular to a widget


def upload(page: Page, output: Locator, folder: Path) -> None:
    Image.new("RGB", (90, 70), (200, 30, 30)).save(folder / "own.png")

    def choose() -> None:
        with page.expect_file_chooser() as chooser:
            output.get_by_role("button", name="your own picture").click()
        chooser.value.set_files(folder / "own.png")

    assert changes(page, output, choose)


def write(page: Page, output: Locator, field: str, text: str) -> None:
    words = output.locator(field).first

    def put() -> None:
        words.fill(text)
        words.press("Tab")

    assert changes(page, output, put)


def use_picture_microscope(page: Page, output: Locator, folder: Path) -> None:
    """An own picture, what it shows, and another batch."""
    upload(page, output, folder)
    write(page, output, "input[type=text]", "a red square")
    assert changes(page, output, output.locator("select[multiple] option").first.click)


def use_playground(page: Page, output: Locator, folder: Path) -> None:
    """An own picture, and own words."""
    upload(page, output, folder)
    write(page, output, "textarea", "a red square\na green tree")


def use_forgetting_board(page: Page, output: Locator, folder: Path) -> None:
    """A click on a cell of the matrix."""
    box = output.locator(".js-plotly-plot").first.bounding_box()
    corners = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
               for x in (.2, .8) for y in (.3, .7)]
    assert any(changes(page, output, lambda at=at: page.mouse.click(*at), 4) for at in corners)


def use_run_comparer(page: Page, output: Locator, folder: Path) -> None:
    """Words narrow the list, and another row is chosen."""
    words = output.locator("input[type=text]").first
    assert changes(page, output, lambda: words.fill("sit"))
    assert changes(page, output, lambda: words.fill(""))
    rows = output.locator("select[multiple]")
    assert changes(page, output, rows.locator("option").first.click)
    assert changes(page, output, lambda: press(page, rows, "ArrowDown"))


def use_gradient_microscope(page: Page, output: Locator, folder: Path) -> None:
    """A click on a bar chooses its class."""
    bars, name = output.locator(".barlayer .point path"), output.locator("select").first
    before = name.input_value()
    for i in range(bars.count()):
        box = bars.nth(i).bounding_box()
        if box and box["height"] > 4 and box["width"] > 2:
            page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.wait_for_timeout(300)
            if name.input_value() != before:
                return
    raise AssertionError("no bar answered to a click")


def use_live_training(page: Page, output: Locator, folder: Path) -> None:
    """Start, hold, go on, to the end; the kernel answers meanwhile."""
    start, hold, stop = (output.get_by_role("button", name=name)
                         for name in ("start", "pause", "stop"))
    if PICTURES and not start.is_enabled():  # made by an earlier call
        return
    assert start.is_enabled() and stop.is_disabled()
    press(page, start, "Enter")
    page.wait_for_function("node => node.querySelectorAll('.scatterlayer path.js-line').length > 0",
                           arg=output.element_handle(), timeout=120_000)
    hold.click()
    page.wait_for_function("node => node.innerText.includes('paused')", arg=output.element_handle())
    asked = page.evaluate(f"""async () => {{ const kernel = {LAB}.sessionContext.session.kernel;
        const future = kernel.requestExecute({{code: '6 * 7', store_history: false}}); let said = '';
        future.onIOPub = m => {{ said += m.content?.data?.['text/plain'] || '' }};
        await future.done; return said }}""")
    assert asked == "42"
    if PICTURES:
        page.wait_for_timeout(500)
    output.get_by_role("button", name="go on").click()
    page.wait_for_function("node => node.innerText.includes('finished')",
                           arg=output.element_handle(), timeout=300_000)
