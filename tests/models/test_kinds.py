"""Towers of every kind that open_clip builds, each of the smallest size: what the tuners reach in
them and what they refuse, that a frozen tower stays as it is, and that class texts are cut only
where that changes nothing."""
import copy
import json
import zlib
from collections import Counter
from functools import cache
from itertools import product

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from clstudy import load_clip
from clstudy.evaluation.accuracy import evaluate
from clstudy.losses.functional import match
from clstudy.methods.finetune import Finetune
from clstudy.methods.frozen import Frozen
from clstudy.models.clip import Clip
from clstudy.models.loading import _built
from clstudy.models.tuners import TUNERS
from clstudy.models.tuners.base import TOWERS
from clstudy.training.loop import train
from clstudy.training.setup import buffers, moved, prepare

VIT = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 12, "layers": 2, "width": 16, "heads": 2}
OTHER = {**TEXT, "vocab_size": 64}  # of models with a tokenizer of their own
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
TRUNK = {"timm_model_name": "vit_smallest", "image_size": 32}
# which sizes are changed in open_clip's own configuration: of the image tower, and of the text
SIZES = {
    "ViT-B-32": (VIT, TEXT),
    "RN50": (RESNET, TEXT),
    "convnext_base": ({"timm_model_name": "convnext_smallest", "image_size": 32}, TEXT),
    "coca_ViT-B-32": ({**VIT, "attn_pooler_heads": 2, "attn_pooler_queries": 4}, TEXT),
    "ViT-B-16-SigLIP": (TRUNK, OTHER),
    "ViT-B-32-SigLIP2-256": (TRUNK, OTHER),
    "MobileCLIP-S1": ({"timm_model_name": "fastvit_smallest", "image_size": 32}, TEXT),
    "MobileCLIP-B": (TRUNK, TEXT),
    "roberta-ViT-B-32": (VIT, {}),
    "ViT-H-14-CLIPA": (VIT, OTHER),  # the mean of the patches
    "ViT-H-14-worldwide": (VIT, OTHER),  # causal, but the end token has not the highest number
}
CUT = {"ViT-B-32", "RN50", "convnext_base", "MobileCLIP-B"}  # causal, and read at CLIP's end token
BLOCKS = {"full", "lora", "adapter", "rescale"}  # tuners of any transformer of open_clip
POOLS = {"l2p", "dualprompt", "mvp"}  # of one that is read at its class token
FOREIGN = {"RN50": "ModifiedResNet", "convnext_base": r"TimmModel \(ConvNeXt\)",
           "ViT-B-16-SigLIP": r"TimmModel \(VisionTransformer\)",
           "ViT-B-32-SigLIP2-256": r"TimmModel \(VisionTransformer\)",
           "MobileCLIP-S1": r"TimmModel \(FastVit\)",
           "MobileCLIP-B": r"TimmModel \(VisionTransformer\)"}
EACH = pytest.mark.parametrize("kind", SIZES)


def sizes_of(given: dict) -> dict:
    """What timm hands on to a model, without what is about its weights."""
    return {name: value for name, value in given.items()
            if name in ("num_classes", "global_pool", "drop_path_rate")}


@timm.models.register_model
def vit_smallest(**given):
    """The image tower of SigLIP and of the larger MobileCLIPs, as timm would build it."""
    return VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2,
                             class_token=given["global_pool"] == "token", **sizes_of(given))


@timm.models.register_model
def convnext_smallest(**given):
    model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), **sizes_of(given))
    model.default_cfg = {}
    return model


@timm.models.register_model
def fastvit_smallest(**given):
    """The image tower of the smaller MobileCLIPs."""
    mixers = ("repmixer", "repmixer", "repmixer", "attention")
    return FastVit(layers=(1, 1, 1, 1), embed_dims=(8, 8, 8, 32), token_mixers=mixers,
                   **sizes_of(given))


class Words:
    """A tokenizer that is not CLIP's: start 0, padding 1, end 2, and a number for each word."""

    context_length = 12

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = [[0, *(3 + zlib.crc32(word.encode()) % 60 for word in text.split()), 2]
                for text in texts]
        return torch.tensor([row + [1] * (12 - len(row)) for row in rows])


def config(kind: str) -> dict:
    cfg = copy.deepcopy(open_clip.get_model_config(kind))
    image, text = SIZES[kind]
    cfg["vision_cfg"] |= image
    cfg["text_cfg"] |= text
    if "multimodal_cfg" in cfg:
        cfg["multimodal_cfg"] |= {**TEXT, "layers": 1, "attn_pooler_heads": 2}
    return {**cfg, "embed_dim": 16 if "SigLIP" in kind else 8}  # SigLIP's images: no projection


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> str:
    """A folder with the configuration of a small RoBERTa, in place of a name on the Hub."""
    from transformers import RobertaConfig

    folder = tmp_path_factory.mktemp("roberta")
    RobertaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                  intermediate_size=32, max_position_embeddings=14).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def built(roberta):
    """A function: kind → open_clip's model, and the same as this package has it."""

    @cache
    def make(kind: str) -> tuple[torch.nn.Module, Clip]:
        cfg = config(kind)
        if "hf_model_name" in cfg["text_cfg"]:
            cfg["text_cfg"]["hf_model_name"] = roberta
        own = "hf_tokenizer_name" in cfg["text_cfg"]
        torch.manual_seed(0)
        model = _built(cfg).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and layer scales start at or near zero
                    parameter.add_(0.1 * torch.randn_like(parameter))
        tokenizer = Words() if own else open_clip.SimpleTokenizer(context_length=12)
        return model, Clip(copy.deepcopy(model), tokenizer, kind).eval()

    return make


def inputs(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    size, generator = clip.image_size, torch.Generator().manual_seed(0)
    texts = clip.class_text(["dog", "grey stone bridge", "sun", "cat"], "a drawing of a {}")
    return torch.rand(4, 3, size, size, generator=generator), texts


def refusal(kind: str, clip: Clip, name: str, tower: str) -> str:
    """What the error says, or "": it is no error."""
    image, text = tower != "text", tower != "image"
    if name in ("none", "full"):
        return ""
    if name in POOLS and text:
        return "chosen by the image.*Choices: image"
    if name == "coop":
        return ("context stands in texts. Choices: text" if image
                else "causal text tower" if kind not in CUT else "")
    if image and kind in FOREIGN:
        left = "" if name in POOLS else "tower='text', "
        return f"image tower.*{kind!r} is a {FOREIGN[kind]}. Choices: {left}tuner='full'"
    if text and kind.startswith("roberta"):
        return r"text tower.*is a HFTextEncoder \(RobertaModel\). Choices: tower='image', tuner="
    if name == "prompts" and text and kind not in CUT:
        return "causal text tower.*Choices: tower='image'"
    if name in POOLS and (kind.startswith("coca") or kind.endswith("CLIPA")):
        return f"class token.*{kind!r} is not read there. Choices: tuner='prompts'"
    return ""


def step(clip: Clip, image: torch.Tensor, text: torch.Tensor) -> Counter:
    """One step in training mode; how many numbers of each tower have moved, buffers included."""
    named = [*clip.named_parameters(), *clip.named_buffers()]
    before = {name: value.detach().clone() for name, value in named}
    found, target = (clip.train().encode_image(image), clip.encode_text(text)), torch.arange(4)
    match(*found, clip.scale(), target).backward()
    torch.optim.SGD([p for p in clip.parameters() if p.requires_grad], lr=1.0).step()
    moved = Counter()
    for name, value in named:
        side = "image" if name.startswith("model.visual.") else "text"
        moved["beside" if "logit_" in name or "decoder" in name else side] += int(
            (value != before[name]).sum())
    return moved


# ---- tuners


@EACH
def test_a_step_moves_the_towers_that_a_tuner_reaches_and_it_refuses_the_others(built, kind):
    _, start = built(kind)
    image, text = inputs(start)
    still = copy.deepcopy(start).requires_grad_(False)
    before = {"image": still.encode_image(image), "text": still.encode_text(text)}
    for name, tower in product(TUNERS, TOWERS):
        clip, why, at = copy.deepcopy(start), refusal(kind, start, name, tower), (name, tower)
        tuner = TUNERS[name](**({"length": 2} if name == "coop" else {}))
        if why:
            with pytest.raises(ValueError, match=f"{tuner.title}.*{why}"):
                tuner.check_tower(tower)
                tuner.apply(clip, tower)
            assert all(p.requires_grad for p in clip.parameters()), at  # and nothing was done
            continue
        tuner.apply(clip, tower)
        if name == "none":
            assert not any(p.requires_grad for p in clip.parameters())
            continue
        moved = step(clip, image, text)
        reached = {side for side, count in moved.items() if count}
        assert reached == {"image", "text"} & {tower, *(TOWERS[:2] if tower == "both" else ())}, at
        if name not in POOLS:  # a pool's keys wait for the term of its method
            assert all(p.grad is not None for p in clip.parameters() if p.requires_grad), at
        with torch.no_grad():  # in training mode still
            after = {"image": clip.encode_image(image), "text": clip.encode_text(text)}
        for side in {"image", "text"} - reached:
            assert torch.equal(before[side], after[side]), at


def test_lora_refuses_attention_of_another_kind(built):
    cfg = config("ViT-B-32")
    cfg["vision_cfg"]["scale_heads"] = True
    clip = Clip(_built(cfg), None, "scaled")
    for name in ("lora", "rescale", "dualprompt"):
        with pytest.raises(ValueError, match="'scaled' is one with attention of its own"):
            TUNERS[name]().apply(clip, "image")
    TUNERS["adapter"]().apply(clip, "image")
    TUNERS["lora"]().apply(clip, "text")
    assert {name.split(".")[1] for name, p in clip.named_parameters() if p.requires_grad} == {
        "transformer"}


def test_the_decoder_of_coca_and_the_bias_of_siglip_belong_to_no_tower(built):
    for kind, beside in (("coca_ViT-B-32", "text_decoder"), ("ViT-B-16-SigLIP", "logit_bias")):
        clip = copy.deepcopy(built(kind)[1])
        TUNERS["full"]().apply(clip, "both")
        frozen = {name.split(".")[1] for name, p in clip.named_parameters() if not p.requires_grad}
        assert frozen == {"logit_scale", beside}


# ---- the same features as open_clip's


@EACH
@torch.inference_mode()
def test_features_are_those_of_open_clip_and_class_texts_are_cut_where_that_is_exact(built, kind):
    original, clip = built(kind)
    image, text = inputs(clip)
    whole = clip.tokenizer([f"a drawing of a {name}" for name in
                            ("dog", "grey stone bridge", "sun", "cat")])
    theirs = F.normalize(original.encode_text(whole), dim=-1)
    assert (clip.encode_text(text) - theirs).abs().max() < 1e-5
    assert (clip.encode_text(whole) - theirs).abs().max() < 1e-5
    assert text.shape[1] == (9 if kind in CUT else 12)
    theirs = F.normalize(original.encode_image(clip.pixels(image)), dim=-1)
    assert (clip.encode_image(image) - theirs).abs().max() < 1e-5


@EACH
@torch.inference_mode()
def test_bf16_gives_fp32_features_near_those_of_fp32(built, kind):
    clip = copy.deepcopy(built(kind)[1])
    image, text = inputs(clip)
    exact = clip.encode_image(image), clip.encode_text(text)
    clip.precision = "bf16"
    for near, true in zip((clip.encode_image(image), clip.encode_text(text)), exact, strict=True):
        assert near.dtype == torch.float32 and 0 < (near - true).norm(dim=-1).max() < 0.1


@pytest.mark.parametrize("kind", ["ViT-B-16-SigLIP", "MobileCLIP-S1", "coca_ViT-B-32"])
@torch.inference_mode()
def test_where_texts_are_not_cut_cutting_would_change_them(built, kind):
    original, clip = built(kind)
    _, text = inputs(clip)
    whole, cut = (F.normalize(original.encode_text(rows), dim=-1) for rows in (text, text[:, :9]))
    assert (whole - cut).abs().max() > 1e-3


def test_a_random_model_takes_no_weights_of_its_text_tower_from_the_hub(monkeypatch):
    asked = {}

    def create_model(name: str, **options):
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(KeyboardInterrupt):
        load_clip("roberta-ViT-B-32", "random")
    assert asked == {"pretrained_text": False}


@pytest.mark.parametrize("kind", ["RN50", "coca_ViT-B-32", "MobileCLIP-B"])
@torch.inference_mode()
def test_a_folder_holds_a_model_of_any_kind(built, kind, tmp_path):
    original, clip = built(kind)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(kind)}))
    save_file(original.state_dict(), tmp_path / "open_clip_model.safetensors")
    again = load_clip(str(tmp_path)).eval()
    image, text = inputs(clip)
    assert (again.encode_image(image) - clip.encode_image(image)).abs().max() < 1e-5
    assert (again.encode_text(text) - clip.encode_text(text)).abs().max() < 1e-5
    assert torch.equal(inputs(again)[1], text)


# ---- batch norm


@pytest.fixture
def resnet(built, tiny, tmp_path):
    """A run on a residual network."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config("RN50") | {
        "text_cfg": {**config("RN50")["text_cfg"], "context_length": 32}}}))
    return tiny.replace(model=str(tmp_path), pretrained="random", tuner="full", tower="text",
                        method="finetune", batch_size=16)


def last_rows(settings) -> tuple[Clip, bool]:
    """The model of a run, and whether its last rows are those of a fresh evaluation."""
    made = train(settings)
    _, benchmark, stages = prepare(settings)
    fresh = evaluate(made.model, benchmark, [stage.classes for stage in stages], range(6)).rows
    last = made.evals[(made.evals.stage == 2) & made.evals.stage_end].to_dict("records")
    return made.model, [{key: row[key] for key in fresh[0]} for row in last] == fresh


@pytest.mark.parametrize("tower", TOWERS)
def test_statistics_move_in_a_tower_that_is_trained_alone_and_rows_are_true(resnet, tower):
    settings = resnet.replace(tower=tower)
    start = buffers(prepare(settings)[0])
    model, true = last_rows(settings)
    assert true
    assert moved(model, start, {}) == ({} if tower == "text" else {"image": True})


def test_features_are_not_kept_of_a_tower_that_a_method_lets_move(resnet, monkeypatch):
    def after_step(self, clip, batch):
        clip.model.visual.train()
        clip.encode_image(batch.image)

    monkeypatch.setattr(Finetune, "after_step", after_step)
    start = buffers(prepare(resnet)[0])
    model, true = last_rows(resnet)
    assert moved(model, start, {}) == {"image": True} and true


def test_nothing_is_in_training_mode_where_nothing_is_trained(resnet, monkeypatch):
    modes = set()

    def after_step(self, clip, batch):
        modes.update(module.training for module in clip.model.modules())

    monkeypatch.setattr(Frozen, "after_step", after_step)
    train(resnet.replace(method="frozen"))
    assert modes == {False}
