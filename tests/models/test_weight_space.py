"""Weights between two models, and the methods that deploy such: imm, wise_ft, zscl."""
import pytest
import torch
from small_runs import register, train
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from clstudy.methods import METHODS, imm, zscl
from clstudy.models import fisher
from clstudy.models.tuners import TUNERS
from clstudy.models.weight_space import between, named, put, put_beside, tuned


def weights(clip) -> torch.Tensor:
    return parameters_to_vector([p for p in clip.parameters() if p.requires_grad]).detach().clone()


def shaken(clip, seed: int = 0):
    """The same model with other weights, where they are tuned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in clip.parameters():
            if p.requires_grad and p.ndim > 1:
                p.add_(0.1 * (p.std() + 0.1) * torch.randn(p.shape, generator=generator))
    return clip


def watched(monkeypatch, config, method):
    """Run with this method object: evaluations, steps, the deployed model; weights at the start of
    each stage, before each step, and at the end of each stage before and after `after_stage`."""
    seen = {name: [] for name in ("start", "step", "end", "after")}
    before, edit, after, kept = method.before_stage, method.edit_gradients, method.after_stage, []

    def after_stage(clip, batches):
        seen["end"].append(weights(clip))
        after(clip, batches)
        seen["after"].append(weights(clip))

    def before_stage(clip, *stage):
        seen["start"].append(weights(clip))
        before(clip, *stage)

    def edit_gradients(clip):
        seen["step"].append(weights(clip))
        edit(clip)

    method.before_stage, method.after_stage = before_stage, after_stage
    method.edit_gradients = edit_gradients
    register(monkeypatch, "watched", method)
    evals, steps = train(config.replace(method="watched"), keep=kept.append)
    return evals, steps, kept[0], seen


# ---- values


def test_tuned_weights_are_copies_of_what_is_tuned(clip):
    TUNERS["lora"]().apply(clip, "text")
    values = tuned(clip)
    assert list(values) == [name for name, p in clip.named_parameters() if p.requires_grad]
    assert values and all("lora_" in name and "visual" not in name for name in values)
    assert not any(value.requires_grad for value in values.values())
    before = {name: value.clone() for name, value in values.items()}
    shaken(clip)
    assert all(torch.equal(values[name], before[name]) for name in values)
    assert not all(
        torch.equal(values[name], p) for name, p in clip.named_parameters() if name in values)


def test_between_by_hand():
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.0]])}
    end = {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[8.0]])}
    found = between(start, end, 0.25)
    assert found["a"].tolist() == [1.5, -1.0] and found["b"].tolist() == [[2.0]]
    each = between(start, end, {"a": torch.tensor([1.0, 0.5]), "b": torch.tensor([[0.0]])})
    assert each["a"].tolist() == [3.0, 0.0] and each["b"].tolist() == [[0.0]]
    with pytest.raises(ValueError, match="only one has b"):
        between(start, {"a": end["a"]}, 0.5)


def test_the_ends_of_a_path_are_exact():
    start, end = ({"a": torch.randn(1000, generator=torch.Generator().manual_seed(seed))}
                  for seed in (0, 1))
    ones, zeros = {"a": torch.ones(1000)}, {"a": torch.zeros(1000)}
    for share, expected in ((0, start), (1, end), (ones, end), (zeros, start)):
        assert torch.equal(between(start, end, share)["a"], expected["a"])


def test_values_are_put_into_the_model_that_they_came_from(clip):
    TUNERS["mvp"]().apply(clip, "image")
    values = tuned(clip)
    frozen = {name: p.clone() for name, p in clip.named_parameters() if not p.requires_grad}
    changed = tuned(shaken(clip))
    assert put(clip, values) is clip
    assert torch.equal(weights(clip), torch.cat([v.flatten() for v in values.values()]))
    used = next(name for name, _ in clip.named_buffers() if name.endswith("used"))
    put(clip, changed | {used: torch.arange(len(dict(clip.named_buffers())[used]))})
    assert torch.equal(weights(clip), torch.cat([v.flatten() for v in changed.values()]))
    assert dict(clip.named_buffers())[used].tolist()[:3] == [0, 1, 2]
    named_now = dict(clip.named_parameters())
    assert all(torch.equal(named_now[name], value) for name, value in frozen.items())
    assert [name for name, p in clip.named_parameters() if p.requires_grad] == list(values)
    with pytest.raises(ValueError, match="no weights 'other'"):
        put(clip, {"other": torch.ones(1)})


def test_a_row_of_weights_by_their_names(clip):
    values = tuned(clip)
    again = named(torch.cat([value.flatten() for value in values.values()]), values)
    assert again.keys() == values.keys()
    assert all(torch.equal(again[name], values[name]) for name in values)
    in_order = parameters_to_vector(values.values())  # of the optimiser and of the Fisher
    assert in_order.equal(weights(clip))


def test_buffers_are_those_of_the_trained_model(clip, toy_model):
    from clstudy import load_clip

    other = load_clip(str(toy_model))
    for model in (clip, other):
        TUNERS["mvp"]().apply(model, "image")
    used = next(name for name, _ in clip.named_buffers() if name.endswith("used"))
    dict(clip.named_buffers())[used].add_(7)
    start = tuned(other)
    assert put_beside(other, shaken(clip), start) is other
    assert (dict(other.named_buffers())[used] == 7).all()
    assert torch.equal(weights(other), torch.cat([value.flatten() for value in start.values()]))


def test_the_path_between_two_loras_is_curved(clip):
    """At α the update is α² B A + α (1 − α) B A_0, if B starts at zero: what the docstrings say."""
    TUNERS["lora"]().apply(clip, "image")
    start, end = tuned(clip), tuned(shaken(clip))
    a, b = (next(name for name in start if f"qkv.lora_{factor}" in name) for factor in "AB")
    assert (start[b] == 0).all() and (end[b] != 0).any()
    middle = between(start, end, 0.3)
    found = middle[b] @ middle[a]
    assert torch.allclose(found, 0.09 * end[b] @ end[a] + 0.21 * end[b] @ start[a], atol=1e-7)
    assert not torch.allclose(found, 0.3 * end[b] @ end[a], atol=1e-4)


# ---- methods that are fine-tuning until the model is deployed


@pytest.mark.parametrize("name", ["imm", "wise_ft", "zscl"])
@pytest.mark.parametrize("tuner", ["lora", "full", "adapter"])
def test_a_look_in_the_middle_of_a_stage_does_not_disturb_training(tiny, name, tuner):
    config, ends = tiny.replace(method=name, tuner=tuner, lr=1e-3), []
    plain, steps = train(config, keep=ends.append)
    looked, same = train(config.replace(eval_every=8), keep=ends.append)
    assert steps == same and torch.equal(weights(ends[0]), weights(ends[1]))
    assert [row for row in looked if row["stage_end"]] == plain and len(looked) > len(plain)


@pytest.mark.parametrize(("name", "args"), [("imm", {}), ("imm", {"mode": "mode"}), ("imm", {"carry": False}),
                                            ("wise_ft", {})])
def test_at_zero_the_model_of_the_start_is_deployed(tiny, name, args):
    """Exactly; without carrying the start of the second stage is no longer that of the first."""
    starts, ends = [], []
    evals, steps = train(tiny.replace(method=name, method_args=args | {"alpha": 0}, eval_every=8),
                         keep=ends.append)
    train(tiny.replace(method="finetune", lr=1e-30), keep=starts.append)
    rows = {stage: [row["value"] for row in evals
                    if row["stage"] == stage and row["candidates"] == "all"] for stage in (0, 1, 2)}
    assert steps and rows[0] == rows[1]
    if args == {"carry": False}:
        assert not torch.equal(weights(ends[0]), weights(starts[0]))
    else:
        assert rows[0] == rows[2]
        assert torch.allclose(weights(ends[0]), weights(starts[0]), atol=1e-12)


@pytest.mark.parametrize(("name", "args"), [("imm", {"alpha": 1, "carry": False}), ("imm", {"alpha": 1}),
                                            ("wise_ft", {"alpha": 1}), ("agem", {"replay": 0})])
@pytest.mark.parametrize("candidates", ["seen", "phase", "batch"])
def test_at_one_it_is_fine_tuning_to_the_bit(tiny, name, args, candidates):
    config, ends = tiny.replace(eval_every=16, steps_per_batch=2), []
    found = train(config.replace(method=name, method_args=args | {"candidates": candidates}),
                  keep=ends.append)
    expected = train(config.replace(method="finetune", method_args={"candidates": candidates}),
                     keep=ends.append)
    assert found == expected and torch.equal(weights(ends[0]), weights(ends[1]))


# ---- IMM


def test_the_mean_is_taken_at_the_end_of_each_stage_and_carried_on(monkeypatch, tiny):
    _, _, deployed, seen = watched(monkeypatch, tiny, METHODS["imm"](alpha=0.3))
    for start, end, after in zip(seen["start"], seen["end"], seen["after"], strict=True):
        assert torch.allclose(after, 0.7 * start + 0.3 * end, atol=1e-7)
        assert (end - start).abs().max() > 1e-3
    assert torch.equal(seen["start"][1], seen["after"][0])
    assert torch.equal(weights(deployed), seen["after"][1])


def test_without_carrying_training_is_fine_tuning_and_the_mean_is_evaluated(monkeypatch, tiny):
    _, plain, _, tune = watched(monkeypatch, tiny, METHODS["finetune"]())
    _, steps, deployed, seen = watched(monkeypatch, tiny, METHODS["imm"](alpha=0.3, carry=False))
    assert steps == plain and torch.equal(seen["after"][1], tune["end"][1])
    assert torch.allclose(weights(deployed), 0.7 * tune["start"][1] + 0.3 * tune["end"][1],
                          atol=1e-7)


def test_what_is_deployed_in_the_middle_is_what_would_be_fused_then(clip, batch):
    method, start = METHODS["imm"](alpha=0.2), weights(clip)
    assert method.deploy(clip) is clip  # nothing has begun
    method.before_stage(clip, batch.stage)
    middle = weights(shaken(clip))
    assert torch.allclose(weights(method.deploy(clip)), 0.8 * start + 0.2 * middle, atol=1e-7)
    assert torch.equal(weights(clip), middle)
    end = weights(shaken(clip, 1))
    assert torch.allclose(weights(method.deploy(clip)), 0.8 * start + 0.2 * end, atol=1e-7)


@pytest.mark.parametrize("carry", [True, False])
def test_the_mode_weighs_each_weight_by_its_precision(monkeypatch, clip, batch, carry):
    """Two stages, with Fisher informations that are given: of the start 1, 2, …, of the ends
    random, some zero."""
    TUNERS["lora"]().apply(clip, "image")
    count, generator = len(weights(clip)), torch.Generator().manual_seed(0)
    ends = [
        torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) > 0.3)
        for _ in range(2)
    ]
    of_start = torch.arange(count).float()
    monkeypatch.setattr(imm, "squared_scores", lambda model, parameters, batch, draws: (
        of_start if model is method.fused else ends[len(done)]))
    method, done = METHODS["imm"](alpha=0.3, mode="mode", carry=carry), []
    old = of_start / of_start[of_start > 0].mean()
    for stage in (0, 1):
        start = weights(clip)
        method.before_stage(clip, batch.stage)
        end = weights(shaken(clip, stage))
        method.after_stage(clip, [batch, batch])
        new = ends[stage] / ends[stage][ends[stage] > 0].mean()
        rows = [row.double().tolist() for row in (start, end, old, new)]
        expected = [
            s * 0.7 + e * 0.3 if f + g == 0 else (0.7 * f * s + 0.3 * g * e) / (0.7 * f + 0.3 * g)
            for s, e, f, g in zip(*rows, strict=True)
        ]
        deployed = weights(method.deploy(clip)).double()
        assert torch.allclose(deployed, torch.tensor(expected).double(), atol=1e-6)
        assert torch.equal(weights(clip), weights(method.deploy(clip)) if carry else end)
        old = 0.7 * old + 0.3 * new if carry else new
        done.append(stage)
    assert torch.allclose(method.fisher, old, rtol=1e-5)
    assert carry or method.fisher[method.fisher > 0].mean().item() == pytest.approx(1, rel=1e-4)


def test_the_fisher_of_the_first_start_is_taken_at_the_start(monkeypatch, clip, batch):
    TUNERS["lora"]().apply(clip, "both")
    method, calls = METHODS["imm"](mode="mode", candidates="batch", draws=2), []
    scores = fisher.squared_scores
    monkeypatch.setattr(imm, "squared_scores", lambda model, parameters, batch, draws: (
        calls.append((weights(model), batch.classes, draws, model.training))
        or scores(model, parameters, batch, draws)))
    start = weights(clip)
    method.before_stage(clip, batch.stage)
    end = weights(shaken(clip.train()))
    method.after_stage(clip, [batch])
    assert len(calls) == 2 and torch.equal(calls[0][0], end) and torch.equal(calls[1][0], start)
    assert all(call[1:] == (batch.present().classes, 2, False) for call in calls)
    method.before_stage(clip, batch.stage)
    method.after_stage(clip, [batch])
    assert len(calls) == 3  # that of the second start is known


def test_mode_and_mean_differ_and_a_stage_without_images_fuses_nothing(
        monkeypatch, tiny, clip, batch):
    ends = [
        watched(monkeypatch, tiny, METHODS["imm"](mode=mode))[3]["after"]
        for mode in ("mean", "mode")
    ]
    assert (ends[0][0] - ends[1][0]).abs().max() > 1e-4
    method, start = METHODS["imm"](mode="mode"), weights(clip)
    method.before_stage(clip, batch.stage)
    method.after_stage(clip, [])
    assert torch.equal(weights(clip), start) and method.fisher is None


# ---- WiSE-FT


def test_wise_ft_trains_as_fine_tuning_and_deploys_between_the_first_model_and_the_last(
        monkeypatch, tiny):
    tuned_evals, plain, _, tune = watched(monkeypatch, tiny, METHODS["finetune"]())
    evals, steps, deployed, seen = watched(monkeypatch, tiny, METHODS["wise_ft"](alpha=0.3))
    assert steps == plain and torch.equal(seen["after"][1], tune["end"][1])
    assert torch.allclose(weights(deployed), 0.7 * tune["start"][0] + 0.3 * tune["end"][1],
                          atol=1e-7)
    assert [row for row in evals
            if row["stage"] == 0] == [row for row in tuned_evals if row["stage"] == 0]
    assert evals != tuned_evals


# ---- ZSCL


@pytest.fixture
def started(clip, batch):
    """A method with three references a step, at the start of a stage; the model has moved since."""
    method = METHODS["zscl"](references=3, weight=0.7, temperature=1.5, anchor=0.4)
    method.before_stage(clip, batch.stage)
    assert method.rehearse(clip, batch) is batch
    return method, shaken(clip)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float(sum(a.exp() * (a - b) for a, b in zip(p, q, strict=True)))


def test_the_terms_of_zscl_by_hand(started, batch):
    method, clip = started
    drawn, terms = method.drawn, method.loss(clip, batch)
    assert drawn["pixels"].shape == (3, 3, 64, 64) and drawn["text"].shape == (3, 16)
    s = clip.scale().detach()
    z = (s * clip.encode_image(drawn["pixels"]) @ drawn["text"].T).detach()
    old = s * method.teacher.encode_image(drawn["pixels"]) @ drawn["text"].T
    rows, columns = (sum(kl(old[i] / 1.5, z[i] / 1.5) for i in range(3)) / 3,
                     sum(kl(old[:, j] / 1.5, z[:, j] / 1.5) for j in range(3)) / 3)
    assert terms["images"].item() == pytest.approx(0.7 * 1.5**2 * rows, rel=1e-4) and rows > 1e-4
    assert terms["texts"].item() == pytest.approx(0.7 * 1.5**2 * columns,
                                                  rel=1e-4) and columns > 1e-4
    moved = (weights(clip) - parameters_to_vector(method.teacher.parameters())).double()
    assert terms["anchor"].item() == pytest.approx(0.4 * float(moved.square().sum()), rel=1e-4)
    assert torch.equal(terms["task"], METHODS["finetune"]().loss(clip, batch)["task"])
    method.candidates, method.anchor = "phase", 0.0
    few = method.loss(clip, batch)
    assert list(few) == ["task", "images", "texts"] and few["task"] < terms["task"]
    assert torch.equal(few["task"], METHODS["finetune"](candidates="phase").loss(clip,
                                                                                 batch)["task"])


def test_the_gradient_is_that_of_the_cross_entropy_of_the_released_code(started, batch):
    method, clip = started
    drawn, s = method.drawn, clip.scale().detach()
    z = s * clip.encode_image(drawn["pixels"]) @ drawn["text"].T
    old = s * method.teacher.encode_image(drawn["pixels"]) @ drawn["text"].T
    code = sum(
        F.cross_entropy(a / 1.5, (b / 1.5).softmax(1)) * 1.5**2
        for a, b in ((z, old), (z.T, old.T)))
    terms, proj = method.loss(clip, batch), clip.model.visual.proj
    ours = torch.autograd.grad((terms["images"] + terms["texts"]) / 0.7, proj)[0]
    assert torch.allclose(ours,
                          torch.autograd.grad(code, proj)[0], atol=1e-6) and ours.abs().max() > 1e-3


def test_the_distillation_reaches_the_image_tower_only(started, batch):
    method, clip = started
    terms = method.loss(clip, batch)
    (terms["images"] + terms["texts"]).backward()
    assert clip.model.visual.proj.grad.abs().max() > 0
    assert all(p.grad is None for _, p in clip.tower("text"))


def test_references_are_drawn_anew_and_each_is_taught_once(clip, batch, toy):
    pairs, method = toy().load().reference(), METHODS["zscl"](references=4)
    method.before_stage(clip, batch.stage)
    asked = {"image": 0, "text": 0}
    for tower, encode in (("image", method.teacher.encode_image), ("text",
                                                                   method.teacher.encode_text)):
        def counting(inputs, tower=tower, encode=encode):
            asked[tower] += len(inputs)
            return encode(inputs)
        setattr(method.teacher, f"encode_{tower}", counting)
    images = method.teacher.encode_image(pairs.images)
    texts = method.teacher.encode_text(clip.tokenize(list(pairs.captions)))
    asked.update(image=0, text=0)
    torch.manual_seed(0)
    found = []
    for _ in range(12):
        method.rehearse(clip, batch)
        rows = [next(i for i, image in enumerate(pairs.images) if torch.equal(image, one))
                for one in method.drawn["pixels"]]
        assert len(set(rows)) == 4 and torch.allclose(method.drawn["image"], images[rows],
                                                      atol=1e-6)
        near = (method.drawn["text"] @ texts.T).max(1)
        assert torch.allclose(near.values, torch.ones(4), atol=1e-5)  # a caption of the reference
        found.append((rows, {int(j) for j in near.indices}))
    assert len({tuple(rows) for rows, _ in found}) > 9
    assert asked == {"image": len(method.images), "text": len(method.texts)}
    assert len(method.images) == 12 and len(method.texts) == 18  # all of them by now
    mates = [{int(j) for j in range(18) if pairs.owner[j] in rows} for rows, _ in found]
    assert not all(
        texts <= own
        for own, (_, texts) in zip(mates, found, strict=True))  # not the images' captions


def test_the_teacher_is_the_pretrained_model_in_every_stage(monkeypatch, tiny):
    method = METHODS["zscl"](average_every=0)
    _, steps, _, seen = watched(monkeypatch, tiny, method)
    taught = parameters_to_vector([p for n, p in method.teacher.named_parameters() if "lora_" in n])
    assert torch.equal(taught, seen["start"][0]) and not any(p.requires_grad
                                                             for p in method.teacher.parameters())
    first = {
        term: [row["value"] for row in steps if row["term"] == term] for term in ("images", "texts")
    }
    for values in first.values():
        assert abs(values[0]) < 1e-6 < 1e-5 < values[4]  # the first step of either stage


def test_the_anchor_is_the_start_of_each_stage(monkeypatch, tiny):
    _, steps, _, seen = watched(monkeypatch, tiny.replace(steps_per_batch=1),
                                METHODS["zscl"](anchor=2.0))
    anchors = [row["value"] for row in steps if row["term"] == "anchor"]
    for number, value in enumerate(anchors):
        moved = seen["step"][number] - seen["start"][number // 4]
        assert value == pytest.approx(2 * float(moved.double().square().sum()), rel=1e-4, abs=1e-12)
    assert anchors[0] == anchors[4] == 0 < min(anchors[1:4])


@pytest.mark.parametrize("every", [1, 2, 3, 4, 100])
def test_the_average_is_of_the_start_of_every_so_many_steps_and_of_the_end(
        monkeypatch, tiny, every):
    method = METHODS["zscl"](average_every=every)
    _, _, deployed, seen = watched(monkeypatch, tiny, method)  # four steps in each of two stages
    for stage in (0, 1):
        after = [*seen["step"][4 * stage:4 * stage + 4],
                 seen["end"][stage]]  # after 0, 1, 2, 3, 4 steps
        models = [after[0], *(after[step] for step in range(1, 4) if step % every == 0), after[4]]
        assert torch.allclose(seen["after"][stage], torch.stack(models).mean(0), atol=1e-6)
    assert torch.equal(seen["start"][1], seen["after"][0]) and torch.equal(
        weights(deployed), seen["after"][1])


def test_the_average_is_deployed_in_the_middle_too(clip, batch):
    method, start = METHODS["zscl"](), weights(clip)
    assert method.deploy(clip) is clip
    method.before_stage(clip, batch.stage)
    now = weights(shaken(clip))
    assert torch.allclose(weights(method.deploy(clip)), (start + now) / 2, atol=1e-7)
    assert torch.equal(weights(clip), now)
    off = METHODS["zscl"](average_every=0)
    off.before_stage(clip, batch.stage)
    off.after_stage(clip, [])
    assert off.deploy(clip) is clip and torch.equal(weights(clip), now)


def test_zscl_keeps_the_similarities_of_the_references(tiny, toy):
    config, drift, starts = tiny.replace(tower="image", steps_per_batch=3), {}, []
    train(config.replace(method="finetune", lr=1e-30), keep=starts.append)
    pairs = toy().load().reference()
    for name, args in (("finetune", {}), ("zscl", {"average_every": 0, "weight": 10.0})):
        ends = []
        train(config.replace(method=name, method_args=args), keep=ends.append)
        old, new = (m.encode_image(pairs.images) @ m.encode_text(m.tokenize(list(pairs.captions))).T
                    for m in (starts[0].eval(), ends[0].eval()))
        drift[name] = (new - old).square().mean().item()
    assert drift["zscl"] < 0.5 * drift["finetune"]


@pytest.mark.parametrize("form", [zscl.MTIL, zscl.CIL])
def test_the_whole_of_zscl_has_all_its_parts_at_once(monkeypatch, tiny, form):
    """As the released scripts run it; k shortened with the stages."""
    method = METHODS["zscl"](**form | {"average_every": 2, "references": 4})
    _, steps, _, seen = watched(monkeypatch, tiny.replace(tuner="full", lr=1e-3), method)
    terms = {row["term"] for row in steps if row["step"] == 1 and row["value"] > 0}
    assert terms == {"task", "images", "texts"} | ({"anchor"} if form["anchor"] else set())
    for end, after in zip(seen["end"], seen["after"], strict=True):
        assert not torch.allclose(end, after, atol=1e-5)  # the average goes on, not the last model
