"""Pools of prompts and the methods made of them: how many parameters, what is chosen, what the
prompts do in the tower, each term against naive code, and the ways on: copies, half precision, a
device without values."""
import copy
import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from small_runs import train
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F

from clstudy import RunConfig
from clstudy.data.streams import Stage
from clstudy.losses.functional import match
from clstudy.methods import METHODS
from clstudy.methods.mvp import ignored, prompt_contrast
from clstudy.models.clip import Clip
from clstudy.models.tuners import TUNERS
from clstudy.models.tuners.prompt_pool import MVPPool, Pool, pool_of
from clstudy.runs.run import load_tuned
from clstudy.runs.store import load_or_train
from clstudy.training.setup import prepare

NAMES = ("l2p", "dualprompt", "mvp")  # of tuners, and of the methods made of them
SHORT = {
    "l2p": {"pool": 4, "length": 2,
            "top": 2}, "dualprompt": {"general": 2, "expert": 3, "experts": 4},
    "mvp": {"general": 2, "expert": 3, "experts": 4}
}
EACH = pytest.mark.parametrize("name", NAMES)


def tune(clip, name: str, **options) -> Clip:
    torch.manual_seed(0)
    TUNERS[name](**{**SHORT[name], **options}).apply(clip, "image")
    return clip


def free(clip) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in clip.named_parameters() if p.requires_grad}


def learn(config):
    kept = []
    evals, steps = train(config, keep=kept.append)
    return evals, steps, kept[0]


def values(rows: list[dict]) -> list[float]:
    return [row["value"] for row in rows]


@pytest.fixture
def short(tiny):
    """A run of two stages under a tuner and its method."""
    return lambda name, method=None, **changes: tiny.replace(
        tower="image", tuner=name, tuner_args=SHORT[name], method=method or name, **changes)


# ---- how many


@pytest.mark.parametrize(("name", "options", "count"), [
    ("l2p", {}, 10 * (5 + 1) * 768), ("l2p", {"pool": 7, "length": 3, "top": 1}, 7 * (3 + 1) * 768),
    ("dualprompt", {}, (2 * 2 * 5 + 10 * (3 * 2 * 20 + 1)) * 768),
    ("dualprompt", {"general_blocks": [0], "expert_blocks": [5, 11], "experts": 3, "expert": 4},
     (1 * 2 * 5 + 3 * (2 * 2 * 4 + 1)) * 768),
    ("mvp", {}, (2 * 5 + 10 * (3 * 20 + 1)) * 768 + 10 * 512)])
def test_parameters_on_vit_b_16(name, options, count):
    with torch.device("meta"):  # the geometry without the weights
        clip = Clip(open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16")), None)
        names = {key for key, _ in clip.named_parameters()}
        TUNERS[name](**options).apply(clip, "image")
    assert sum(p.numel() for p in free(clip).values()) == count
    assert {key for key, _ in clip.named_parameters()
            } == names | set(free(clip)) and not names & set(free(clip))
    assert set(free(clip)) <= {
        f"model.visual.transformer.{part}" for part in ("general", "expert", "keys", "mask")
    }


@pytest.mark.parametrize(("depth", "general", "expert"), [
    (12, (0, 1), (2, 3, 4)), (6, (0, 1), (2, 3, 4)), (5, (0, 1), (2, 3, 4)), (4, (0,), (1, 2, 3)), (2, (0,), (1,)),
    (1, (0,), (0,))])
def test_blocks_by_default(depth, general, expert):
    visual = torch.nn.Module()
    visual.transformer = torch.nn.Module()
    visual.transformer.resblocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(depth))
    options = MVPPool().places(visual)
    assert (options["general_blocks"], options["expert_blocks"]) == (general, expert)


# ---- what is chosen


DISTANCE = torch.tensor([[.1, .5, .3], [.2, .9, .1], [.4, .3, .2]])


@pytest.fixture
def pool(clip):
    return pool_of(tune(clip, "l2p", pool=3, top=2, batchwise=False))


def test_the_nearest_are_chosen(pool):
    assert pool.choose(DISTANCE).tolist() == [[0, 2], [2, 0], [2, 1]]
    assert pool.choose(torch.full((2, 3), .5)).tolist() == [[0, 1]] * 2  # ties: the first


def test_a_batch_votes_in_training_only(pool):
    pool.batchwise = True  # votes: 0 twice, 1 once, 2 three times
    assert pool.train().choose(DISTANCE).tolist() == [[2, 0]] * 3
    assert pool.eval().choose(DISTANCE).tolist() == [[0, 2], [2, 0], [2, 1]]


def test_usage_makes_distances_longer(pool):
    pool.top, pool.balanced = 1, True
    assert pool.choose(DISTANCE).tolist() == [[0], [2], [2]]
    pool.used += torch.tensor([3, 0, 1])  # .4 .5 .6 | .8 .9 .2 | 1.6 .3 .4
    for mode in (True, False):
        assert pool.train(mode).choose(DISTANCE).tolist() == [[0], [2], [1]]
    pool.choice = pool.choose(DISTANCE)
    pool.tally()
    assert pool.used.tolist() == [4, 1, 2]


def test_a_stage_trains_its_expert_and_evaluation_takes_the_nearest_of_those_used(pool):
    pool.top = 1
    pool.open(1)
    assert pool.train().choose(DISTANCE).tolist() == [[1]] * 3
    assert pool.eval().choose(DISTANCE).tolist() == [[0], [2], [2]]  # none was used yet
    pool.used += torch.tensor([2, 5, 0])
    assert pool.eval().choose(DISTANCE).tolist() == [[0], [0], [1]]
    pool.open(3)  # there are three
    assert pool.train().choose(DISTANCE).tolist() == [[0], [0], [1]]


def test_an_expert_starts_as_the_one_before(clip):
    pool = pool_of(tune(clip, "dualprompt"))
    before, keys = pool.expert.detach().clone(), pool.keys.detach().clone()
    pool.open(0)
    assert torch.equal(pool.expert, before)
    pool.open(2)
    assert torch.equal(pool.expert[2], before[1]) and not torch.equal(pool.expert[2], before[2])
    assert torch.equal(pool.expert[[0, 1, 3]], before[[0, 1, 3]]) and torch.equal(pool.keys, keys)


@EACH
def test_the_query_is_the_frozen_feature(clip, batch, name):
    before = clip.encode_image(batch.image)
    tune(clip, name).eval().encode_image(batch.image)
    pool = pool_of(clip)
    assert torch.allclose(F.normalize(pool.query @ clip.model.visual.proj, dim=-1), before,
                          atol=1e-6)
    assert not pool.query.requires_grad
    keys = pool.keys.detach()
    distance = [[1 - float(q @ k) / float(q.norm() * k.norm()) for k in keys] for q in pool.query]
    assert pool.choice[:, 0].tolist() == np.argmin(distance, 1).tolist()
    chosen = [[row[k] for k in choice]
              for row, choice in zip(distance, pool.choice.tolist(), strict=True)]
    assert np.allclose(pool.distance().tolist(), chosen, atol=1e-6)


@EACH
@torch.inference_mode()
def test_in_evaluation_no_image_depends_on_another(clip, batch, name):
    tune(clip, name).eval().encode_image(batch.image)
    pool_of(clip).keys.data = pool_of(clip).query[:4]  # so that not all take the same
    together = clip.encode_image(batch.image)
    assert pool_of(clip).choice[:4, 0].tolist() == [0, 1, 2, 3]
    alone = torch.cat([clip.encode_image(image[None]) for image in batch.image])
    assert torch.allclose(together, alone, atol=1e-5)


# ---- what prompts do in the tower


def naive_attention(attn, x, key, value):
    """One image, one head and one token after the other."""
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    k, v, size = torch.cat([k, key]), torch.cat([v, value]), x.shape[-1] // attn.heads
    out = torch.zeros_like(x)
    for head in range(attn.heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(x)):
            share = (k[:, part] @ q[token, part] / math.sqrt(size)).softmax(0)
            out[token, part] = share @ v[:, part]
    return attn.out_proj(out)


def naive_tower(name: str, pool: Pool, x, chosen: list[int]):
    """The tokens of one image through all blocks, with the prompts that it chose."""
    length = len(x)
    for number, block in enumerate(pool.resblocks):
        if name == "l2p":
            more = torch.cat([pool.expert[k, 0, 0] for k in chosen]) if number == 0 else x[:0]
        else:  # two blocks: general, expert
            more = pool.general[0] if number == 0 else pool.expert[chosen[0], 0]
        if name == "dualprompt":
            x = x + naive_attention(block.attn, block.ln_1(x), *more)
            x = x + block.mlp(block.ln_2(x))
        elif name == "mvp":
            x = block(torch.cat([x, more[0]])[None])[0, :length]
        else:
            x = block(torch.cat([x, more])[None])[0]
    return x[:length]


@EACH
@torch.no_grad()
def test_the_tower_against_one_image_at_a_time(clip, name):
    pool = pool_of(tune(clip, name).eval())
    x = torch.randn(3, 5, 32)
    found = pool(x)
    read = found.shape[
        1]  # the last block may give the first token alone, which is the one that is read
    assert found.shape == (3, read, 32) and read in (1, 5)
    for i, chosen in enumerate(pool.choice.tolist()):
        assert torch.allclose(found[i], naive_tower(name, pool, x[i], chosen)[:read], atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("l2p", {"length": 0}), ("dualprompt", {"general": 0, "expert": 0}),
                                               ("mvp", {"general": 0, "expert": 0})])
def test_prompts_of_no_length_change_nothing(clip, batch, name, options):
    before = clip.encode_image(batch.image)
    assert not torch.equal(tune(copy.deepcopy(clip), name).encode_image(batch.image), before)
    assert torch.equal(tune(clip, name, **options).encode_image(batch.image), before)
    assert not {"general", "expert"} & {key.rpartition(".")[2] for key in free(clip)}


@EACH
def test_only_chosen_prompts_get_a_gradient(clip, batch, name):
    tune(clip, name,
         **({"pool": 6, "top": 2, "batchwise": False} if name == "l2p" else {"experts": 6}))
    sum(METHODS[name]().loss(clip.train(), batch).values()).backward()
    pool = pool_of(clip)
    chosen, others = pool.choice.unique().tolist(), set(range(6)) - set(
        pool.choice.unique().tolist())
    assert chosen and others
    size = pool.expert.grad.flatten(1).norm(dim=1)
    assert (size[chosen] > 0).all() and (size[list(others)] == 0).all()
    moved = pool.keys.grad.norm(dim=1) > 0
    assert moved[chosen].all() and (name == "mvp" or not moved[list(others)].any()
                                    )  # MVP pushes keys apart
    assert name == "l2p" or (pool.general.grad.norm() > 0)
    assert name != "mvp" or (pool.mask.grad[chosen].norm(dim=1) > 0).all()
    assert all(p.grad is None for key, p in clip.named_parameters() if key not in free(clip))


# ---- terms


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_task_and_pull(clip, batch, name):
    tune(clip, name).train()
    method = METHODS[name](weight=3.0)
    method.before_stage(clip, batch.stage)  # the second
    terms, pool = method.loss(clip, batch), pool_of(clip)
    encoded = clip.encode(batch)
    assert torch.equal(terms["task"], match(encoded.image, encoded.text, encoded.scale,
                                            batch.target))
    total = 0.0
    for q, chosen in zip(pool.query.tolist(), pool.choice.tolist(), strict=True):
        assert name == "l2p" or chosen == [1]
        for k in chosen:
            key = pool.keys[k].tolist()
            total += 1 - np.dot(q, key) / (math.hypot(*q) * math.hypot(*key))
    assert math.isclose(float(terms["pull"].detach()), 3 * total / pool.choice.numel(),
                        rel_tol=1e-5)
    assert METHODS[name](weight=0).loss(clip, batch)["pull"] == 0


def test_the_pull_turns_chosen_keys_to_their_queries(clip, batch):
    pool = pool_of(tune(clip, "l2p").train())
    for _ in range(30):
        pull = METHODS["l2p"](weight=1).loss(clip, batch)["pull"]
        pool.keys.data -= 5 * torch.autograd.grad(pull, pool.keys)[0]
    assert pull < 0.2  # from about 1


@pytest.mark.parametrize(("options", "weighted"), [({"alpha": 0, "margin": None}, False), ({"alpha": 0}, True),
                                                   ({"margin": None}, True), ({}, True)], ids=str)
def test_mvps_task_is_plain_matching_without_its_parts(clip, batch, options, weighted):
    """An untrained mask is 1 everywhere."""
    tune(clip, "mvp").train()
    task = METHODS["mvp"](**options).loss(clip, batch)["task"]
    pool_of(clip).used.zero_()  # the same choice again
    encoded = clip.encode(batch)
    plain = match(encoded.image, encoded.text, encoded.scale, batch.target)
    assert torch.allclose(task, plain, rtol=1e-6) != weighted


def mvp_by_autograd(encoded, mask, target, alpha, gamma, margin):
    """Focus by one backward pass per image on the texts, as the papers have it; loops over images
    and classes."""
    text = encoded.text.detach().clone().requires_grad_()
    logits = encoded.scale * encoded.image.detach() @ text.T * mask.detach()
    losses = F.cross_entropy(logits, target, reduction="none")
    single = [
        torch.autograd.grad(one, text, retain_graph=True)[0][y]
        for one, y in zip(losses, target, strict=True)
    ]
    mean, = torch.autograd.grad(losses.mean(), text)
    total = 0.0
    for i, y in enumerate(target.tolist()):
        unlike = 1 - torch.cosine_similarity(single[i], mean[y], dim=0)
        scale = 1 - torch.cosine_similarity(encoded.text[y], encoded.image[i], dim=0) + margin
        z = [
            encoded.scale * (encoded.image[i] / scale) @ encoded.text[k] * mask[i, k]
            for k in range(len(text))
        ]
        loss = torch.stack(z).logsumexp(0) - z[y]
        total += (1 - alpha) * loss + alpha * unlike**gamma * loss
    return total / len(target)


def test_mvps_task_against_autograd(clip, batch):
    pool = pool_of(tune(clip, "mvp").train())
    torch.nn.init.normal_(pool.mask, std=2)
    pool.used += torch.tensor([1, 0, 2, 1])
    task = METHODS["mvp"](alpha=0.3, gamma=1.5, margin=0.4).loss(clip, batch)["task"]
    chosen, used = pool.choice[:, 0].tolist(), pool.used.clone()
    pool.used -= pool.votes(pool.choice)  # the same choice again
    encoded = clip.encode(batch)
    assert pool.choice[:, 0].tolist() == chosen and used.sum() == 4 + len(chosen)
    mask = torch.stack([
        torch.stack([2 / (1 + torch.exp(-pool.mask[e] @ t)) for t in encoded.text]) for e in chosen
    ])
    assert (mask - 1).abs().max() > 0.1
    assert torch.allclose(task, mvp_by_autograd(encoded, mask, batch.target, 0.3, 1.5, 0.4),
                          rtol=1e-5)


def test_what_is_ignored_against_autograd():
    image, text = F.normalize(torch.randn(9, 5), dim=1), F.normalize(torch.randn(3, 5),
                                                                     dim=1).requires_grad_()
    mask, target = 2 * torch.rand(9, 3), torch.arange(9) % 3
    logits = 4 * image @ text.T * mask
    losses = F.cross_entropy(logits, target, reduction="none")
    mean, = torch.autograd.grad(losses.mean(), text, retain_graph=True)
    expected = []
    for i, y in enumerate(target.tolist()):
        single, = torch.autograd.grad(losses[i], text, retain_graph=True)
        expected.append(1 - torch.cosine_similarity(single[y], mean[y], dim=0))
    assert torch.allclose(ignored(logits, mask, image, target), torch.stack(expected), atol=1e-5)
    assert max(expected) - min(expected) > 0.5


def test_what_is_ignored_is_between_0_and_2():
    """Images that pull their text one way are focused on little, one against the rest of its class
    most."""
    image = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [-1.0, 0.0]]), dim=1)
    logits, target = torch.zeros(4, 2), torch.tensor([0, 0, 0, 0])
    found = ignored(logits, torch.ones(4, 2), image, target)
    assert torch.allclose(found, 1 - F.normalize(image, dim=1)[:, 0],
                          atol=1e-6)  # ḡ points along −(1, 0)
    assert found[3] == 2 and found[2] == 0


def test_prompt_contrast_against_loops(clip, batch):
    pool = pool_of(tune(clip, "mvp").train())
    clip.encode_image(batch.image)
    pool.keys.data = pool.query[:4] + torch.randn(4, 32) / 100
    pool.used += torch.tensor([2, 1, 3, 5])
    terms = METHODS["mvp"](weight=2.0).loss(clip, batch)
    assert len(pool.choice.unique()) > 1
    pool.used -= pool.votes(pool.choice)  # the usage that the choice was made with
    cosine = lambda a, b: float((a @ b / (a.norm() * b.norm())).detach())  # noqa: E731
    apart, near = [], []
    for q, e in zip(pool.query, pool.choice[:, 0].tolist(), strict=True):
        usage = 1 + int(pool.used[e])
        apart += [math.exp((1 - cosine(pool.keys[e], key)) / usage) for key in pool.keys]
        near.append(math.exp((1 - cosine(q, pool.keys[e])) / usage))
    expected = -math.log(np.mean(apart) / (np.mean(apart) + np.mean(near)) + 1e-6)
    assert math.isclose(float(prompt_contrast(pool).detach()), expected, rel_tol=1e-5)
    assert math.isclose(float(terms["contrast"].detach()), 2 * expected, rel_tol=1e-5)


@EACH
def test_candidates_of_the_batch(clip, batch, name):
    tune(clip, name).train()
    losses = []
    for candidates, given in (("batch", batch), ("seen", batch.present()), ("seen", batch)):
        pool_of(clip).used.zero_()
        losses.append(METHODS[name](candidates=candidates).loss(clip, given)["task"])
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


# ---- short runs


@EACH
def test_a_short_run_is_finite_equal_twice_and_not_fine_tuning(short, name):
    config = short(name)
    evals, steps, clip = learn(config)
    again_evals, again_steps, again = learn(config)
    assert np.isfinite(values(evals)).all() and np.isfinite(values(steps)).all()
    assert evals == again_evals and steps == again_steps
    for (key, one), (_, other) in zip(clip.state_dict().items(),
                                      again.state_dict().items(), strict=True):
        assert torch.equal(one, other), key
    task = [row["value"] for row in steps if row["term"] == "task"]
    _, plain, _ = learn(short(name, "finetune"))
    apart = np.abs(np.array(task) - values(plain))
    assert apart.max() > 0.01 if name != "l2p" else apart.max() > 0


def test_l2p_without_pull_is_fine_tuning_of_the_pool(short):
    _, steps, clip = learn(short("l2p", method_args={"weight": 0}))
    _, plain, other = learn(short("l2p", "finetune"))
    assert [row["value"] for row in steps if row["term"] == "task"] == values(plain)
    assert torch.equal(pool_of(clip).expert, pool_of(other).expert)


def test_a_run_of_dualprompt_trains_an_expert_per_stage(short):
    config = short("dualprompt", optimizer="adam", weight_decay=0)
    _, _, clip = learn(config)
    pool, start = pool_of(clip), pool_of(prepare(config)[0])
    assert pool.used.tolist() == [30, 30, 0, 0]
    moved = [not torch.equal(pool.expert[e], start.expert[e]) for e in range(4)]
    assert moved == [True, True, False, False]
    assert [not torch.equal(pool.keys[e], start.keys[e]) for e in range(4)] == moved
    clip.encode_image(torch.rand(20, 3, 64, 64))
    assert set(pool.choice.flatten().tolist()) <= {0, 1}


def test_dualprompt_with_more_stages_than_experts(short):
    _, steps, clip = learn(
        short("dualprompt").replace(tuner_args={**SHORT["dualprompt"], "experts": 1}))
    assert pool_of(clip).used.tolist() == [60] and len(values(steps)) == 16


def test_mvp_counts_what_it_trains_and_evaluation_does_not(short):
    _, _, clip = learn(short("mvp", steps_per_batch=2, eval_every=8))
    used = pool_of(clip).used
    assert used.sum() == 2 * 60 and (used > 0).sum() > 1


# ---- copies, files, precision, devices


@EACH
def test_copies_and_files(clip, batch, name):
    tune(clip, name).train()
    method = METHODS[name]()
    method.before_stage(clip, Stage(1, (5, 2), np.arange(8)))
    sum(method.loss(clip, batch).values()).backward()
    other = copy.deepcopy(clip)  # with the graph of the last pass still alive
    pool = pool_of(other)
    assert pool._norm[0] is other.model.visual.ln_post and pool._norm[
        0] is not clip.model.visual.ln_post
    with torch.inference_mode():
        before = clip.eval().encode_image(batch.image)
        assert torch.equal(other.eval().encode_image(batch.image), before)
    assert copy.deepcopy(clip) is not None  # with what evaluation left
    with torch.no_grad():
        for p in pool.parameters():
            p.add_(1)
        pool.used += 1
        assert torch.equal(clip.encode_image(batch.image),
                           before)  # the copy has parameters of its own
    other.load_state_dict(clip.state_dict())
    with torch.no_grad():
        assert torch.equal(other.encode_image(batch.image), before) and torch.equal(
            pool.used,
            pool_of(clip).used)
    where = [p.data_ptr() for p in clip.state_dict().values()]
    assert len(set(where)) == len(where)  # no parameter under two names


@EACH
def test_a_stored_model_chooses_as_the_one_that_was_trained(short, name, tmp_path):
    run, images = load_or_train(short(name), tmp_path, keep_model=True), torch.rand(8, 3, 64, 64)
    stored, trained = load_tuned(run), learn(short(name))[2].eval()
    with torch.inference_mode():
        assert torch.equal(stored.encode_image(images), trained.encode_image(images))
    assert torch.equal(pool_of(stored).used, pool_of(trained).used)


@EACH
def test_bf16_is_near_fp32(clip, batch, name):
    tune(clip, name).train()
    method, full = METHODS[name](), clip.encode_image(batch.image)
    choice, clip.precision = pool_of(clip).choice, "bf16"
    half = clip.encode_image(batch.image)
    same = (pool_of(clip).choice == choice).all(1)
    assert same.sum() > 4 and half.dtype == torch.float32 and not torch.equal(half, full)
    assert ((half * full).sum(1)[same] > 0.99).all()
    sum(method.loss(clip, batch).values()).backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in free(clip).values())


@EACH
def test_on_a_device_without_waiting(clip, batch, name):
    there = lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda")  # noqa: E731
    with FakeTensorMode():
        with unset_fake_temporarily():
            tune(clip, name)
        for module in clip.modules():
            for key, p in module.named_parameters(recurse=False):
                setattr(module, key, torch.nn.Parameter(there(p), requires_grad=p.requires_grad))
            for key, b in module.named_buffers(recurse=False):
                setattr(module, key, there(b))
        batch, method = replace(batch, image=there(batch.image), prompts=there(
            batch.prompts)), METHODS[name]()
        for stage in (1, 2):
            method.before_stage(clip.train(), Stage(stage, (5, 2), np.arange(8)))
            terms = method.loss(clip, batch)
            assert all(term.device.type == "cuda" and term.shape == () for term in terms.values())
        assert clip.eval().encode_image(batch.image).device.type == "cuda"


# ---- what is refused


@pytest.mark.parametrize(("name", "options", "said"), [
    ("l2p", {"pool": 0, "top": 1}, "pool=0.*at least 1"), ("l2p", {"length": -1}, "length=-1.*at least 0"),
    ("l2p", {"top": 5}, "top=5.*from 1 to pool=4"), ("l2p", {"top": 0}, "top=0.*at least 1"),
    ("dualprompt", {"general": -1}, "general=-1.*at least 0"), ("mvp", {"expert": -2}, "expert=-2.*at least 0"),
    ("mvp", {"experts": 0}, "experts=0.*at least 1"),
    ("dualprompt", {"general_blocks": [0, 2]}, r"general_blocks=\[0, 2\].*from 0 to 1"),
    ("mvp", {"expert_blocks": [1, 1]}, r"expert_blocks=\[1, 1\].*different numbers")])
def test_wrong_options_of_a_tuner(clip, name, options, said):
    with pytest.raises(ValueError, match=said):
        tune(clip, name, **options)


@pytest.mark.parametrize("tower", ["text", "both"])
@EACH
def test_other_towers(clip, tiny, name, tower):
    assert TUNERS[name].towers == ("image",)
    said = f"tower='{tower}'.*chosen by the image and read by the image tower.*Choices: image"
    with pytest.raises(ValueError, match=said):
        TUNERS[name]().apply(clip, tower)
    with pytest.raises(ValueError, match=said):
        tiny.replace(tuner=name, tower=tower, method=name)


@pytest.mark.parametrize(("name", "options", "said"), [
    *((name, {"candidates": "all"}, "candidates='all'.*batch, seen") for name in NAMES),
    *((name, {"weight": -1}, "weight=-1.*at least 0") for name in NAMES),
    ("mvp", {"alpha": 2}, "alpha=2.*from 0 to 1"), ("mvp", {"gamma": -1}, "gamma=-1.*at least 0"),
    ("mvp", {"margin": 0}, "margin=0.*above 0")])
def test_wrong_options_of_a_method(name, options, said):
    with pytest.raises(ValueError, match=said):
        RunConfig(method=name, tuner=name, tower="image", method_args=options)


@EACH
def test_a_method_needs_its_tuner(clip, batch, name):
    with pytest.raises(ValueError, match=f"method='{name}' needs tuner='{name}', not 'lora'"):
        RunConfig(method=name, tuner="lora", tower="image")
    with pytest.raises(ValueError, match="no pool of prompts.*l2p"):
        METHODS[name]().loss(clip, batch)
