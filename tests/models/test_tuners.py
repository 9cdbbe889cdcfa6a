"""Tuners: how many parameters move and which, what an untrained tuner does, the formula of each,
and the ways on: copies, files, and weights with LoRA merged into them."""
import copy
import math
import shutil

import open_clip
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from clstudy import load_clip
from clstudy.losses.functional import match
from clstudy.models.clip import Clip
from clstudy.models.merging import export, merge
from clstudy.models.tuners import TUNERS
from clstudy.models.tuners.adapter import Adapter
from clstudy.models.tuners.base import TOWERS
from clstudy.models.tuners.lora import Lora
from clstudy.models.tuners.prompt_tuning import Prompted, Prompts
from clstudy.runs.run import load_tuned
from clstudy.runs.store import load_or_train

KINDS = {
    "lora": ("lora", {}), "lora official": ("lora", {"init": "official"}),
    "adapter": ("adapter", {}), "prompts": ("prompts", {}), "rescale": ("rescale", {})
}
SILENT = ("lora", "adapter", "rescale"
          )  # before training these change nothing; others perturb the model, and say so
ADDED = ("lora_", "ls_1.0.", ".prompts.", ".project.", ".sigma", ".down", ".up"
         )  # what tuners add has such names
EVERY = [(name, tower) for name in TUNERS for tower in TUNERS[name].towers]
EACH = pytest.mark.parametrize("kind", KINDS)
TOWER = pytest.mark.parametrize("tower", TOWERS)


def tune(clip, kind: str, tower: str, **options) -> Clip:
    name, given = KINDS[kind]
    TUNERS[name](**{**given, **options}).apply(clip, tower)
    return clip


def free(clip) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in clip.named_parameters() if p.requires_grad}


def shake(clip, size: float = 0.3) -> Clip:
    """Random numbers on top of all that is free, as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in free(clip).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return clip


def far(one, other) -> tuple[bool, bool]:
    """Whether image and text features differ by what is seen with the naked eye."""
    return tuple(
        bool((getattr(one, side) - getattr(other, side)).abs().max() > 1e-3)
        for side in ("image", "text"))


def same(one, other) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.text, other.text)


def snapshot(clip) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in clip.named_parameters()}


def step(clip, batch, lr=1.0) -> set[str]:
    """One step of plain gradient descent; the names of what moved."""
    before = snapshot(clip)
    encoded = clip.encode(batch)
    match(encoded.image, encoded.text, encoded.scale, batch.target).backward()
    torch.optim.SGD(free(clip).values(), lr=lr).step()
    return {name for name, p in clip.named_parameters() if not torch.equal(p, before[name])}



# ---- how many


@pytest.fixture(scope="module")
def vit_b_16():
    """The geometry without the weights."""
    with torch.device("meta"):
        return Clip(open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16")),
                    open_clip.get_tokenizer("ViT-B-16"))


@pytest.mark.parametrize(("kind", "counts"), [
    ("lora", (221_184, 147_456, 368_640)), ("lora official", (221_184, 147_456, 368_640)),
    ("adapter", (1_189_632, 793_344, 1_982_976)), ("prompts", (6_912, 4_608, 4_608 + 3 * 768 * (512 + 1))),
    ("rescale", (672_768, 448_512, 1_121_280))])
def test_vit_b_16_has_the_papers_number_of_parameters(vit_b_16, kind, counts):
    for tower, count in zip(TOWERS, counts, strict=True):
        clip = tune(copy.deepcopy(vit_b_16), kind, tower)
        assert sum(p.numel() for p in free(clip).values()) == count
        assert sum(p.numel() for name, p in clip.named_parameters()
                   if any(part in name for part in ADDED)) == count


@TOWER
def test_loras_factors_on_vit_b_16(vit_b_16, tower):
    clip = tune(copy.deepcopy(vit_b_16), "lora", tower)
    blocks = {"image": 12, "text": 12, "both": 24}[tower]
    assert len(free(clip)) == blocks * 2 * 2  # qkv and out_proj, A and B
    assert sum(p.numel() for n, p in free(clip).items() if "qkv.lora_A" in n and "visual" in n) == (
        0 if tower == "text" else 12 * 4 * 768)  # one A for q, k and v


# ---- before training


@TOWER
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", SILENT)
def test_an_untrained_lora_or_adapter_changes_nothing(clip, batch, kind, precision, tower):
    clip.precision = precision
    before = clip.encode(batch)
    after = tune(clip, kind, tower).train().encode(batch)
    assert same(before, after)


@TOWER
@pytest.mark.parametrize(("kind", "largest"), [("lora official", 0.5), ("prompts", 2.0)])
def test_official_lora_and_prompts_perturb_the_model_before_training(clip, batch, kind, largest,
                                                                     tower):
    """By how much depends on the model: most on this one with its random weights."""
    torch.manual_seed(0)
    before = clip.encode(batch)
    after = tune(clip, kind, tower).encode(batch)
    assert far(before, after) == (tower != "text", tower != "image")
    assert (before.image - after.image).norm(dim=-1).max() < largest
    assert (before.text - after.text).norm(dim=-1).max() < largest


def test_official_lora_draws_both_factors_of_the_qkv_pair_xavier_uniform(clip):
    tune(clip, "lora official", "both")
    for name, factor in free(clip).items():
        if ".out_proj.lora_B" in name:
            assert not factor.any()
        elif ".qkv." in name:
            bound = math.sqrt(6 / sum(factor.shape))
            assert 0.9 * bound < factor.abs().max() <= bound
            assert abs(factor.detach().std() / (bound / math.sqrt(3)) - 1) < 0.15
    assert {tuple(p.shape) for n, p in free(clip).items() if ".qkv." in n} == {(4, 32), (96, 4)}


# ---- what moves


@TOWER
@pytest.mark.parametrize("kind", ["full", *KINDS])
def test_only_the_chosen_tower_moves(clip, batch, kind, tower):
    before = clip.encode(batch)
    if kind == "full":
        TUNERS["full"]().apply(clip, tower)
        assert set(free(clip)) == {parameter for parameter, _ in clip.tower(tower)}
    else:
        tune(clip, kind, tower)
        assert all(any(part in name for part in ADDED) for name in free(clip))
    start = clip.encode(batch)
    moved = step(clip, batch)
    assert moved and moved <= set(free(clip))
    assert {parameter.startswith("model.visual.") for parameter in moved} == {
        "image": {True}, "text": {False}, "both": {True, False}
    }[tower]
    assert moved <= {parameter
                     for parameter, _ in clip.tower(tower)} and "model.logit_scale" not in moved
    with torch.no_grad():
        after = clip.encode(batch)
    assert far(start, after) == (tower != "text", tower != "image")
    assert torch.equal(before.image, after.image) == (tower == "text")
    assert torch.equal(before.text, after.text) == (tower == "image")


@TOWER
@EACH
def test_gradients_reach_every_free_parameter(clip, batch, kind, tower):
    """In the second step: where a factor starts at zero, the other one has no gradient in the
    first."""
    tune(clip, kind, tower)
    step(clip, batch)
    clip.zero_grad()
    encoded = clip.encode(batch)
    match(encoded.image, encoded.text, encoded.scale, batch.target).backward()
    for name, parameter in clip.named_parameters():
        assert (parameter.grad is not None
                and bool(parameter.grad.any())) == parameter.requires_grad, name


@pytest.mark.parametrize(("name", "tower"), EVERY)
def test_the_temperature_never_moves(clip, name, tower):
    TUNERS[name]().apply(clip, tower)
    assert "model.logit_scale" not in free(clip)


@TOWER
def test_full_above_a_block_frees_what_stands_behind_the_one_below_it(clip, batch, tower):
    """Exactly the parameters on which the stream depends after the first block: those that see its
    output."""
    TUNERS["full"](above=1).apply(clip, tower)
    blocks = {
        f"resblocks.1.{part}"
        for part in ("ln_1.weight", "ln_1.bias", "attn.qkv.weight", "attn.qkv.bias",
                     "attn.out_proj.weight", "attn.out_proj.bias", "ln_2.weight", "ln_2.bias",
                     "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    }
    image = {f"transformer.{name}" for name in blocks} | {"ln_post.weight", "ln_post.bias", "proj"}
    text = {f"transformer.{name}"
            for name in blocks} | {"ln_final.weight", "ln_final.bias", "text_projection"}
    expected = {f"model.visual.{name}" for name in image if tower != "text"}
    expected |= {f"model.{name}" for name in text if tower != "image"}
    assert set(free(clip)) == expected
    assert step(clip, batch) == expected


def test_full_above_nothing_is_the_whole_tower_and_other_towers_have_no_blocks(clip):
    TUNERS["full"](above=0).apply(clip, "both")
    assert set(free(clip)) == {name for name, _ in clip.tower("both")}
    with torch.device("meta"):
        other = Clip(open_clip.model.CLIP(**open_clip.get_model_config("RN50")),
                     open_clip.SimpleTokenizer(), "RN50")
    TUNERS["full"]().apply(other, "image")
    assert set(free(other)) == {name for name, _ in other.tower("image")}
    with pytest.raises(ValueError, match="tuner Full.*image tower.*'RN50' is a ModifiedResNet"):
        TUNERS["full"](above=1).apply(other, "both")


@pytest.mark.parametrize(("options", "said"), [({"temperature": 0.07}, "temperature=0.07: must be True or False"),
                                               ({"above": 1.5}, "above=1.5: must be a whole number")], ids=str)
def test_impossible_options_of_full_are_refused_with_the_run(tiny, options, said):
    with pytest.raises(ValueError, match=said):
        tiny.replace(tuner="full", tuner_args=options)


@pytest.mark.parametrize("above", [0, 1])
def test_full_trains_the_temperature_if_asked(clip, batch, above):
    TUNERS["full"](above=above, temperature=True).apply(clip, "text")
    assert {"model.logit_scale"} == set(free(clip)) - {name for name, _ in clip.tower("text")}
    before = clip.scale().item()
    assert "model.logit_scale" in step(clip, batch, lr=0.1) and clip.scale().item() != before
    TUNERS["full"](above=above).apply(clip, "text")
    assert "model.logit_scale" not in free(clip)


def test_a_tuner_freezes_what_was_free_before(clip):
    TUNERS["full"]().apply(clip, "both")
    TUNERS["full"]().apply(clip, "text")
    assert set(free(clip)) == {name for name, _ in clip.tower("text")}
    TUNERS["none"]().apply(clip, "both")
    assert not free(clip)


# ---- the formula of each


@pytest.mark.parametrize("options", [{}, {"rank": 2, "alpha": 8.0}, {"init": "official"}], ids=str)
@torch.inference_mode()
def test_lora_adds_alpha_over_rank_times_b_a(clip, options):
    scale = options.get("alpha", 1.0) / options.get("rank", 4)
    Lora(**options).apply(clip, "both")
    shake(clip)
    layers = [m for m in clip.modules() if hasattr(m, "lora_A")]
    assert len(layers) == 2 * 2 * 2
    for layer in layers:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert len(A) == options.get("rank", 4)
        x = torch.randn(5, A.shape[1])
        expected = x @ (layer.base_layer.weight + scale * B @ A).T + layer.base_layer.bias
        assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_our_layer_gives_what_pefts_gives_with_its_gradients(clip, precision):
    from peft.tuners.lora.layer import Linear

    Lora(alpha=3.0).apply(clip, "image")
    shake(clip)
    layer = next(m for m in clip.modules() if hasattr(m, "lora_A"))
    x = torch.randn(5, 7, layer.in_features, requires_grad=True)
    wanted = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    found = []
    for forward in (type(layer).forward, Linear.forward):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = forward(layer, x)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), wanted)])
    assert type(layer).forward is not Linear.forward
    for ours, pefts in zip(*found, strict=True):
        assert ours.dtype == pefts.dtype
        far = (ours.float() - pefts.float()).abs().max() / pefts.float().abs().max()
        assert far < (1e-5 if precision == "fp32" else 0.03)


def test_our_layer_leaves_what_is_not_plain_to_peft(clip):
    Lora().apply(clip, "image")
    shake(clip)
    layer = next(m for m in clip.modules() if hasattr(m, "lora_A"))
    x = torch.randn(3, layer.in_features)
    tuned = layer(x)
    layer.enable_adapters(False)
    assert torch.allclose(layer(x), layer.base_layer(x)) and not torch.allclose(layer(x), tuned)
    layer.enable_adapters(True)
    layer.merge()
    assert torch.allclose(layer(x), tuned, atol=1e-5)


@pytest.mark.parametrize(("options", "width", "scale"), [({}, 64, 0.1), ({"width": 7, "scale": 0.5}, 7, 0.5)], ids=str)
@pytest.mark.parametrize("tower", ["image", "text"])
@torch.inference_mode()
def test_an_adapter_stands_behind_attention_and_behind_the_mlp(clip, tower, options, width, scale):
    Adapter(**options).apply(clip, tower)
    shake(clip).eval()
    assert len(free(clip)) == 2 * 4  # one bottleneck per block
    parts = "down.weight", "down.bias", "up.weight", "up.bias"
    for number, block in enumerate(
        (clip.model.visual if tower == "image" else clip.model).transformer.resblocks):
        of = f"model.{'visual.' if tower == 'image' else ''}transformer.resblocks.{number}.ls_1.0."
        down, b_down, up, b_up = (free(clip)[of + part] for part in parts)
        assert down.shape == (width, 32) and up.shape == (32, width)

        def adapted(h):
            return h + scale * ((h @ down.T + b_down).clamp(min=0) @ up.T + b_up)  # noqa: B023

        x = torch.randn(3, 5, 32)
        expected = x + adapted(block.attn(block.ln_1(x))[0])
        expected = expected + adapted(block.mlp(block.ln_2(expected)))
        out = block(x)
        assert torch.allclose(out, expected[:, :out.shape[1]],
                              atol=1e-5)  # an image tower's last block: one token


def test_an_adapter_drops_parts_of_its_bottleneck_in_training_alone(clip):
    """With W_up = 1, what is added tells which of the bottleneck's units are left, doubled for the
    dropped half."""
    Adapter(width=32, scale=1.0, dropout=0.5).apply(clip, "image")
    unit = clip.model.visual.transformer.resblocks[0].ls_1[0]
    with torch.no_grad():
        unit.up.weight.copy_(torch.eye(32))
        unit.down.weight.copy_(torch.eye(32))
    x = torch.rand(400, 32) + 0.1
    assert torch.allclose(unit.eval()(x), 2 * x)
    left = unit.train()(x) - x
    dropped = left.abs() < 1e-6
    assert torch.allclose(left[~dropped], 2 * x[~dropped],
                          atol=1e-5) and 0.45 < dropped.float().mean() < 0.55


def by_hand(x, blocks, tokens, at: int, causal: bool) -> torch.Tensor:
    """One sequence (tokens, dim) through the blocks; what comes out, the last tokens still
    inside."""
    count = 0
    for number, block in enumerate(blocks):
        if number < len(tokens):
            rows = [*x[:at], *tokens[number], *x[at + count:]]
            x, count = torch.stack(rows), len(tokens[number])
        size = len(x)
        mask = torch.tensor([[0.0 if column <= row else -math.inf for column in range(size)]
                             for row in range(size)])
        x = block(x[None], attn_mask=mask if causal else None)[0]
    return x


@TOWER
@pytest.mark.parametrize("options", [{}, {"length": 1, "depth": 1}, {"length": 4, "depth": 1}], ids=str)
@torch.inference_mode()
def test_prompts_are_put_before_the_words_and_behind_the_patches_of_the_first_blocks(
        clip, batch, options, tower):
    bare = copy.deepcopy(clip.model)
    Prompts(**options).apply(clip, tower)
    found = shake(clip).eval().encode(batch)
    learned = clip.model.visual.transformer.prompts if tower == "image" else clip.model.transformer.prompts
    assert [p.shape for p in learned] == [(options.get("length", 3), 32)] * options.get("depth", 2)
    text_tokens, image_tokens = ([], learned) if tower == "image" else (learned, [])
    if tower == "both":
        layers = clip.model.visual.transformer.project
        image_tokens = [
            p @ layer.weight.T + layer.bias for p, layer in zip(learned, layers, strict=True)
        ]
    for row, image in zip(found.image, clip.pixels(batch.image), strict=True):
        x = by_hand(
            bare.visual._embeds(image[None])[0], bare.visual.transformer.resblocks, image_tokens, 5,
            False)
        assert torch.allclose(row, F.normalize(
            bare.visual.ln_post(x[0]) @ bare.visual.proj, dim=-1), atol=1e-5)
    for row, tokens in zip(found.text, batch.text, strict=True):
        end = int(tokens.argmax())
        x = bare.token_embedding(tokens[:end + 1]) + bare.positional_embedding[:end + 1]
        x = by_hand(x, bare.transformer.resblocks, text_tokens, 1, True)
        expected = bare.ln_final(
            x[end + (options.get("length", 3) if text_tokens else 0)]) @ bare.text_projection
        assert torch.allclose(row, F.normalize(expected, dim=-1), atol=1e-5)


@pytest.mark.parametrize("tower", ["text", "both"])
def test_the_first_tokens_start_as_words_with_their_positions(clip, tower):
    words = clip.tokenizer(["a picture of a dog"])[0, 1:5]
    Prompts(length=4, init="a picture of a dog").apply(clip, tower)
    first, deeper = clip.model.transformer.prompts
    assert torch.equal(first,
                       clip.model.token_embedding(words) + clip.model.positional_embedding[1:5])
    assert 0.015 < deeper.std() < 0.025 and abs(deeper.mean()) < 0.01


def test_prompts_by_default(toy_model):
    tokens = {}
    for init in (None, "a drawing of a"):
        torch.manual_seed(0)
        clip = load_clip(str(toy_model))
        Prompts(init=init).apply(clip, "text")
        tokens[init] = torch.stack(list(clip.model.transformer.prompts))
    assert torch.equal(tokens[None], tokens["a drawing of a"])
    clip = load_clip(str(toy_model))
    Prompts(length=40).apply(clip, "image")  # no words are needed
    assert all(0.015 < p.std() < 0.025 for p in clip.model.visual.transformer.prompts)


def test_the_depth_is_three_or_all_blocks(toy_cfg):
    for blocks, depth in ((1, 1), (2, 2), (5, 3)):
        cfg = {**toy_cfg, "text_cfg": {**toy_cfg["text_cfg"], "layers": blocks}}
        clip = Clip(open_clip.model.CLIP(**cfg), open_clip.SimpleTokenizer(context_length=32))
        Prompts().apply(clip, "text")
        assert len(clip.model.transformer.prompts) == depth


@torch.inference_mode()
def test_the_images_of_maple_follow_the_prompts_of_the_texts(clip, batch):
    tune(clip, "prompts", "both")
    before = clip.encode(batch)
    for token in clip.model.transformer.prompts:
        token.add_(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    assert far(before, clip.encode(batch)) == (True, True)
    names = [name for name, _ in clip.named_parameters() if ".prompts." in name]
    assert names == [f"model.transformer.prompts.{block}"
                     for block in range(2)]  # each under one name


# ---- errors


@pytest.mark.parametrize(("name", "tower", "options", "said"), [
    ("lora", "both", {"rank": 0}, "rank=0"), ("lora", "both", {"rank": -1}, "rank=-1"),
    ("lora", "both", {"init": "offical"}, "init='offical'.*official.*zero"),
    ("adapter", "both", {"width": 0}, "width=0.*at least 1"), ("adapter", "text", {"scale": 0.0}, "scale=0.0.*above 0"),
    ("adapter", "image", {"dropout": 1.0}, "dropout=1.0.*below 1"),
    ("adapter", "image", {"dropout": -0.1}, "dropout=-0.1"),
    ("prompts", "both", {"length": 0}, "length=0.*at least 1"),
    ("prompts", "image", {"depth": 0}, "depth=0.*at least 1"),
    ("prompts", "text", {"depth": 3}, "depth=3.*from 1 to 2"),
    ("prompts", "text", {"length": 5}, "init='a drawing of a'.*length=5.*4 tokens"),
    ("prompts", "both", {"init": "sun"}, "init='sun'.*length=3.*1 token"),
    ("prompts", "image", {"init": "a big red sun"}, "init='a big red sun'.*tower='image'"),
    ("rescale", "both", {"rank": 0}, "rank=0.*at least 1"),
    ("full", "both", {"above": 2}, "above=2: must be from 0 to 1"), ("full", "text", {"above": -1}, "above=-1"),
], ids=str)
def test_impossible_options_are_refused_with_their_range(clip, name, tower, options, said):
    TUNERS["full"]().apply(clip, "both")
    before = dict(clip.named_parameters())
    with pytest.raises(ValueError, match=said):
        TUNERS[name](**options).apply(clip, tower)
    assert all(before[name] is p and p.requires_grad
               for name, p in free(clip).items()) and free(clip)


@pytest.mark.parametrize("name", ["adapter", "prompts", "rescale"])
def test_a_residual_network_is_refused_and_its_text_tower_taken(name):
    with torch.device("meta"):
        clip = Clip(open_clip.model.CLIP(**open_clip.get_model_config("RN50")),
                    open_clip.SimpleTokenizer(), "RN50")
    for tower in ("image", "both"):
        with pytest.raises(
                ValueError,
                match=f"tuner {TUNERS[name].title}.*image tower.*'RN50' is a ModifiedResNet"):
            TUNERS[name]().apply(clip, tower)
    TUNERS[name]().apply(clip, "text")
    assert free(clip)


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}], ids=str)
def test_prompts_need_a_causal_text_tower(toy_cfg, batch, text):
    cfg = {**toy_cfg, "text_cfg": {**toy_cfg["text_cfg"], **text}}
    clip = Clip(open_clip.model.CLIP(**cfg), open_clip.SimpleTokenizer(context_length=32), "other")
    for tower in ("text", "both"):
        with pytest.raises(ValueError, match="'other'.*tower='image'"):
            Prompts().apply(clip, tower)
    before = clip.encode_image(batch.image)
    Prompts().apply(clip, "image")
    assert not torch.equal(clip.encode_image(batch.image), before)


@TOWER
def test_adapters_go_with_a_text_tower_of_its_own(toy_cfg, batch, tower):
    clip = Clip(open_clip.model.CustomTextCLIP(**toy_cfg),
                open_clip.SimpleTokenizer(context_length=32))
    tokens = clip.tokenize(["a dog", "a cat"])
    before = clip.encode_image(batch.image), clip.encode_text(tokens)
    Adapter().apply(clip, tower)
    assert len(free(clip)) == 2 * 4 * (2 if tower == "both" else 1)
    assert set(free(clip)) <= {name for name, _ in clip.tower(tower)}
    after = clip.encode_image(batch.image), clip.encode_text(tokens)
    assert all(map(torch.equal, before, after))
    shake(clip)
    assert torch.equal(clip.encode_text(tokens), before[1]) == (tower == "image")


@EACH
def test_the_same_seed_draws_the_same_numbers(toy_model, kind):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        clip = load_clip(str(toy_model))
        tune(clip, kind, "both")
        drawn.append(torch.cat([p.flatten() for p in free(clip).values()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# ---- the ways on


@TOWER
@EACH
def test_a_copy_is_trained_without_the_original(clip, batch, kind, tower):
    shake(tune(clip, kind, tower)).eval()
    teacher = copy.deepcopy(clip)
    before = clip.encode(batch)
    assert same(before, teacher.encode(batch))
    assert not {id(p) for p in clip.parameters()} & {id(p) for p in teacher.parameters()}
    shake(teacher)
    assert same(before, clip.encode(batch))
    assert far(before, teacher.encode(batch)) == (tower != "text", tower != "image")


def test_what_a_tuner_shares_stays_shared_in_a_copy(clip):
    Adapter().apply(clip, "both")
    for block in copy.deepcopy(clip).model.visual.transformer.resblocks:
        assert block.ls_1[0] is block.ls_2[0]


def test_the_prompts_that_towers_share_stay_shared_in_a_copy(clip, batch):
    tune(clip, "prompts", "both")
    teacher = copy.deepcopy(clip)
    (shared,) = teacher.model.visual.transformer.shared
    assert shared is teacher.model.transformer.prompts and shared is not clip.model.transformer.prompts
    before = clip.encode_image(batch.image)
    with torch.no_grad():
        shared[0].add_(1.0)
    assert torch.equal(clip.encode_image(batch.image), before)
    assert (teacher.encode_image(batch.image) - before).abs().max() > 1e-3


@TOWER
@EACH
def test_a_state_goes_from_one_model_to_another(toy_model, batch, kind, tower):
    one, other = (tune(load_clip(str(toy_model)), kind, tower).eval() for _ in range(2))
    shake(one)
    assert not same(one.encode(batch), other.encode(batch))
    other.load_state_dict(one.state_dict())
    assert same(one.encode(batch), other.encode(batch))


@TOWER
@EACH
@torch.inference_mode()
def test_cutting_the_text_stays_exact(clip, kind, tower):
    shake(tune(clip, kind, tower)).eval()
    tokens = clip.tokenizer(["sun", "a grey stone bridge", "a picture of a very large red brick"])
    shortest = clip.cut(tokens)
    assert shortest.shape[1] < 12
    found = {
        columns: clip.encode_text(tokens[:, :columns]) for columns in (shortest.shape[1], 17, 32)
    }
    alone = torch.cat([clip.encode_text(clip.cut(row[None])) for row in tokens])
    whole = F.normalize(clip.model.encode_text(tokens),
                        dim=-1)  # open_clip's own way through the tower
    for features in (*found.values(), alone):
        assert (features - whole).abs().max() < 1e-5


@TOWER
@EACH
def test_tuners_work_in_bf16(clip, batch, kind, tower):
    shake(tune(clip, kind, tower), 0.1).eval()
    exact = clip.encode(batch)
    clip.precision = "bf16"
    encoded = clip.encode(batch)
    for side in ("image", "text"):
        near, true = getattr(encoded, side), getattr(exact, side)
        assert near.dtype == torch.float32 and (near - true).abs().max() < 0.05
    match(encoded.image, encoded.text, encoded.scale, batch.target).backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in free(clip).values())


@TOWER
@EACH
def test_a_kept_run_comes_back_with_equal_features(tiny, tmp_path, batch, kind, tower):
    from small_runs import train

    from clstudy.training.setup import prepare

    name, options = KINDS[kind]
    config, kept = tiny.replace(tuner=name, tuner_args=options, tower=tower), []
    run = load_or_train(config, tmp_path, keep_model=True)
    train(config, keep=kept.append)
    tuned = load_tuned(run)
    with torch.inference_mode():
        assert same(tuned.encode(batch), kept[0].eval().encode(batch))
    with safe_open(run.folder / "model.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}
    fresh = free(prepare(config)[0])
    assert set(saved) == set(fresh)  # what is shared under one name
    assert all(value.any() and not torch.equal(value, fresh[name]) for name, value in saved.items())


# ---- LoRA in the weights


def same_names(clip, bare) -> bool:
    return list(clip.state_dict()) == list(bare.state_dict()) and len(list(clip.modules())) == len(
        list(bare.modules()))


@TOWER
@pytest.mark.parametrize("options", [{}, {"rank": 2, "alpha": 8.0}, {"init": "official"}], ids=str)
@torch.inference_mode()
def test_merging_lora_changes_no_feature_and_leaves_a_plain_model(clip, toy_model, batch, options,
                                                                  tower):
    bare = load_clip(str(toy_model))
    Lora(**options).apply(clip, tower)
    before = shake(clip).encode(batch)
    assert far(bare.encode(batch), before) == (tower != "text", tower != "image")
    merged = merge(clip)
    after = merged.encode(batch)
    assert merged is clip and same_names(clip, bare)
    assert (before.image - after.image).abs().max() < 1e-5
    assert (before.text - after.text).abs().max() < 1e-5


def test_a_merged_model_can_be_tuned_again(clip, batch):
    Lora().apply(clip, "both")
    before = merge(shake(clip)).encode(batch)
    assert not hasattr(clip.model,
                       "peft_config")  # peft would take the next one for a second one, and warn
    Lora(rank=2).apply(clip, "text")
    assert same(before, clip.encode(batch)) and {
        p.shape[0] for n, p in free(clip).items() if "lora_A" in n
    } == {2}
    shake(clip)
    tuned = clip.encode(batch)
    assert far(before, tuned) == (False, True)
    assert not any(far(tuned, merge(clip).encode(batch)))


@pytest.mark.parametrize("name", ["none", "full"])
def test_a_model_without_added_parameters_is_merged_already(clip, batch, name):
    before = clip.encode(batch)
    TUNERS[name]().apply(clip, "both")
    assert merge(clip) is clip and same(before, clip.encode(batch)) and bool(
        free(clip)) == (name == "full")


@pytest.mark.parametrize(("name", "tower"), [(name, tower) for name, tower in EVERY
                                             if name not in ("none", "full", "lora", "rescale")])
def test_what_is_not_linear_in_the_weights_is_not_merged(clip, name, tower):
    TUNERS[name]().apply(clip, tower)
    before = list(clip.state_dict())
    with pytest.raises(ValueError,
                       match="adds is not linear in the weights.*keep_model=True") as error:
        merge(clip)
    assert list(clip.state_dict()) == before
    if name in ("adapter",):
        assert f"tuners/{name}.py" in str(error.value)


@pytest.mark.parametrize("like", [None, "given"])
@torch.inference_mode()
def test_a_merged_model_is_written_as_a_folder_that_open_clip_reads(clip, toy_model, tmp_path,
                                                                    batch, like):
    if like:
        clip.name = "unknown"
    Lora().apply(clip, "both")
    folder = export(shake(clip), tmp_path / "deep" / "folder", like=toy_model if like else None)
    again, expected = load_clip(str(folder)), clip.encode(batch)
    assert same(again.encode(batch), expected) and again.causal
    model = open_clip.create_model(f"local-dir:{folder}")
    image = F.normalize(model.encode_image(clip.pixels(batch.image)), dim=-1)
    assert (image - expected.image).abs().max() < 1e-5


@torch.inference_mode()
def test_the_embedded_model_merged_and_written_is_loaded_again(tmp_path):
    clip = load_clip()
    names = list(clip.state_dict())
    images, tokens = torch.rand(4, 3, 64, 64), clip.tokenize(["a dog", "a red car"])
    Lora().apply(clip, "both")
    tuned = shake(clip, 0.1).encode_image(images)
    again = load_clip(str(export(clip, tmp_path)))
    assert list(again.state_dict()) == names
    assert (again.encode_image(images) - tuned).abs().max() < 1e-5
    assert torch.equal(again.encode_image(images), clip.encode_image(images))
    assert torch.equal(again.encode_text(tokens), clip.encode_text(tokens))


def test_a_folder_without_a_configuration_and_the_models_own_folder_are_refused(
        clip, toy_model, tmp_path):
    Lora().apply(clip, "both")
    with pytest.raises(ValueError, match="like='ViT-B-32'.*icon-clip"):
        export(clip, tmp_path, like="ViT-B-32")
    own = tmp_path / "own"
    shutil.copytree(toy_model, own)
    before = (own / "open_clip_model.safetensors").read_bytes()
    with pytest.raises(shutil.SameFileError):
        export(shake(clip), own, like=own)
    assert (own / "open_clip_model.safetensors").read_bytes() == before
    assert not isinstance(clip.model.transformer, Prompted)
