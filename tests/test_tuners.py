"""Tuners: how many parameters move and which, that an untrained tuner changes nothing, and that LoRA merges exactly."""
import open_clip
import pytest
import torch

from clstudy.clip import Clip
from clstudy.losses import match
from clstudy.tuners import TOWERS, TUNERS, lora


def free(clip) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in clip.named_parameters() if p.requires_grad}


def snapshot(clip) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in clip.named_parameters()}


def step(clip, batch, lr=1.0) -> set[str]:
    """One step of plain gradient descent; the names of what moved."""
    before = snapshot(clip)
    encoded = clip.encode(batch)
    match(encoded.image, encoded.text, encoded.scale, batch.target).backward()
    torch.optim.SGD(free(clip).values(), lr=lr).step()
    return {name for name, p in clip.named_parameters() if not torch.equal(p, before[name])}



@pytest.mark.parametrize(("tower", "count"), [("image", 221_184), ("text", 147_456), ("both", 368_640)])
def test_lora_of_rank_4_on_vit_b_16_has_the_papers_number_of_parameters(tower, count):
    with torch.device("meta"):  # the geometry without the weights
        clip = Clip(open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16")), None)
        lora(clip, tower)
    assert sum(p.numel() for p in free(clip).values()) == count
    blocks = {"image": 12, "text": 12, "both": 24}[tower]
    assert len(free(clip)) == blocks * 2 * 2  # qkv and out_proj, A and B
    assert sum(p.numel() for n, p in free(clip).items() if "qkv.lora_A" in n and "visual" in n) == (
        0 if tower == "text" else 12 * 4 * 768)  # one A for q, k and v


@pytest.mark.parametrize("tower", TOWERS)
def test_an_untrained_lora_changes_nothing(clip, batch, tower):
    before = clip.encode(batch)
    lora(clip, tower)
    after = clip.train().encode(batch)
    assert torch.equal(before.image, after.image) and torch.equal(before.text, after.text)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ["full", "lora"])
def test_only_the_chosen_tower_moves(clip, batch, name, tower):
    before = clip.encode(batch)
    TUNERS[name](clip, tower)
    moved = step(clip, batch)
    assert moved and moved <= set(free(clip))
    assert all((tower == "both") or (tower == "image") == parameter.startswith("model.visual.") for parameter in moved)
    assert {parameter.startswith("model.visual.") for parameter in moved} == {"image": {True}, "text": {False},
                                                                             "both": {True, False}}[tower]
    if name == "lora":
        assert all("lora_" in parameter for parameter in moved)
    else:
        assert set(free(clip)) == {parameter for parameter, _ in clip.tower(tower)}
        assert moved == set(free(clip))
    assert "model.logit_scale" not in moved
    with torch.no_grad():
        after = clip.encode(batch)
    assert torch.equal(before.image, after.image) == (tower == "text")
    assert torch.equal(before.text, after.text) == (tower == "image")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", TUNERS)
def test_the_temperature_never_moves(clip, name, tower):
    TUNERS[name](clip, tower)
    assert "model.logit_scale" not in free(clip)


def test_a_tuner_freezes_what_was_free_before(clip):
    TUNERS["full"](clip, "both")
    TUNERS["full"](clip, "text")
    assert set(free(clip)) == {name for name, _ in clip.tower("text")}
    TUNERS["none"](clip, "both")
    assert not free(clip)


def trained(clip, **options):
    """Random numbers in both factors, as after training."""
    lora(clip, "both", **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in free(clip).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return clip


@pytest.mark.parametrize("options", [{}, {"rank": 2, "alpha": 8.0}], ids=str)
@torch.inference_mode()
def test_lora_adds_alpha_over_rank_times_b_a(clip, options):
    scale = options.get("alpha", 1.0) / options.get("rank", 4)
    trained(clip, **options)
    layers = [m for m in clip.modules() if hasattr(m, "lora_A")]
    assert len(layers) == 2 * 2 * 2
    for layer in layers:
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert len(A) == options.get("rank", 4)
        x = torch.randn(5, A.shape[1])
        expected = x @ (layer.base_layer.weight + scale * B @ A).T + layer.base_layer.bias
        assert torch.allclose(layer(x), expected, atol=1e-5)


@torch.inference_mode()
def test_merging_lora_changes_no_feature(clip, batch):
    trained(clip)
    before = clip.encode(batch)
    for layer in [m for m in clip.modules() if hasattr(m, "lora_A")]:
        layer.merge()
        assert layer.merged
    after = clip.encode(batch)
    assert (before.image - after.image).abs().max() < 1e-5
    assert (before.text - after.text).abs().max() < 1e-5


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(clip, rank):
    with pytest.raises(ValueError, match=f"rank={rank}"):
        lora(clip, "both", rank=rank)


def test_the_same_seed_draws_the_same_factors(toy_model):
    from clstudy import load_clip

    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        clip = load_clip(str(toy_model))
        lora(clip, "both")
        drawn.append(torch.cat([p.flatten() for p in free(clip).values()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
