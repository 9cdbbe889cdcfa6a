"""Widgets show what is chosen, and a static figure if headless. Neither a browser nor a kernel is
needed: setting a control calls what a hand would call. How fast they answer:
`PYTHONPATH=tests python -m tests.widgets.test_widgets`."""
import io
import itertools
import re
from datetime import UTC, datetime
from html import escape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from clstudy import plots
from clstudy.analysis import leaderboard
from clstudy.data.benchmarks import BENCHMARKS
from clstudy.data.types import Labelled
from clstudy.losses.functional import match
from clstudy.runs.run import Run
from clstudy.runs.store import load_or_train
from clstudy.training.config import RunConfig
from clstudy.widgets import (
    accuracy_matrix,
    choosers,
    common,
    microscope,
    picture_gradients,
    run_comparison,
    zero_shot,
)
from clstudy.widgets import explorer as explorer_module
from tests import small_runs


def test_arrays_are_sent_in_one_piece(monkeypatch) -> None:
    """A kernel refuses buffers with gaps, such as a row of a transposed array."""
    figure, sent = common.panels(), {}
    figure.add_scatter(y=[0.0])
    monkeypatch.setattr(figure, "plotly_update", lambda values, *_: sent.update(values))
    rows = np.arange(12.0).reshape(4, 3).T
    common.redraw(figure, figure.data, {"y": [rows[1]], "name": ["a"]})
    assert sent["y"][0].flags.c_contiguous and sent["y"][0].tolist() == rows[1].tolist()
    assert not rows[1].flags.c_contiguous and sent["name"] == ["a"]


@pytest.fixture
def live(monkeypatch):
    """As in a notebook with somebody before it."""
    monkeypatch.delenv("CLSTUDY_HEADLESS")


# ---- lists and sliders over what was made


@pytest.fixture
def drawn(live, monkeypatch):
    """A chooser over five things, its controls, and what it has shown."""
    made, shown = [], []
    monkeypatch.setattr(choosers, "display",
                        lambda data, **_: shown.append(data["text/plain"].strip("'")))
    groups = {("texts", 10): "a", ("texts", 100): "b", ("texts", 400): "c", ("tokens", 2): "d",
              ("tokens", 100): "e"}
    box = choosers.chooser(groups, ["vary", "how many"], lambda thing: made.append(thing) or thing)
    assert made == list(groups.values())  # each before it is asked for
    yield (*box.children[0].children, shown)
    assert made == list(groups.values())  # and once


def test_a_chooser_shows_the_first_and_follows_its_slider(drawn):
    first, second, made = drawn
    assert made[-1] == "a"
    assert list(second.options) == [10, 100, 400] and first.options == ("texts", "tokens")
    second.value = 400
    assert made[-1] == "c"


def test_the_slider_of_a_chooser_has_the_values_of_what_is_chosen(drawn):
    first, second, made = drawn
    second.value = 400
    first.value = "tokens"
    assert list(second.options) == [2, 100] and made[-1] == "d"
    second.value = 100
    assert made[-1] == "e"
    first.value = "texts"
    assert made[-1] == {10: "a", 100: "b"}[second.value]


def test_the_twin_of_a_chooser_is_what_it_draws_first():
    assert choosers.chooser({("b", 3): 30, ("b", 2): 20, ("a", 1): 10}, ["", ""],
                            lambda thing: thing + 1) == 21


def test_the_map_is_walked_by_its_four_lists():
    box = choosers.map_walker(candidates="seen", class_weights="kl", denominator="moving")
    lists = [one for row in box.children[:2] for one in row.children]
    shown = box.children[2]
    names = ["candidates", "denominator", "class weights", "vocabulary"]
    assert [one.description for one in lists] == names
    assert "`gdro`" in shown.value and "no finished run" in shown.value
    lists[2].value = "uniform"
    assert "`gcl`" in shown.value and "`gdro`" not in shown.value
    lists[1].value = "pairs"
    assert "Nothing stands here" in shown.value and "&#x27;pairs&#x27;" in shown.value
    lists[0].value = "batch"
    assert "`clip_loss`" in shown.value


# ---- common


def test_a_list_that_is_filled_tells_nobody_and_one_that_is_used_does():
    import ipywidgets as ipw

    control, told = ipw.Dropdown(options=[1, 2]), []
    choosers.watch([control], lambda: told.append(control.value))
    choosers.offer(control, [3, 4, 5], 4)
    assert (control.value, told) == (4, [])
    control.value = 5
    assert told == [5]


def test_a_picture_is_written_as_it_is_with_its_words_escaped():
    import base64

    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    text = common.picture(image, "cat <3", "a \"cat\"")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", text).group(1))
    written = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(written, image.transpose(1, 2, 0))
    assert "cat &lt;3" in text and "a &quot;cat&quot;" in text and "<3" not in text


# ---- the forgetting board

LABELS = np.array([0, 0, 1, 1, 2, 2])


def known() -> accuracy_matrix.Answers:
    """Six images of three classes; class 2 is task 2. Before: all right. At the end: image 1 is
    taken for 2, by more than image 0 is; image 2 for 0."""
    test = Labelled(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), LABELS, ("ant", "bee", "cup"),
                    "a {}.")
    before = np.eye(3)[LABELS]
    after = np.array([[.5, 0, .6], [.1, 0, .9], [.7, .6, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    homes, seen = np.array([1, 1, 2]), np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    return accuracy_matrix.Answers(test, homes, seen, np.arange(6), {0: before, 2: after})


@pytest.mark.parametrize(("candidates", "images", "taken"), [
    ("all", [1, 0, 2], [2, 2, 0]), ("seen", [1, 0, 2], [2, 2, 0]), ("own", [2], [0])])
def test_what_was_lost_depends_on_who_competes_and_the_surest_mistake_is_first(
        candidates, images, taken):
    found, now = known().lost(0, 2, 1, candidates)
    assert (found.tolist(), now.tolist()) == (images, taken)


def test_nothing_is_lost_where_all_is_right():
    assert len(known().lost(0, 2, 2, "all")[0]) == 0


def test_before_training_all_compete_under_seen():
    np.testing.assert_array_equal(known().answer(0, "seen"), LABELS)


@pytest.fixture
def tuned(tiny, tmp_path) -> Run:
    """A run with its weights."""
    return load_or_train(tiny, tmp_path / "runs", keep_model=True)


def test_answers_agree_with_the_matrix_of_the_run(tuned):
    found = accuracy_matrix.answers(tuned)
    assert sorted(found.similarity) == [0, 2]
    labels = found.test.labels[found.images]
    for candidates, stages in (("own", (0, 2)), ("seen", (2,)), ("all", (0, 2))):
        R = tuned.matrix(candidates)
        for stage in stages:
            right = found.answer(stage, candidates) == labels
            mine = [right[found.homes[labels] == task].mean() for task in (1, 2)]
            np.testing.assert_allclose(mine, R[stage], atol=1e-9)


def test_the_board_answers_to_its_controls_and_to_clicks(live, tuned):
    shown = accuracy_matrix._Board(tuned, "all", known())
    heat = shown.figure.data[0]
    np.testing.assert_allclose(heat.z, 100 * tuned.matrix("all"))
    assert "<b>3</b> test images of task 1" in shown.pictures.value
    assert "bee → ant" in shown.pictures.value
    shown.candidates.value = "own"
    np.testing.assert_allclose(heat.z, 100 * tuned.matrix("own"))
    assert "<b>1</b> test images" in shown.pictures.value and "cup" not in shown.pictures.value
    shown._click(heat, SimpleNamespace(xs=[2], ys=[2]), None)
    assert (shown.task.value, shown.stage.value) == (2, 2)
    assert "<b>0</b> test images of task 2" in shown.pictures.value
    edge = shown.figure.layout.shapes[0]
    assert (edge.x0, edge.x1, edge.y0, edge.y1) == (1.5, 2.5, 1.5, 2.5)
    shown.stage.value = 1
    assert "Choose such a row" in shown.pictures.value
    shown.stage.value = 0
    assert "Choose a later row" in shown.pictures.value


def test_a_run_without_weights_has_a_board_that_says_how_to_get_them(live, tiny, tmp_path):
    box = accuracy_matrix.forgetting_board(load_or_train(tiny, tmp_path / "runs"))
    assert "keep_model=True" in box.children[3].value and len(box.children[1].data[0].z) == 3


def test_the_twin_of_the_board_is_its_matrix(tuned):
    figure = accuracy_matrix.forgetting_board(tuned, "own")
    assert isinstance(figure, Figure) and "own" in figure.axes[0].get_title()


# ---- the gradient microscope


def pulls(shift: float = 0.0, classes=("ant", "bee")) -> pd.DataFrame:
    """Two steps of two classes; in the second the first class is absent."""
    rows = []
    for step, name in itertools.product((0, 1), classes):
        absent = step == 1 and name == "ant"
        rows.append({
            "step": step, "stage": step + 1, "images_seen": 8 * step, "term": "task", "class": name,
            "present": not absent, "attraction": (step == 0 or name == "bee") * 3. + shift,
            "repulsion": 4., "gradient": 5., "push": -1. + step, "push attraction": 1. + step,
            "push repulsion": -2., "image gradient": .5 + step})
    return pd.DataFrame(rows)


@pytest.fixture
def pair(tmp_path) -> dict[str, Run]:
    tables = {"finetune": pulls(), "sit": pulls()[lambda rows: rows.present]}
    return {name: small_runs.make(tmp_path / name, probes={"classes": table})
            for name, table in tables.items()}


def test_arrows_have_the_lengths_and_the_angle_that_three_norms_fix():
    found = microscope.arrows(3.0, 4.0, 5.0)  # at right angles
    np.testing.assert_allclose(np.array(list(found.values())), [[3, 0], [0, 4], [3, 4]], atol=1e-9)
    generator = np.random.default_rng(0)
    a, r = generator.normal(size=(2, 7))
    norms = [float(np.linalg.norm(one)) for one in (a, r, a + r)]
    for name, norm in zip(("attraction", "repulsion", "sum"), norms, strict=True):
        assert np.hypot(*microscope.arrows(*norms)[name]) == pytest.approx(norm)
    alone = {"attraction": (0.0, 0.0), "repulsion": (-2.0, 0.0), "sum": (-2.0, 0.0)}
    for nothing in (0.0, 1e-8):  # the sum of a class without pictures, and with its rounding
        assert microscope.arrows(nothing, 2.0, 2.0) == alone


def test_the_microscope_moves_both_methods_in_step(live, pair):
    tables = {name: run.probe("classes") for name, run in pair.items()}
    norms = {name: microscope._norms(run, tables[name], "task") for name, run in pair.items()}
    shown = microscope._Microscope(tables, norms, [0, 1], 0)
    assert shown.classes == ["ant", "bee"]
    assert "in the batch" in shown.figure.layout.annotations[0].text
    np.testing.assert_allclose(shown.bar["sit", "push attraction"].y, [1, 1])
    np.testing.assert_allclose(shown.arrow["finetune", "sum"].x, [0, 3])
    shown.step.value = 1
    np.testing.assert_allclose(shown.bar["finetune", "push attraction"].y, [2, 2])
    np.testing.assert_allclose(shown.bar["sit", "push attraction"].y, [np.nan, 2])
    titles = [one.text.split("<br>")[1] for one in shown.figure.layout.annotations[:2]]
    assert titles == ["absent, in the loss", "not in the loss"]
    np.testing.assert_allclose(shown.arrow["finetune", "repulsion"].x, [0, -4])
    np.testing.assert_allclose(shown.arrow["sit", "repulsion"].x, [0, 0])
    assert shown.cursor.x0 == 1
    assert list(shown.bar["finetune", "push repulsion"].marker.opacity) == [.45, 1]
    shown._click(None, SimpleNamespace(xs=["bee"]), None)
    assert shown.name.value == "bee" and "in the batch" in shown.figure.layout.annotations[1].text


def test_the_microscope_draws_the_norms_of_towers_where_they_were_measured(tmp_path):
    towers = pd.DataFrame(
        [{"step": step, "term": "task", "tower": tower, "block": block, "norm": value + step}
         for step in (0, 1) for tower, value in (("image", 1.), ("text", 7.))
         for block in ("all", "0")])
    run = small_runs.make(tmp_path / "run", probes={"classes": pulls(), "gradients": towers})
    found = microscope._norms(run, run.probe("classes"), "task")
    found = {name: series.tolist() for name, series in found.items()}
    assert found == {"image tower": [1, 2], "text tower": [7, 8]}


def test_the_twin_of_the_microscope_and_what_it_refuses(pair):
    figure = microscope.gradient_microscope(pair, step=1)
    assert isinstance(figure, Figure) and figure.get_suptitle() == "step 1"
    with pytest.raises(ValueError, match="term='distil' is unknown"):
        microscope.gradient_microscope(pair, term="distil")
    with pytest.raises(ValueError, match="'nobody'"):
        microscope.gradient_microscope({"nobody": pair["sit"]})


# ---- the stream explorer


@pytest.fixture
def explorer(live, toy):
    choices = {"ten each": {}, "four classes": {"classes": 4}}
    made = explorer_module._Explorer("toy", choices, 0, 2, "disjoint", 50, 10)
    made.box = made.shown()
    return made


def test_the_explorer_shows_the_shares_of_the_classes_in_time(explorer, toy):
    explorer.tasks.value = 3
    figure, train = explorer.figure, toy().load().train
    total = np.sum([trace.y for trace in figure.data], axis=0)
    np.testing.assert_allclose(total, 100)
    names = [train.class_names[label] for label, _ in explorer.homes]
    assert [trace.name for trace in figure.data] == names
    assert len(figure.layout.shapes) == 2 and len({trace.fillcolor for trace in figure.data}) == 3
    part = explorer.parts[0]
    share = np.mean(train.labels[part] == explorer.homes[0][0])
    assert figure.data[0].y[0] == pytest.approx(100 * share)


def test_the_explorer_follows_its_controls(explorer):
    before = np.array([trace.y for trace in explorer.figure.data])
    assert explorer.n.disabled and not explorer.tasks.disabled
    explorer.stream.value = "si_blurry"
    blurred = np.array([trace.y for trace in explorer.figure.data])
    assert not explorer.n.disabled and "N = 50, M = 10" in explorer.figure.layout.title.text
    explorer.seed.value = 4
    assert not np.array_equal(blurred, before) and "seed 4" in explorer.figure.layout.title.text
    other = np.array([trace.y for trace in explorer.figure.data])
    assert not np.array_equal(blurred, other)
    explorer.stream.value = "joint"
    assert len(explorer.figure.layout.shapes) == 0 and explorer.tasks.disabled
    explorer.data.value = "four classes"
    assert len(explorer.figure.data) == 4 and len(explorer.name.options) == 4


def test_the_explorer_shows_pictures_of_what_comes(explorer, toy):
    label, _ = explorer.homes[-1]
    name, part = toy().load().train.class_names[label], 55
    explorer._hover(SimpleNamespace(name=name), SimpleNamespace(point_inds=[part]), None)
    count = int((toy().load().train.labels[explorer.parts[part]] == label).sum())
    assert (explorer.name.value, explorer.moment.value) == (name, part)
    assert explorer.pictures.value.count("<img") == count
    assert f"<b>{name}</b>: {count} of the" in explorer.pictures.value


def test_a_stream_of_domains_is_offered_where_there_are_domains(explorer):
    assert "domains" not in explorer.stream.options and "joint" in explorer.stream.options


def test_the_twin_of_the_explorer_and_what_it_refuses(toy):
    figure = explorer_module.stream_explorer("toy", seed=3, tasks=2)
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_title() == "si_blurry, N = 50, M = 10, seed 3"
    with pytest.raises(ValueError, match="'nothing'"):
        explorer_module.stream_explorer("nothing")


# ---- the playground


def png(colour: tuple, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", size, colour).save(file, "PNG")
    return file.getvalue()


def test_a_file_becomes_a_square_on_white():
    clear = choosers.read_picture(png((255, 0, 0, 0), (40, 20)), 16)
    assert clear.shape == (3, 16, 16) and (clear == 255).all()
    red = choosers.read_picture(memoryview(png((255, 0, 0, 255), (40, 20))), 16)
    assert red[:, 8, 8].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="no picture"):
        choosers.read_picture(b"hello", 16)


def uploaded(name: str, content: bytes) -> dict:
    """A file as the browser sends it."""
    return {"name": name, "content": memoryview(content), "type": "image/png", "size": 1,
            "last_modified": datetime.now(UTC)}


@pytest.fixture
def played(live, clip, toy):
    images = toy().load().test.images
    other = type(clip)(clip.model, clip.tokenizer, clip.name)
    models = {"before tuning": clip, "after tuning": other}
    return zero_shot._Playground(models, images[:3], ["a", "b", "c"], ["red", "blue"], images)


def test_the_playground_answers_for_the_picture_and_the_texts_chosen(played, clip, toy):
    played.pictures.list.value = 2
    expected = zero_shot.probabilities(clip, toy().load().test.images[2], ["red", "blue"])
    for trace in played.figure.data:
        np.testing.assert_allclose(trace.x, list(expected.values()), rtol=1e-5)
    played.written.value = "sun\n\n moon \nsun\nstar"
    assert [list(trace.y) for trace in played.figure.data] == [["sun", "moon", "star"]] * 2
    assert sum(played.figure.data[0].x) == pytest.approx(1)
    played.written.value = " "
    assert "at least one text" in played.said.value


def test_an_own_picture_joins_the_list_and_a_bad_file_is_told(played):
    before = list(played.figure.data[0].x)
    played.pictures.upload.value = (uploaded("mine.png", png((0, 0, 255, 255), (9, 30))),)
    assert played.pictures.list.label == "mine.png" and list(played.figure.data[0].x) != before
    played.pictures.upload.value = (uploaded("no.png", b"no"),)
    assert "no picture" in played.said.value and played.pictures.list.label == "mine.png"
    played.pictures.list.value = 0
    np.testing.assert_allclose(played.figure.data[0].x, before)


def test_the_nearest_pictures_are_those_with_the_largest_cosine(played, clip):
    played.wanted.value = "a green leaf"
    text = clip.encode_text(clip.tokenize(["a green leaf"]))[0].detach()
    cosines = played.features["before tuning"] @ text
    best = cosines.sort(descending=True).values[:zero_shot.NEAREST]
    first = re.findall(r"<figcaption>cos (-?[\d.]+)<", played.near.value)
    assert first == [f"{value:.2f}" for value in best.tolist()] * 2


def test_a_long_text_leaves_room_for_the_bars_and_is_no_markup(played):
    long = "a very long text that goes on and on, with a <b>mark</b> and an ampersand & more"
    played.written.value = f"short\n{long}"
    short, wrapped = played.figure.data[0].y
    assert short == "short" and max(map(len, wrapped.split("<br>"))) <= 32
    assert wrapped.replace("<br>", " ") == escape(long)


def test_the_twin_of_the_playground(clip, toy):
    images = toy().load().test.images[:2]
    assert isinstance(zero_shot.playground(clip, images, ["a", "b"], ["x", "y"]), Figure)


# ---- the run comparer


@pytest.fixture
def some(tmp_path) -> list[Run]:
    """Two seeds of one method and one of another."""
    made = []
    for method, seed, last in (("sit", 0, .4), ("sit", 1, .6), ("finetune", 0, .1)):
        run = small_runs.make(tmp_path / f"{method}{seed}", small_runs.evaluations(last),
                              images_per_second=1.0, parameters=1)
        defaults = {field: info.get_default(call_default_factory=True)
                    for field, info in RunConfig.model_fields.items()}
        settings = defaults | {"method": method, "seed": seed, "stream": "disjoint"}
        made.append(Run(RunConfig.model_construct(**settings), run.folder))
    return made


def comparer(runs: list[Run]) -> run_comparison._Comparer:
    table = leaderboard.gather(runs)
    return run_comparison._Comparer(table, run_comparison.grouped(table, runs), "seen classes", 4)


def test_the_comparer_draws_what_is_chosen_with_its_interval(live, some):
    shown = comparer(some)
    labels = list(shown.groups)
    assert len(labels) == 2 and len(shown.figure.data) == 4
    shown.list.value = [next(label for label in labels if "SIT" in label)]
    edge, line = shown.figure.data
    assert line.y[-1] == pytest.approx(50) and line.line.color == plots.METHODS["sit"][1]
    half = 12.706 * 14.142 / 2**.5  # t of one degree of freedom, times s/√n: wider than 0 … 100
    assert line.customdata[-1][0] == pytest.approx(max(50 - half, 0))
    assert "50.0 ± 127.1" in shown.table.value
    shown.list.value = []
    assert len(shown.figure.data) == 0 and "at least one row" in shown.table.value
    shown.list.value = labels
    shown.set.value = "concepts"
    assert shown.figure.layout.yaxis.title.text == "accuracy on concepts, %"


def test_the_list_of_the_comparer_is_narrowed_by_words(live, some):
    shown = comparer(some)
    shown.filter.value = "Symmetric SIT"
    assert len(shown.list.options) == 1 and len(shown.figure.data) == 2
    shown.filter.value = "nothing like it"
    assert len(shown.list.options) == 0 and len(shown.figure.data) == 0


def test_every_column_has_the_definition_of_its_metric(live, some):
    assert all("better" in run_comparison.definition(name) for name in run_comparison.DEFINED)
    shown = run_comparison.run_comparer(some).children[3].value
    for name in run_comparison.DEFINED:
        assert shown.count(f"<b>{name}</b>") == 1
        assert re.search(rf"<abbr [^>]*>{name}</abbr>", shown)
    title = re.search(r'title="([^"]+)"><abbr [^>]*>forgetting<', shown)[1]
    assert "divided by T − 1" in title


def test_the_twin_of_the_comparer_and_what_it_refuses(some):
    assert isinstance(run_comparison.run_comparer(some), Figure)
    with pytest.raises(ValueError):
        run_comparison.run_comparer([])


# ---- the microscope for a picture of one's own


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_forces_of_a_batch_are_its_gradient(symmetric):
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, 8, generator=generator, dtype=torch.float64), dim=1)
                   for n in (4, 6))
    target, scale = torch.tensor([2, 0, 2, 5]), torch.tensor(7.0, dtype=torch.float64)
    found = picture_gradients.forces(image, text, scale, target, symmetric)
    assert found.present.tolist() == [True, False, True, False, False, True]
    offered = torch.tensor([0, 2, 5]) if symmetric else torch.arange(6)
    leaf = text.clone().requires_grad_()
    rows = torch.searchsorted(offered, target)
    match(image, leaf[offered], scale, rows).backward()
    assert found.gradient.tolist() == pytest.approx(leaf.grad.norm(dim=1).tolist(), abs=1e-12)
    absent = found[~found.present]
    assert (absent.attraction == 0).all() and ((absent.repulsion == 0) == symmetric).all()
    assert (found.attraction[found.present] > 0).all()


@pytest.fixture
def under(live, clip, toy):
    """The picture microscope, with the pictures of the toy world."""
    test = toy().load().test
    names = [test.class_names[label] for label in test.labels[:4].tolist()]
    return picture_gradients._Microscope(clip.eval(), test.images[:4], names, names, ["a fish"])


def test_a_picture_is_put_under_the_microscope_with_its_text_and_its_batch(under):
    assert len(under.others.value) == 2 and "a fish" in under.name.options
    bars = {(i % 2, i // 2): trace for i, trace in enumerate(under.figure.data[6:])}
    assert list(bars[0, 0].x) == list(bars[1, 1].x) == list(under.name.options)
    fish = list(under.name.options).index("a fish")
    assert bars[0, 0].y[fish] == 0 > bars[1, 0].y[fish]  # pushed
    assert bars[1, 1].y[fish] == 0  # left alone
    left = under.pictures.list.options[3][0]
    under.others.value = (1, 2, 3)
    place = list(under.name.options).index(left)
    assert under.figure.data[6].y[place] > 0
    under.others.value = (1,)
    assert under.figure.data[6].y[list(under.name.options).index(left)] == 0
    under.name.value = "a fish"
    arrow = under.figure.data[1]
    length = float(np.hypot(arrow.x[1], arrow.y[1]))
    rows = under.table[under.table["class"] == "a fish"].set_index("method")
    repulsion = rows.repulsion["finetune"]
    assert [length, arrow.customdata[1]] == pytest.approx([repulsion] * 2)


def test_an_own_picture_comes_with_its_name_as_the_first_text(under):
    under.pictures.upload.value = (uploaded("red_tile.png", png((250, 10, 10, 255), (120, 40))),)
    assert under.right.value == "red tile" and under.pictures.list.label == "red_tile.png"
    assert "red tile" in under.name.options and under.table["class"].iloc[0] == "red tile"
    before = under.table.copy()
    under.right.value = "a green tile"
    assert "a green tile" in under.name.options and not under.table.gradient.equals(before.gradient)
    assert under.name.value == "a green tile"  # the arrows go with the picture's own text
    under.name.value = "a fish"
    under.right.value = "a red tile"
    assert under.name.value == "a fish"  # and stay where they were put
    # the symmetric loss does not move it: no arrow, no head
    assert under.figure.data[3].x[0] is None
    under.pictures.upload.value = (uploaded("no.png", b"no"),)
    assert "no picture" in under.fault.value


def test_a_loss_that_hardly_pulls_is_named(clip, toy, monkeypatch):
    """Else its panel is empty beside that of a loss that pulls."""
    def found(clip, images, own, texts):
        texts = list(dict.fromkeys([*own, *texts]))
        norms = ["attraction", "repulsion", "gradient"]
        pulls = [pd.DataFrame({"class": texts, "method": method, **dict.fromkeys(norms, pull)})
                 for method, pull in (("finetune", .8), ("sit", .002))]
        return pd.concat(pulls, ignore_index=True)

    monkeypatch.setattr(picture_gradients._Microscope, "found", staticmethod(found))
    images, names = toy().load().test.images[:2], ["a", "b"]
    said = picture_gradients._Microscope(clip, images, names, names, []).said.value
    assert "<b>symmetric</b>: the strongest pull of this step is 0.002" in said
    assert "<b>asymmetric</b>" not in said


def test_the_twin_of_the_picture_microscope_and_what_it_refuses(clip, toy):
    test = toy().load().test
    names = [test.class_names[label] for label in test.labels[:4].tolist()]
    figure = picture_gradients.picture_microscope(clip, test.images[:4], names, names, ["a fish"])
    assert len(figure.axes) == 2
    assert "a fish" in [text.get_text() for text in figure.axes[0].get_yticklabels()]
    for few in (1, 2):  # pictures: there need not be others for the batch
        some = names[:few]
        shown = picture_gradients._Microscope(clip, test.images[:few], some, some, [])
        assert shown.others.value == (1,)[:few - 1]
    with pytest.raises(ValueError, match="names=3"):
        picture_gradients.picture_microscope(clip, test.images[:4], names[:3], names)


# ---- the embedded world


def _time(words: str, change) -> float:
    import time

    start = time.perf_counter()
    change()
    seconds = time.perf_counter() - start
    print(f"{words:<44}{1000 * seconds:6.0f} ms")
    return seconds


def benchmark() -> None:
    """Milliseconds that each widget takes to answer on the embedded world: the aim is below 200."""
    from clstudy import load_clip

    world, clip = BENCHMARKS["emoji"]().load(), load_clip()
    explorer = explorer_module._Explorer("emoji", {"as it is": {}}, 0, 5, "si_blurry", 50, 10)
    explorer.shown()
    changes = (("N", explorer.n, 20), ("seed", explorer.seed, 3),
               ("stream", explorer.stream, "disjoint"), ("moment", explorer.moment, 30))
    for words, control, value in changes:
        _time(f"stream explorer, {words}", lambda c=control, v=value: setattr(c, "value", v))
    names = list(world.test.class_names)
    play = zero_shot._Playground({"before": clip, "after": load_clip()}, world.test.images[:9],
                                 names[:9], names[:12], world.test.images)
    _time("playground, picture", lambda: setattr(play.pictures.list, "value", 3))
    _time("playground, texts", lambda: setattr(play.written, "value", "\n".join(names[:20])))
    _time("playground, nearest", lambda: setattr(play.wanted, "value", "a drawing of a dog."))
    rows = [pulls(classes=names).assign(step=lambda t, s=s: 2 * s + t.step, stage=1)
            for s in range(50)]
    tables = {name: pd.concat(rows) for name in ("finetune", "sit")}
    scope = microscope._Microscope(tables, {name: {} for name in tables}, list(range(100)), 0)
    _time("gradient microscope, step", lambda: setattr(scope.step, "value", 40))
    _time("gradient microscope, class", lambda: setattr(scope.name, "value", names[5]))
    test = world.test
    homes, generator = np.arange(len(names)) % 5 + 1, np.random.default_rng(0)
    similarity = {stage: generator.normal(size=(len(test), len(names))) for stage in (0, 5)}
    similarity[0] += 6 * np.eye(len(names))[test.labels]
    found = accuracy_matrix.Answers(test, homes, np.ones((6, len(names)), bool),
                                    np.arange(len(test)), similarity)
    R = generator.random((6, 5))
    shown = accuracy_matrix._Board(SimpleNamespace(matrix=lambda name: R), "all", found)
    _time("forgetting board, task", lambda: setattr(shown.task, "value", 3))
    _time("forgetting board, candidates", lambda: setattr(shown.candidates, "value", "own"))


if __name__ == "__main__":
    import os

    os.environ.pop("CLSTUDY_HEADLESS", None)
    benchmark()
