"""Gradients of parameters against a plain backward pass, and what the optimiser made of them."""
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clstudy.losses.functional import match
from clstudy.methods import METHODS
from clstudy.models.tuners import TUNERS
from clstudy.probes import Classes, Gradients, where


@pytest.mark.parametrize(("name", "expected"), [
    ("model.visual.transformer.resblocks.11.attn.qkv.lora_A.default.weight", ("image", "11")),
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", ("image", "0")),
    ("visual.trunk.blocks.3.attn.qkv.weight", ("image", "3")),
    ("visual.conv1.weight", ("image", "outside")),
    ("model.transformer.resblocks.2.ln_1.weight", ("text", "2")),
    ("model.token_embedding.weight", ("text", "outside")),
    ("text.transformer.encoder.layer.5.attention.self.query.weight", ("text", "5")),
    ("text_projection", ("text", "outside")),
    ("model.logit_scale", ("temperature", "outside")),
    ("logit_bias", ("temperature", "outside")),
], ids=str)
def test_where_a_parameter_is(name, expected):
    assert where(name) == expected


def two_terms(clip, batch) -> dict[str, torch.Tensor]:
    """A matching loss, and one that pulls image features to a fixed place."""
    encoded = clip.encode(batch)
    place = F.normalize(
        torch.randn(encoded.image.shape, generator=torch.Generator().manual_seed(5)), dim=-1)
    return {"task": match(encoded.image, encoded.text, encoded.scale, batch.target),
            "drift": 0.3 * ((encoded.image - place)**2).sum() + 0.1 * encoded.text[:, 0].sum()}


def by_hand(clip, loss) -> dict[tuple[str, str], torch.Tensor]:
    """Gradients from a plain backward pass, grouped by the names of the toy model; as one flat
    vector each."""
    clip.zero_grad()
    if loss.requires_grad:
        loss.backward(retain_graph=True)
    groups = {}
    for name, p in clip.named_parameters():
        if p.requires_grad:
            tower = ("temperature" if name == "model.logit_scale" else
                     "image" if name.startswith("model.visual.") else "text")
            block = name.split(".resblocks.")[1].split(
                ".")[0] if ".resblocks." in name else "outside"
            g = torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for key in ((tower, block), (tower, "all")):
                groups.setdefault(key, []).append(g)
    clip.zero_grad()
    return {key: torch.cat(parts) for key, parts in groups.items()}


def cos(a, b) -> float:
    return float(F.cosine_similarity(a.double(), b.double(),
                                     dim=0)) if a.any() and b.any() else float("nan")


@pytest.mark.parametrize("name", TUNERS)
def test_gradients_are_those_of_a_plain_backward_pass(clip, batch, name):
    TUNERS[name]().apply(clip, TUNERS[name].towers[-1])
    terms = two_terms(clip, batch)
    with Gradients(clip) as probe:
        probe.look(terms, stage=3, images_seen=24)
    table = probe.table()
    if name == "none":
        assert len(table) == 0
        return
    assert (table.step == 0).all() and (table.stage == 3).all() and (table.images_seen == 24).all()
    expected = {
        term: by_hand(clip, value)
        for term, value in {**terms, "total": sum(terms.values())}.items()
    }
    rows = table.set_index(["term", "tower", "block"])
    assert set(rows.index) == {(term, *key) for term, groups in expected.items() for key in groups}
    for term, groups in expected.items():
        for key, g in groups.items():
            assert rows.norm[term, *key] == pytest.approx(float(g.norm()), rel=1e-4, abs=1e-7)
            if key[1] == "all":
                for other in expected:
                    value = float("nan") if other == term else cos(g, expected[other][key])
                    assert rows[f"cos {other}"][term, *key] == pytest.approx(
                        value, abs=1e-4, nan_ok=True)
    assert rows.norm.max() > 0 and table.previous.isna().all()
    whole = table[table.block == "all"].set_index(["term", "tower"]).norm
    parts = (table[table.block != "all"].assign(square=lambda r: r.norm**2).groupby(
        ["term", "tower"]).square.sum())
    assert np.allclose(whole.sort_index(), np.sqrt(parts.sort_index()), rtol=1e-5)


def test_terms_that_pull_apart_and_a_tower_without_gradient(clip, batch):
    TUNERS["full"]().apply(clip, "both")
    clip.model.logit_scale.requires_grad_(True)
    image = clip.encode_image(batch.image)
    pull = (image[:, 0]).sum()
    with Gradients(clip) as probe:
        probe.look({"a": pull, "b": -0.5 * pull, "fixed": torch.tensor(2.0)})
    rows = probe.table().set_index(["term", "tower", "block"])
    assert set(probe.table().term) == {"a", "b", "total"}  # what has no graph has no gradient
    assert rows["cos b"]["a", "image", "all"] == pytest.approx(
        -1, abs=1e-5) == rows["cos a"]["b", "image", "all"]
    assert rows["cos a"]["total", "image", "all"] == pytest.approx(1, abs=1e-5)
    assert rows.norm["total", "image", "all"] == pytest.approx(0.5 * rows.norm["a", "image", "all"],
                                                               rel=1e-5)
    for tower in ("text", "temperature"):
        assert rows.norm["a", tower, "all"] == 0 and math.isnan(rows["cos b"]["a", tower, "all"])
    assert ("a", "temperature", "outside") in rows.index


@pytest.mark.parametrize("every", [1, 2])
def test_previous_and_update_of_steps(clip, batch, every):
    TUNERS["lora"]().apply(clip, "both")
    free = [p for p in clip.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, lr=0.5, momentum=0.9)
    grads, weights = [], []
    with Gradients(clip, every) as probe:
        for _ in range(5):
            terms = METHODS["finetune"]().loss(clip, batch)
            probe.look(terms)
            probe.look({})  # the end of a stage: no step
            grads.append(by_hand(clip, terms["task"]))
            weights.append(
                {n: p.detach().clone() for n, p in clip.named_parameters() if p.requires_grad})
            terms["task"].backward()
            optimizer.step()
    table = probe.table()
    assert sorted(set(table.step)) == list(range(0, 5, every)) and set(table.term) == {"task"}
    rows = table.set_index(["step", "tower", "block"])
    for tower, visual in (("image", True), ("text", False)):
        for block in ("0", "1", "all"):
            mine = [n for n in weights[0] if n.startswith("model.visual.") == visual
                    and (block == "all" or f"blocks.{block}." in n)]
            moves = [torch.cat([(now[n] - old[n]).flatten() for n in mine])
                     for old, now in zip(weights[::every], weights[every::every], strict=False)]
            for number, move in enumerate(moves, 1):
                assert rows["update"][every * number, tower, block] == pytest.approx(
                    float(move.norm()), rel=1e-4)
            assert math.isnan(rows["update"][0, tower, block])
            if block == "all":
                assert math.isnan(rows["update previous"][every, tower, block])
                for number in range(1, len(moves)):
                    found = rows["update previous"][every * (number + 1), tower, block]
                    assert found == pytest.approx(cos(moves[number], moves[number - 1]), abs=1e-4)
                for step in range(every, 5, every):
                    expected = cos(grads[step][tower, "all"], grads[step - every][tower, "all"])
                    assert rows.previous[step, tower, block] == pytest.approx(expected, abs=1e-4)
            else:
                assert rows.previous[:, tower, block].isna().all()
    assert (rows["update"].dropna() > 0).all() and math.isnan(rows.previous[0, "image", "all"])


def test_the_update_belongs_to_the_total_where_there_are_terms(clip, batch):
    TUNERS["lora"]().apply(clip, "both")
    with Gradients(clip) as probe:
        for _ in range(2):
            probe.look(two_terms(clip, batch))
            with torch.no_grad():
                for p in clip.parameters():
                    p.add_(0.01 * p.requires_grad)
    table = probe.table()
    assert set(table[table["update"].notna()].term) == {"total"}
    count = sum(p.numel() for name, p in clip.tower("image") if p.requires_grad)
    row = table[(table.step == 1) & (table.term == "total") & (table.tower == "image") &
                (table.block == "all")]
    assert row["update"].item() == pytest.approx(0.01 * count**0.5, rel=1e-4)


def test_other_parameters_at_the_next_stage(clip, batch):
    TUNERS["full"]().apply(clip, "both")
    with Gradients(clip) as probe:
        probe.look(METHODS["finetune"]().loss(clip, batch), stage=1)
        TUNERS["lora"]().apply(clip, "image")
        probe.look(METHODS["finetune"]().loss(clip, batch), stage=2)
        TUNERS["none"]().apply(clip, "both")
        with Classes(clip) as classes:  # lends the loss a gradient, though nothing is trained
            terms = METHODS["finetune"]().loss(clip, batch)
            probe.look(terms, stage=3)
            classes.look(terms, stage=3)
    table = probe.table()
    assert set(table[table.stage == 2].tower) == {"image"} and set(table.stage) == {1, 2}
    assert "update" not in table and table.previous.isna().all()
    assert len(classes.table()) == 6


def test_nothing_of_a_model_is_kept_behind_a_look(clip, batch):
    TUNERS["lora"]().apply(clip, "both")
    with Gradients(clip) as probe:
        probe.look(METHODS["finetune"]().loss(clip, batch))
        assert probe.before and probe.weights
    assert not probe.before and not probe.weights and len(probe.table())
    assert probe.table().equals(probe.table())
