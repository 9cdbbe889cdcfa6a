"""The two exact changes made to open_clip's model, the way back to its files, and the errors of
`load_clip`."""
import copy
import json
import shutil
import zipfile

import open_clip
import pytest
import torch
from torch.nn import functional as F

from clstudy.data.types import Batch
from clstudy.models.attention import Attention, read_at
from clstudy.models.clip import Clip, openclip_keys
from clstudy.models.loading import _check_weights, load_clip
from clstudy.models.open_clip_blocks import LastBlock, split_attention

TEXTS = ["a dog", "a picture of a grey stone bridge over a river, at night", "sun"]
CASES = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "no causal mask": {"text_cfg": {"no_causal_mask": True}},
    "pooled over the last token": {"text_cfg": {"pool_type": "last"}},
    "linear projection": {"text_cfg": {"proj_bias": True}},
    "images pooled by attention": {
        "vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2, "width": 64}
    },
    "images pooled by attention of one width": {
        "vision_cfg": {
            "attentional_pool": True, "attn_pooler_heads": 2, "width": 16, "head_width": 8
        }
    },
    "residual network": {
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
    },
}


def build(cfg: dict, changes: dict | None = None, kind=open_clip.model.CLIP):
    """A model of open_clip with random weights, none of them zero."""
    cfg = copy.deepcopy(cfg)
    for name, value in (changes or {}).items():
        cfg[name] = {**cfg[name], **value} if isinstance(value, dict) else value
    torch.manual_seed(1)
    model = kind(**cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 and parameter.numel() > 1:  # biases start at zero, norms at one
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.SimpleTokenizer(context_length=32)


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance


# ---- the same outputs as open_clip's own model


def test_a_copy_has_its_own_weights_and_the_same_tokenizer(clip):
    copied = copy.deepcopy(clip)
    assert copied.tokenizer is clip.tokenizer and type(copied) is type(clip)
    with torch.no_grad():
        copied.model.logit_scale.add_(1)
    assert copied.scale() != clip.scale()
    assert copied.state_dict().keys() == clip.state_dict().keys()


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_features_are_those_of_open_clip(case, toy_cfg, tokenizer, images):
    original = build(toy_cfg, CASES[case])
    clip = Clip(copy.deepcopy(original), tokenizer).eval()
    assert any(isinstance(module, Attention) for module in clip.modules())
    close(clip.encode_image(images), original.encode_image(clip.pixels(images), normalize=True))
    close(clip.encode_text(clip.tokenize(TEXTS)),
          original.encode_text(tokenizer(TEXTS), normalize=True))
    close(clip.scale(), original.logit_scale.exp())


@pytest.mark.parametrize(("changes", "cut"), [
    ({}, True), ({"text_cfg": {"embed_cls": True, "context_length": 31}}, False)],
    ids=["plain", "class token"])
@torch.inference_mode()
def test_a_text_tower_of_its_own_keeps_its_features_and_its_name(toy_cfg, changes, cut):
    original = build(toy_cfg, changes, open_clip.model.CustomTextCLIP)
    tokenizer = open_clip.SimpleTokenizer(context_length=original.context_length)
    clip = Clip(copy.deepcopy(original), tokenizer).eval()
    assert (clip.tokenize(TEXTS).shape[1] < original.context_length) == cut
    close(clip.encode_text(clip.tokenize(TEXTS)),
          original.encode_text(tokenizer(TEXTS), normalize=True))
    assert {name.split(".")[1] for name, _ in clip.tower("text")} == {"text"}


def test_gradients_are_those_of_open_clip(toy_cfg, tokenizer, images):
    original = build(toy_cfg)
    clip = Clip(copy.deepcopy(original), tokenizer)
    tokens, pixels = clip.tokenize(TEXTS[:1] * 5), clip.pixels(images)
    (clip.encode_image(images) * clip.encode_text(tokens)).sum().backward()
    full = tokenizer(TEXTS[:1] * 5)
    (original.encode_image(pixels, normalize=True)
     * original.encode_text(full, normalize=True)).sum().backward()
    ours = openclip_keys(
        {name: p.grad for name, p in clip.model.named_parameters() if p.grad is not None})
    theirs = {name: p.grad for name, p in original.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        close(ours[name], gradient, 1e-4)


@torch.inference_mode()
def test_the_two_ways_of_attending_agree(toy_cfg):
    """The CPU writes attention out; elsewhere the fused kernel is called, with the same scale and
    mask."""
    attention = Attention(build(toy_cfg).transformer.resblocks[0].attn)
    x, mask = torch.randn(3, 7, 32), torch.full((7, 7), float("-inf")).triu(1)
    q, k, v = attention.qkv(x).view(3, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)
    for given in (None, mask):
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=given).transpose(1, 2).reshape(
            3, 7, 32)
        close(attention(x, attn_mask=given)[0], attention.out_proj(fused))


@pytest.mark.parametrize("at", [0, 3, torch.tensor([6, 0, 2])], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_a_block_read_at_one_token_gives_what_it_gives_there(toy_cfg, at, masked):
    block = split_attention(build(toy_cfg)).transformer.resblocks[0]
    x, mask = torch.randn(3, 7, 32), torch.full((7, 7), float("-inf")).triu(1) if masked else None
    whole = block(x, attn_mask=mask)
    where = torch.full((3,), at) if isinstance(at, int) else at
    found = read_at(block, x, at, mask)
    assert found.shape == (3, 1, 32)
    close(found[:, 0], whole[torch.arange(3), where])


def test_the_last_block_of_an_image_tower_computes_what_is_read(toy_cfg, tokenizer):
    lasts = {
        case: Clip(build(toy_cfg, changes), tokenizer).model.visual
        for case, changes in CASES.items()
    }
    for case, visual in lasts.items():
        if case != "residual network":
            *others, last = visual.transformer.resblocks
            assert isinstance(last, LastBlock) == ("attention" not in case)
            assert not any(isinstance(block, LastBlock) for block in others)
    visual = lasts["plain"]
    assert visual.transformer(torch.randn(2, 5, visual.ln_post.normalized_shape[0])).shape[1] == 1


# ---- cutting text


@torch.inference_mode()
def test_cutting_text_is_exact_and_saves_columns(clip):
    full = clip.tokenizer(TEXTS)
    cut = clip.tokenize(TEXTS)
    longest = (full.argmax(1) + 1).max()
    assert cut.shape == (3, longest) and longest < full.shape[1] == 32
    close(clip.encode_text(cut), clip.encode_text(full))
    alone = torch.cat([clip.encode_text(clip.tokenize([text])) for text in TEXTS])
    close(alone, clip.encode_text(full))


def test_text_longer_than_the_context_keeps_its_end_token(clip):
    tokens = clip.tokenize(["dog " * 100, "cat"])
    assert tokens.shape == (2, 32)
    assert tokens[0, -1] == tokens.max() == 49407


@pytest.mark.parametrize("case", ["no causal mask", "pooled over the last token"])
def test_text_is_not_cut_where_that_would_change_it(case, toy_cfg, tokenizer):
    clip = Clip(build(toy_cfg, CASES[case]), tokenizer)
    assert not clip.causal
    assert clip.tokenize(TEXTS).shape[1] == 32


def test_class_text_puts_names_into_the_template(clip):
    expected = clip.tokenize(["a dog, drawn", "a red cat, drawn"])
    assert torch.equal(clip.class_text(["dog", "red cat"], "a {}, drawn"), expected)


# ---- what goes in and what comes out


def test_images_of_any_size_and_both_kinds_are_taken(clip):
    small = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(clip.pixels(small), clip.pixels(small.float() / 255))
    mean, std = (torch.tensor(v).view(3, 1, 1)
                 for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))  # the folder's own
    close(clip.pixels(small), (small / 255 - mean) / std)
    assert clip.pixels(torch.rand(2, 3, 100, 80)).shape == (2, 3, 64, 64)


def test_encode_is_the_doorway_with_the_features_of_both_towers(clip, batch):
    assert isinstance(batch, Batch)
    encoded = clip.encode(batch)
    assert torch.equal(encoded.image, clip.encode_image(batch.image))
    assert torch.equal(encoded.text, clip.encode_text(batch.text))
    assert encoded.scale == clip.scale()
    for features in (encoded.image, encoded.text):
        close(features.norm(dim=-1), torch.ones(len(features)))


def test_the_inverse_temperature_is_at_most_100(clip):
    with torch.no_grad():
        clip.model.logit_scale.fill_(10.0)
    assert clip.scale() == 100


def test_bf16_gives_fp32_features_near_those_of_fp32(clip, images):
    tokens = clip.tokenize(TEXTS)
    exact = clip.encode_image(images), clip.encode_text(tokens)
    clip.precision = "bf16"
    for near, true in zip((clip.encode_image(images), clip.encode_text(tokens)), exact,
                          strict=True):
        assert near.dtype == torch.float32
        close(near.norm(dim=-1), torch.ones(len(near)))
        assert 0 < (near - true).abs().max() < 0.05


def test_towers_part_the_parameters(clip):
    image, text, both = ([name for name, _ in clip.tower(tower)]
                         for tower in ("image", "text", "both"))
    assert set(image) | set(text) == set(both) and not set(image) & set(text)
    assert {name for name, _ in clip.named_parameters()} - set(both) == {"model.logit_scale"}
    assert all(name.startswith("model.visual.") for name in image)


# ---- files


@torch.inference_mode()
def test_exported_weights_load_strictly_in_open_clip(toy_cfg, tokenizer, images):
    clip = Clip(build(toy_cfg), tokenizer).eval()
    fresh = open_clip.model.CLIP(**copy.deepcopy(toy_cfg)).eval()
    assert any("attn.qkv" in name for name in clip.model.state_dict())
    fresh.load_state_dict(openclip_keys(clip.model.state_dict()), strict=True)
    close(fresh.encode_image(clip.pixels(images), normalize=True), clip.encode_image(images))
    close(fresh.encode_text(tokenizer(TEXTS), normalize=True), clip.encode_text(
        clip.tokenize(TEXTS)))


def test_names_of_towers_that_are_not_open_clips_own_stay():
    names = {"visual.trunk.blocks.0.attn.qkv.weight": torch.ones(1)}  # timm writes it so itself
    assert openclip_keys(names) == names


@pytest.mark.parametrize("name", ["toy", "icon-clip"])
@torch.inference_mode()
def test_open_clip_reads_the_folder_itself_with_the_same_features(name, toy_model, images):
    from clstudy.utils.paths import EMBEDDED

    folder = toy_model if name == "toy" else EMBEDDED["icon-clip"]
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    clip = load_clip(str(folder) if name == "toy" else name).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert torch.equal(tokens, clip.tokenizer(TEXTS))
    close(torch.tensor(theirs.visual.image_mean), clip.mean.flatten())
    close(torch.tensor(theirs.visual.image_std), clip.std.flatten())
    close(clip.encode_image(images), theirs.encode_image(clip.pixels(images), normalize=True))
    close(clip.encode_text(clip.tokenize(TEXTS)), theirs.encode_text(tokens, normalize=True))


def test_a_folder_takes_random_weights_and_weights_of_another_file(toy_model, tmp_path, images):
    torch.manual_seed(5)
    random = load_clip(str(toy_model), "random")
    stored = load_clip(str(toy_model))
    copied = shutil.copy(toy_model / "open_clip_model.safetensors", tmp_path / "other.safetensors")
    assert not torch.equal(random.encode_image(images), stored.encode_image(images))
    assert torch.equal(
        load_clip(str(toy_model), str(copied)).encode_image(images), stored.encode_image(images))


# ---- errors, before anything is downloaded


def refused(name: str, pretrained: str | None = None) -> str:
    with pytest.raises(ValueError) as error:
        load_clip(name, pretrained)
    return str(error.value)


def test_an_unknown_model_is_refused_with_near_names():
    said = refused("ViT-B16")
    assert "'ViT-B16'" in said and "ViT-B-16" in said and "icon-clip" in said
    assert "icon-clip" in refused("icon_clip").split("Near:")[1].split(".")[0]


def test_an_architecture_without_weights_is_refused_with_its_tags():
    said = refused("ViT-B-32")
    assert "pretrained=" in said and "laion2b_s34b_b79k" in said and "random" in said


def test_a_wrong_tag_is_refused_with_near_ones():
    said = refused("ViT-B-32", "laion2b_s34b_b97k")
    assert "laion2b_s34b_b79k" in said.split("Near:")[1].split("Tags:")[0]


def test_a_torchscript_archive_is_refused_with_the_cure(tmp_path):
    file = tmp_path / "ViT-B-32.pt"  # a zip with a folder of code, as torch.jit.save writes it
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ViT-B-32/code/__torch__.py", "")
    assert "pretrained='openai'" in refused("ViT-B-32-quickgelu", str(file))


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "openai"), ("ViT-B-16", "openai"),
                                           ("ViT-B-32", "laion400m_e32")])
def test_weights_of_another_activation_are_refused(name, tag):
    assert f"use model='{name}-quickgelu'" in refused(name, tag)


def test_every_tag_that_a_quickgelu_model_offers_was_trained_with_it():
    for name in (name for name in open_clip.list_models() if name.endswith("-quickgelu")):
        for tag in open_clip.list_pretrained_tags_by_model(name):
            _check_weights(name, tag)


def test_an_incomplete_folder_is_refused_with_what_is_missing(tmp_path, toy_model):
    assert "open_clip_config.json is missing" in refused(str(tmp_path))
    shutil.copy(toy_model / "open_clip_config.json", tmp_path)
    assert "open_clip_model.safetensors is missing" in refused(str(tmp_path))
    assert "for a model folder" in refused(str(tmp_path), "laion2b_s34b_b79k")
    assert isinstance(load_clip(str(tmp_path), "random"), Clip)


def test_weights_that_do_not_fit_the_folder_are_refused(tmp_path, toy_model):
    config = json.loads((toy_model / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 8
    shutil.copy(toy_model / "open_clip_model.safetensors", tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_clip(str(tmp_path))
