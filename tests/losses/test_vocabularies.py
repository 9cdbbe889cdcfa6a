"""What VR-LwF distils on: each vocabulary, each form of the loss against loops, the teacher, and
its limits."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import train

from clstudy import RunConfig
from clstudy.data.streams import Stage
from clstudy.data.types import Captioned
from clstudy.losses import vocabularies
from clstudy.methods import METHODS

START, END = 49406, 49407


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(clip) -> None:
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws(5)))


@pytest.fixture
def referenced(batch):
    """The batch, with three captioned pairs to refer to."""
    pairs = Captioned(torch.zeros(3, 3, 64, 64, dtype=torch.uint8),
                      ("a red cat", "two dogs", "the sea"), np.arange(3))
    return replace(batch, reference=lambda: pairs)


# ---- the texts


def test_random_texts_are_uniform_over_all_tokens_but_the_special_ones(clip):
    texts = clip.random_text(4000, 8, draws())
    assert texts.shape == (4000, 10)
    assert (texts[:, 0] == START).all() and (texts[:, -1] == END).all()
    ids = texts[:, 1:-1].flatten()
    assert ids.min() < 50 and START - 50 < ids.max() < START  # 32,000 draws from 49,406
    assert abs(ids.double().mean() - START / 2) < 4 * START / 12**0.5 / 32000**0.5
    assert torch.equal(texts, clip.random_text(
        4000, 8, draws())) and not torch.equal(texts, clip.random_text(4000, 8))


def test_a_random_text_has_a_feature_like_any_other_text(clip):
    text = clip.random_text(1, 3, draws())
    said = clip.tokenizer.decode(text[0, 1:-1].tolist())
    again = clip.tokenize([said])
    if torch.equal(again, text):  # else the tokenizer has cut the same letters another way
        assert torch.allclose(clip.encode_text(again), clip.encode_text(text))
    padded = torch.nn.functional.pad(text, (0, 20))
    assert torch.allclose(clip.encode_text(padded), clip.encode_text(text), atol=1e-6)


@pytest.mark.parametrize("length", [0, 31])
def test_a_random_text_must_fit(clip, length):
    with pytest.raises(ValueError, match=f"length={length}: must be from 1 to 30 tokens"):
        clip.random_text(2, length)


def test_random_texts_need_clips_tokenizer(clip):
    clip.tokenizer = lambda texts: texts
    with pytest.raises(ValueError, match="need CLIP's own tokenizer"):
        clip.random_text(2, 3)


def test_words_are_tokens_that_end_a_word(clip, batch):
    texts = vocabularies.draw("words", clip, batch, 50, 4, draws())
    assert texts.shape == (50, 6)
    pieces = [clip.tokenizer.decoder[i] for i in texts[:, 1:-1].flatten().tolist()]
    assert all(
        piece.endswith("</w>") and piece[:-4].isalpha() and len(piece) >= 8 for piece in pieces)
    assert len(set(pieces)) > 150


def test_class_prompts_are_those_of_the_classes_seen(clip, batch):
    assert torch.equal(vocabularies.draw("classes", clip, batch, 2, 3, draws()), batch.text)


def test_captions_and_lines_are_drawn_without_repetition(clip, referenced, tmp_path):
    said = referenced.reference().captions
    texts = vocabularies.draw("captions", clip, referenced, 2, 99, draws())
    wanted = [row for row in clip.tokenizer(list(said))]
    rows = [[torch.equal(text, row[: len(text)]) for row in wanted].index(True) for text in texts]
    assert len(texts) == 2 and len(set(rows)) == 2
    assert len(vocabularies.draw("captions", clip, referenced, 50, 99, draws())) == 3
    file = tmp_path / "said.txt"
    file.write_text("one line\n\n  another\n")
    assert torch.equal(
        vocabularies.draw(f"file:{file}", clip, referenced, 9, 1, draws())[:, :2].sort(0).values,
        clip.tokenize(["one line", "another"])[:, :2].sort(0).values)


@pytest.mark.parametrize(("name", "message"), [
    ("randon", "vocabulary='randon' is unknown. Did you mean random. Choices: captions, classes, file:PATH, random"),
    ("file:nowhere.txt", "vocabulary='file:nowhere.txt': there is no such file")])
def test_another_vocabulary_is_refused_before_anything_is_loaded(name, message):
    with pytest.raises(ValueError) as error:
        RunConfig(method="vr_lwf", method_args={"vocabulary": name})
    assert message.replace("random.", "random?") in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(ValueError, match="is empty"):
        vocabularies.check(f"file:{tmp_path / 'empty'}")


# ---- the three forms


def logits(clip, batch, tokens, text_by=None):
    text = (text_by or clip).encode_text(tokens)
    return (clip.scale() * clip.encode_image(batch.image) @ text.T).detach().double()


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(p ‖ q) of two rows of logits, by hand."""
    p, q = p.exp() / p.exp().sum(), q.exp() / q.exp().sum()
    return float(sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)))


@pytest.fixture
def taught(clip, referenced):
    """A function: a method whose teacher is the model before it was shaken, and the first stage's
    terms."""
    def make(**options):
        method = METHODS["vr_lwf"](**options)
        method.before_stage(clip, Stage(1, (5, 2), np.arange(8)))
        shaken(clip)
        first = replace(referenced, stage=replace(referenced.stage, number=1))
        return method, first, method.loss(clip, first)
    return make


def test_the_official_form_is_kl_over_the_texts_with_each_models_own_features(clip, taught):
    method, batch, terms = taught(weight=0.7, size=5)
    tokens, _ = method.kept
    old, new = logits(method.teacher, batch, tokens), logits(clip, batch, tokens)
    expected = sum(kl(old[i], new[i]) for i in range(8)) / 8
    assert set(terms) == {"task", "vocabulary"} and tokens.shape == (5, 10)
    assert terms["vocabulary"].item() == pytest.approx(0.7 * expected, rel=1e-4) and expected > 1e-4


def test_zscls_form_has_the_teachers_texts_both_axes_and_a_temperature(clip, taught):
    method, batch, terms = taught(weight=1.0, form="zscl", size=6)
    tokens, _ = method.kept
    old, new = (logits(model, batch, tokens, method.teacher) / 2
                for model in (method.teacher, clip))
    rows = sum(kl(old[i], new[i]) for i in range(8)) / 8
    columns = sum(kl(old[:, v], new[:, v]) for v in range(6)) / 6
    assert tokens.shape == (6, 12)
    assert terms["vocabulary"].item() == pytest.approx(4 * (rows + columns), rel=1e-4)


def test_wildclips_form_is_a_cross_entropy_over_the_images_in_reverse(clip, taught):
    method, batch, terms = taught(weight=1.0, form="wildclip")
    tokens, _ = method.kept
    old, new = (logits(model, batch, tokens, method.teacher) for model in (method.teacher, clip))
    expected = -sum(float(new[:, v].softmax(0) @ old[:, v].log_softmax(0)) for v in range(3)) / 3
    assert terms["vocabulary"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("form", "fresh"), [("official", True), ("zscl", False), ("wildclip", False)])
def test_only_the_official_form_draws_anew_at_every_step(clip, taught, form, fresh):
    method, batch, _ = taught(form=form, size=3)
    before = method.kept[0]
    method.loss(clip, batch)
    assert torch.equal(before, method.kept[0]) == (not fresh)


@pytest.mark.parametrize(("form", "moves"), [("official", True), ("zscl", False), ("wildclip", False)])
def test_only_the_official_form_teaches_the_text_tower(clip, taught, form, moves):
    _, _, terms = taught(form=form, size=4)
    terms["vocabulary"].backward()
    grads = [p.grad for name, p in clip.tower("text") if "token_embedding" not in name]
    assert any(g is not None and g.abs().max() > 0 for g in grads) == moves
    assert clip.model.visual.proj.grad.abs().max() > 0


@pytest.mark.parametrize("form", ["official", "zscl"])
def test_a_teacher_that_is_the_student_has_nothing_to_say(clip, referenced, form):
    method = METHODS["vr_lwf"](form=form, size=7)
    method.before_stage(clip, referenced.stage)
    terms = method.loss(clip.eval(), referenced)
    assert abs(terms["vocabulary"].item()) < 1e-6 and abs(terms["classes"].item()) < 1e-6


def test_class_names_as_vocabulary_are_lwf(tiny):
    ends = []
    for method, args in (("vr_lwf", {"vocabulary": "classes", "classes": False, "weight": 2.0}),
                         ("lwf", {"weight": 2.0})):
        train(
            tiny.replace(method=method, method_args=args), keep=lambda clip: ends.append(
                torch.cat([p.flatten() for p in clip.parameters() if p.requires_grad])))
    assert torch.allclose(ends[0], ends[1], atol=2e-5)


def test_from_the_second_stage_on_the_classes_seen_are_distilled_too(tiny):
    _, steps = train(tiny.replace(method="vr_lwf"))
    terms = {stage: {row["term"] for row in steps if row["stage"] == stage} for stage in (1, 2)}
    assert terms == {1: {"task", "vocabulary"}, 2: {"task", "vocabulary", "classes"}}
    _, steps = train(tiny.replace(method="vr_lwf", method_args={"classes": False}))
    assert "classes" not in {row["term"] for row in steps}


def test_captions_need_a_benchmark_that_has_reference_pairs(tiny, toy, monkeypatch):
    from conftest import benchmark_of

    from clstudy.data.benchmarks import BENCHMARKS

    monkeypatch.setitem(BENCHMARKS, "bare",
                        benchmark_of(lambda: replace(toy().load(), name="bare", reference=None)))
    with pytest.raises(ValueError,
                       match="method='vr_lwf' needs reference pairs; benchmark='bare' has none"):
        train(
            tiny.replace(benchmark="bare", method="vr_lwf", method_args={"vocabulary": "captions"}))
    train(tiny.replace(benchmark="bare", method="vr_lwf"))


# ---- which texts compete in the task term


@pytest.mark.parametrize("name", ["finetune", "lwf", "vr_lwf"])
def test_the_task_term_can_be_of_the_phase_alone(clip, batch, name):
    only = replace(batch, labels=(5, 2) * 4)
    method, narrow = METHODS[name](candidates="phase"), METHODS["finetune"]()
    for one in (method, narrow):
        one.before_stage(clip, batch.stage)
    expected = narrow.loss(clip, only.among((5, 2)))["task"]
    assert method.loss(clip, only)["task"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert METHODS["finetune"]().loss(clip, only)["task"] > expected  # more texts compete


def test_tuning_on_the_classes_of_the_batch_is_sit(clip, batch):
    assert torch.equal(METHODS["finetune"](candidates="batch").loss(clip, batch)["task"],
                       METHODS["sit"]().loss(clip, batch)["task"])
