"""Pretraining on noise: a step moves the model, a stopped run goes on to the same weights, the export loads."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clstudy import load_clip, pretrain
from clstudy.benchmarks import emoji

STEPS = 4


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    folder, rng = tmp_path / "corpus", np.random.default_rng(0)
    folder.mkdir()
    np.save(folder / "glyphs.npy", rng.integers(0, 255, (9, 64, 64), np.uint8))
    np.save(folder / "pictures.npy", rng.integers(0, 255, (7, 64, 64, 4), np.uint8))
    words = {"glyphs": [("set", "name", f"thing {i}") for i in range(9)],
             "pictures": [("set", "name", f"coloured thing {i}") for i in range(7)]}
    (folder / "captions.json").write_text(json.dumps(words))
    for name, count in (("emoji", len(emoji.table())), ("pictures", 7)):
        teacher = rng.normal(size=(count, 256))
        teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
        np.save(folder / f"teacher_{name}.npy", teacher.astype(np.float16))
    made = pretrain.Corpus
    monkeypatch.setattr(pretrain, "Corpus", lambda recipe, clip: made(recipe, clip, folder))
    monkeypatch.setattr(pretrain, "zero_shot", lambda clip: {})  # looks at 5,000 drawings


@pytest.fixture
def recipe() -> pretrain.Recipe:
    return pretrain.Recipe(images=STEPS * 12, emoji=6, pictures=2, glyphs=4, others=5, warmup=1)


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
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    untouched = pretrain.blank(recipe).state_dict()
    moved = load_clip(str(tmp_path / "whole")).state_dict()  # the export loads, and training did something
    assert any(not torch.equal(untouched[name].half().float(), moved[name]) for name in moved if name in untouched)
    assert [json.loads(line)["step"] for line in open(tmp_path / "state" / "curve.jsonl")] == [2, 4]


def test_another_recipe_does_not_go_on_from_this_state(corpus, recipe, tmp_path):
    pretrain.pretrain(recipe, tmp_path / "out", tmp_path / "state")
    other = pretrain.Recipe(**{**vars(recipe), "lr": 0.5})
    with pytest.raises(ValueError, match="another recipe"):
        pretrain.pretrain(other, tmp_path / "out", tmp_path / "state")


def test_the_terms_are_those_of_the_docstring(corpus, recipe):
    clip = pretrain.blank(recipe)
    terms = pretrain.loss(clip, torch.nn.Linear(256, 256), pretrain.Corpus(recipe, clip), 0)
    assert list(terms) == ["names", "kinds", "pairs", "teacher"]
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_a_missing_corpus_is_said_before_any_work(tmp_path, recipe):
    with pytest.raises(FileNotFoundError, match="build_corpus"):
        pretrain.Corpus(recipe, pretrain.blank(recipe), tmp_path)
