"""CoOp: where the context stands, what it starts as, what moves, and the texts it is not for."""
import copy

import open_clip
import pytest
import torch
from small_runs import train
from torch.nn import functional as F

from clstudy import load_clip
from clstudy.losses.functional import match_batch
from clstudy.models.clip import Clip
from clstudy.models.tuners.coop import CoOp
from clstudy.runs.run import load_tuned
from clstudy.runs.store import load_or_train
from clstudy.training.setup import prepare

NAMES = ("red brick", "green leaf", "sun")
CAPTION = "two suns above a red brick wall"


def tuned(clip, names=NAMES, **options) -> Clip:
    clip.class_names = tuple(names)
    CoOp(**options).apply(clip, "text")
    return clip.eval()


def shaken(clip) -> Clip:
    context = clip.model.token_embedding.context
    with torch.no_grad():
        context.add_(torch.randn(context.shape, generator=torch.Generator().manual_seed(0)))
    return clip


def texts(clip, names=NAMES, template="a picture of a {}.") -> torch.Tensor:
    with torch.no_grad():
        return clip.encode_text(clip.class_text(list(names), template))


@torch.inference_mode()
def by_hand(bare, tokenizer, context, name: str) -> torch.Tensor:
    """As the released code: placeholders are tokenised with the name, and then replaced."""
    count = len(context)
    tokens = tokenizer([" ".join(["X"] * count) + " " + name + "."])
    words = bare.token_embedding(tokens)
    x = torch.cat([words[:, :1], context[None], words[:, 1 + count:]], dim=1)
    x = bare.transformer(x + bare.positional_embedding, attn_mask=bare.attn_mask)
    x = bare.ln_final(x)[0, int(tokens.argmax())] @ bare.text_projection
    return F.normalize(x, dim=-1)


@pytest.mark.parametrize("shared", [True, False])
def test_class_texts_are_those_of_the_released_code(clip, shared):
    bare = copy.deepcopy(clip.model)
    found = texts(shaken(tuned(clip, length=5, shared=shared)))
    context = clip.model.token_embedding.context.detach()
    assert context.shape == ((5, 32) if shared else (3, 5, 32))
    for row, name in enumerate(NAMES):
        own = context if shared else context[row]
        assert torch.allclose(found[row], by_hand(bare, clip.tokenizer, own, name), atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_started_from_the_words_of_the_template_it_changes_no_class_text(clip, shared):
    before = texts(clip)
    tuned(clip, init="a picture of a", shared=shared)
    assert torch.equal(texts(clip), before)
    assert torch.equal(texts(clip, template="another {}"), before)  # no template counts any more


def test_a_run_starts_as_the_frozen_model_does(tiny):
    start = {}
    for name, changes in (("frozen", {"tuner": "none", "method": "frozen"}),
                          ("coop", {"tuner": "coop", "tower": "text", "lr": 1e-2,
                                    "tuner_args": {"init": "a picture of a"}})):
        evals, _ = train(tiny.replace(**changes))
        start[name] = {(row["set"], row["candidates"]): row["value"] for row in evals
                       if row["stage"] == 0 and row["kind"] not in ("held-out set", "retrieval")}
    assert start["frozen"] == start["coop"] and len(start["coop"]) > 3


def test_a_random_start_is_small_and_of_the_seed(toy_model):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(tuned(load_clip(str(toy_model))).model.token_embedding.context.detach())
    assert drawn[0].shape == (16, 32) and 0.018 < drawn[0].std() < 0.022
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("options", "count"), [
    ({}, 16 * 512), ({"length": 4}, 4 * 512), ({"shared": False}, 3 * 16 * 512)], ids=str)
def test_vit_b_16_has_the_papers_number_of_parameters(options, count):
    with torch.device("meta"):
        clip = Clip(open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16")),
                    open_clip.get_tokenizer("ViT-B-16"))
    tuned(clip, **options)
    free = {name: p.numel() for name, p in clip.named_parameters() if p.requires_grad}
    assert free == {"model.token_embedding.context": count}


@pytest.mark.parametrize("shared", [True, False])
def test_only_the_context_moves_and_of_those_of_classes_only_the_ones_that_compete(clip, batch,
                                                                                  shared):
    tuned(clip, shared=shared, length=3)
    few = clip.class_text(list(NAMES[:2]), "").to(clip.device)
    two = batch.among((0, 5))
    two.prompts[[0, 5], :] = 0
    two.prompts[[0, 5], :few.shape[1]] = few
    keep = [row for row, label in enumerate(batch.labels) if label in (0, 5)]
    image = clip.encode_image(batch.image[keep]).detach()
    text = clip.encode_text(two.text)
    (image @ text.T).square().sum().backward()
    context = clip.model.token_embedding.context
    assert [name for name, p in clip.named_parameters() if p.grad is not None] == [
        "model.token_embedding.context"]
    felt = context.grad.abs().amax((-1, -2) if not shared else None)
    assert (felt[:2] > 0).all() and felt[2] == 0 if not shared else felt > 0


def test_texts_that_are_no_class_of_the_stream_have_the_context_too(clip):
    """The shared one; or, where each class has its own, the one that all started from."""
    tokens = clip.tokenize([CAPTION, "sun."])
    plain = copy.deepcopy(clip)
    with torch.no_grad():
        for shared in (True, False):
            model = tuned(copy.deepcopy(plain), shared=shared, init="a picture of a")
            start = model.encode_text(tokens)
            assert torch.allclose(start[1:], texts(plain, ("sun",)), atol=1e-5)
            moved = shaken(model).encode_text(tokens)
            assert torch.equal(moved[0], start[0]) != shared
            assert not torch.equal(moved[1], start[1])  # "sun." is the prompt of a class


@torch.inference_mode()
def test_cutting_is_exact_and_a_text_that_is_too_long_keeps_its_end(clip):
    shaken(tuned(clip, length=10))
    tokens = clip.tokenizer([CAPTION, "sun", " ".join(["sun"] * 40)])
    found = clip.encode_text(tokens)
    for row, columns in ((0, 12), (1, 4)):
        assert torch.allclose(clip.encode_text(tokens[row:row + 1, :columns])[0], found[row],
                              atol=1e-5)
    cut = tokens[2:].clone()  # 22 tokens are left
    cut[0, 21], cut[0, 22:] = cut.max(), 0
    assert torch.allclose(clip.encode_text(cut)[0], found[2], atol=1e-5)


def test_it_works_in_bf16_and_in_a_copy(clip, batch):
    exact = shaken(tuned(clip, length=4)).encode(batch).text.detach()
    clip.precision = "bf16"
    near = clip.encode(batch).text
    assert near.dtype == torch.float32 and (near - exact).abs().max() < 0.05
    other = copy.deepcopy(clip)
    shaken(other)
    assert torch.equal(clip.encode(batch).text, near)
    match_batch(clip, batch).backward()
    assert clip.model.token_embedding.context.grad.isfinite().all()


def test_a_kept_run_comes_back(tiny, tmp_path):
    config = tiny.replace(tuner="coop", tower="text", method="finetune", lr=0.05,
                          tuner_args={"length": 4, "shared": False})
    run, kept = load_or_train(config, tmp_path, keep_model=True), []
    train(config, keep=kept.append)
    names = prepare(config)[1].train.class_names
    assert torch.equal(texts(load_tuned(run), names), texts(kept[0].eval(), names))
    assert not torch.equal(texts(kept[0], names), texts(prepare(config)[0].eval(), names))


@pytest.mark.parametrize(("tower", "options", "said"), [
    ("text", {"length": 0}, "length=0.*at least 1"),
    ("text", {"length": 25}, "length=25: must be from 1 to 24"),
    ("text", {"init": "a picture of a", "length": 3}, "init='a picture of a' has 4 .*length=4"),
    ("text", {"init": ""}, "init='' has 0 tokens"),
    ("both", {}, "tower='both'.*CoOp.*context stands in texts.*text"),
    ("text", {"shared": False}, "shared=False.*names of the classes"),
], ids=str)
def test_impossible_options_are_refused(clip, tower, options, said):
    with pytest.raises(ValueError, match=said):
        CoOp(**options).apply(clip, tower)
    assert clip.context == 0 and all(p.requires_grad for p in clip.parameters())


def test_it_needs_a_causal_text_tower(toy_cfg):
    cfg = {**toy_cfg, "text_cfg": {**toy_cfg["text_cfg"], "no_causal_mask": True}}
    clip = Clip(open_clip.model.CLIP(**cfg), open_clip.SimpleTokenizer(context_length=32), "other")
    with pytest.raises(ValueError, match="CoOp.*causal.*'other'"):
        CoOp().apply(clip, "text")
