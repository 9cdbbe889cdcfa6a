"""Rectified layers (RKR): their formula, their number by hand, and the way back into plain
weights."""
import copy

import open_clip
import pytest
import torch
from torch import nn

from clstudy import load_clip
from clstudy.models.clip import Clip
from clstudy.models.merging import export, merge
from clstudy.models.tuners import TUNERS
from clstudy.models.tuners.base import TOWERS
from clstudy.models.tuners.rescale import Rescale, Rescaled

OPTIONS = pytest.mark.parametrize("options", [{}, {"rank": 1}, {"low_rank": False}, {"qkv": False}],
                                  ids=str)
TOWER = pytest.mark.parametrize("tower", TOWERS)


def free(clip) -> dict[str, nn.Parameter]:
    return {name: p for name, p in clip.named_parameters() if p.requires_grad}


def shaken(clip) -> Clip:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in free(clip).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return clip


def difference(one, other) -> tuple[float, float]:
    """Largest difference of image and of text features."""
    return (one.image - other.image).abs().max().item(), (one.text - other.text).abs().max().item()


# ---- how many


def by_hand(width: int, blocks: int, rank: int, low_rank: bool, qkv: bool) -> int:
    """inputs → outputs of each layer: rank for each of both, and a scale for each output."""
    layers = [(width, width), (width, 4 * width), (4 * width, width)] + [(width, 3 * width)] * qkv
    return blocks * sum(low_rank * rank * (inputs + outputs) + outputs
                        for inputs, outputs in layers)


@pytest.mark.parametrize(("options", "counts"), [
    ({}, (672_768, 448_512)), ({"low_rank": False}, (82_944, 55_296)), ({"qkv": False}, (497_664, 331_776)),
    ({"rank": 2}, (377_856, 251_904)), ({"rank": 7, "low_rank": False}, (82_944, 55_296))], ids=str)
def test_vit_b_32_has_the_number_of_parameters_counted_by_hand(options, counts):
    with torch.device("meta"):
        model = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-32"))
        clip = Clip(model, open_clip.SimpleTokenizer())
    Rescale(**options).apply(clip, "both")
    given = {"rank": 4, "low_rank": True, "qkv": True, **options}
    for side, width, count in zip((True, False), (768, 512), counts, strict=True):
        found = sum(
            p.numel() for name, p in free(clip).items() if name.startswith("model.visual.") == side)
        assert found == count == by_hand(width, 12, **given)


@TOWER
def test_every_linear_layer_of_the_towers_blocks_is_rectified_and_none_besides(clip, tower):
    """The tower that was not chosen stays as it is, though its blocks are of the same class."""
    Rescale().apply(clip, tower)
    found = {name for name, module in clip.named_modules() if isinstance(module, Rescaled)}
    layers = "attn.qkv", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"
    towers = {"image": ["model.visual"], "text": ["model"], "both": ["model.visual",
                                                                     "model"]}[tower]
    assert found == {
        f"{of}.transformer.resblocks.{number}.{name}" for of in towers for number in (0, 1)
        for name in layers
    }
    assert set(
        free(clip)) == {f"{name}.{part}" for name in found for part in ("sigma", "down", "up")}


# ---- the formula


@OPTIONS
@torch.inference_mode()
def test_a_rectified_layer_by_hand(clip, options):
    bare = {name: m.weight.clone() for name, m in clip.named_modules() if isinstance(m, nn.Linear)}
    Rescale(**options).apply(clip, "both")
    shaken(clip)
    layers = {name: m for name, m in clip.named_modules() if isinstance(m, Rescaled)}
    assert len(layers) == 4 * (3 if options.get("qkv") is False else 4)
    for name, layer in layers.items():
        x = torch.randn(5, layer.in_features)
        for row, out in zip(x, layer(x), strict=True):
            inner = bare[name] @ row + layer.bias
            if options.get("low_rank", True):
                assert len(layer.down) == options.get("rank", 4)
                inner = inner + layer.up @ (layer.down @ row)
            assert torch.allclose(out, inner * layer.sigma, atol=1e-5)


def test_the_start_is_scale_one_and_no_correction(clip):
    Rescale(rank=4).apply(clip, "both")
    for name, parameter in free(clip).items():
        if name.endswith("sigma"):
            assert (parameter == 1).all()
        elif name.endswith("down"):
            assert not parameter.any()
        else:
            assert 0.45 < parameter.abs().max() <= 0.5  # 1 / √rank
            assert abs(parameter.std() / (1 / 12) ** 0.5 - 1) < 0.1 and abs(parameter.mean()) < 0.12


@torch.inference_mode()
def test_attention_and_the_mlp_take_part(clip, batch):
    """Each layer alone moves the features of its tower: nothing goes past it."""
    Rescale().apply(clip, "both")
    start = clip.encode(batch)
    for name, parameter in free(clip).items():
        if name.endswith(("sigma", "down")):
            kept = parameter.clone()
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)))
            image, text = difference(start, clip.encode(batch))
            assert (image > 1e-5, text > 1e-5) == (".visual." in name, ".visual." not in name), name
            parameter.copy_(kept)


@OPTIONS
@TOWER
def test_an_untrained_one_changes_nothing_in_bf16_either(clip, batch, options, tower):
    for precision in ("fp32", "bf16"):
        clip.precision = precision
        before = clip.encode(batch)
        fresh = rescaled(clip, tower, options)
        assert difference(before, fresh.encode(batch)) == (0, 0)


def rescaled(clip, tower: str, options: dict) -> Clip:
    fresh = copy.deepcopy(clip)
    Rescale(**options).apply(fresh, tower)
    return fresh


def test_what_the_blocks_are_asked_for_by_open_clip_is_still_there(clip):
    TUNERS["rescale"]().apply(clip, "both")
    tokens = clip.tokenizer(["a red brick"])
    assert torch.equal(clip.model.encode_text(tokens),
                       clip.model.encode_text(tokens))  # asks for a layer's dtype
    assert clip.model.visual.transformer.resblocks[0].mlp.c_proj.out_features == 32


# ---- into the weights


@OPTIONS
@TOWER
@torch.inference_mode()
def test_merging_changes_no_feature_and_leaves_a_plain_model(clip, toy_model, batch, options,
                                                             tower):
    bare = load_clip(str(toy_model))
    Rescale(**options).apply(clip, tower)
    before = shaken(clip).encode(batch)
    far = difference(bare.encode(batch), before)
    assert (far[0] > 1e-3, far[1] > 1e-3) == (tower != "text", tower != "image")
    merged = merge(clip)
    assert merged is clip and max(difference(before, merged.encode(batch))) < 1e-5
    assert list(merged.state_dict()) == list(bare.state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in bare.modules()]


@torch.inference_mode()
def test_a_merged_one_can_be_tuned_again_and_written(clip, batch, tmp_path):
    Rescale().apply(clip, "both")
    before = shaken(clip).encode(batch)
    again = load_clip(str(export(clip, tmp_path / "folder")))
    assert max(difference(before, again.encode(batch))) < 1e-5
    Rescale(rank=2).apply(again, "text")
    assert difference(clip.encode(batch), again.encode(batch)) == (0, 0)
    assert {len(p) for name, p in free(again).items() if name.endswith("down")} == {2}


def test_layers_without_a_bias():
    layer = nn.Linear(3, 2, bias=False)
    made = Rescaled(layer, 1)
    with torch.no_grad():
        made.sigma.copy_(torch.tensor([2.0, 3.0]))
    x = torch.randn(4, 3)
    assert torch.allclose(made(x), layer(x) * torch.tensor([2.0, 3.0]))
    assert made.plain().bias is None and torch.allclose(made.plain()(x), made(x))


@pytest.mark.parametrize(("options", "said"), [({"rank": 0}, "tuner_args: rank=0"), ({"rank": 2.5}, "rank=2.5"),
                                               ({"low_rank": "no"}, "low_rank='no': must be True or False"),
                                               ({"qkv": 1}, "qkv=1: must be True or False")], ids=str)
def test_impossible_options_are_refused_with_the_run(tiny, options, said):
    with pytest.raises(ValueError, match=said):
        tiny.replace(tuner="rescale", tuner_args=options)
