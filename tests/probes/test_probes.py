"""What all probes have in common: a look changes nothing, in a run, in a loop of one's own and on
the device."""
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from small_runs import train
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F

from clstudy.data.types import Labelled
from clstudy.losses.functional import match
from clstudy.methods import METHODS
from clstudy.models.clip import Clip
from clstudy.models.tuners import TUNERS
from clstudy.probes import Classes, Drift, Gradients, Seen, reachable
from clstudy.training import probing
from clstudy.training.monitor import NotFinite
from clstudy.training.probing import PROBES, open_probes
from clstudy.training.setup import prepare

ALL = tuple(PROBES)


# ---- what a probe leaves behind


def everything(model) -> list:
    """All that a look must leave as it was."""
    return [[p.detach().clone() for p in model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [b.clone() for b in model.buffers()], [torch.get_rng_state()],
            [torch.from_numpy(np.random.get_state()[1])],
            [torch.tensor(m.training) for m in model.modules()],
            [torch.tensor(p.requires_grad) for p in model.parameters()]]


def same(one: list, other: list) -> bool:
    return all((a is b) if a is None or b is None else torch.equal(a, b)
               for left, right in zip(one, other, strict=True)
               for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", [name for name in ALL if name != "towers"])  # looks at nothing
def test_a_look_changes_nothing(toy, clip, batch, name):
    TUNERS["adapter"]().apply(clip, "both")  # with dropout
    clip.train().model.visual.transformer.eval()  # and modes that differ
    for number, p in enumerate(clip.parameters()):
        p.grad = torch.full_like(p, number) if number % 2 else None
    prompts = clip.class_text(list(toy().load().train.class_names), toy().load().train.template)
    before = everything(clip)
    with open_probes([name], clip, toy().load(), prompts) as watching:
        assert same(before, everything(clip))
        torch.manual_seed(3)
        terms = METHODS["finetune"]().loss(clip, batch)
        before = everything(clip)
        watching.look({**terms, "more": 2 * terms["task"]}, 1, 0)
        watching.look({}, 1, 8)
        assert same(before, everything(clip))
        sum(terms.values()).backward()  # the graph is still there
        before = everything(clip)
    assert same(before, everything(clip))
    assert len(watching.probes[name].table())
    assert not same(before, [[p + 1 for p in before[0]], *before[1:]])


def methods_of(kind: type) -> dict:
    return {name: vars(kind).get(name) for name in ("encode", "encode_image", "encode_text")}


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_nothing_stays_patched(clip, toy_cfg, error):
    class Own(open_clip.model.CLIP):  # inherits what is watched
        pass

    owners = [clip, open_clip.model.CLIP(**toy_cfg), Own(**toy_cfg)]
    before = [methods_of(type(owner)) for owner in owners]
    try:
        with ExitStack() as stack:
            for owner in [*owners, owners[1]]:  # one of them twice
                stack.enter_context(Classes(owner))
            assert [methods_of(type(owner)) for owner in owners] != before
            if error:
                raise error
    except RuntimeError:
        pass
    assert [methods_of(type(owner)) for owner in owners] == before
    assert not any(
        vars(owner).keys() & {"encode", "encode_image", "encode_text"} for owner in owners)


def test_a_run_that_stops_leaves_nothing_patched(tiny):
    before = methods_of(Clip)
    with pytest.raises(NotFinite):
        train(tiny.replace(lr=1e30), probes=ALL)
    assert methods_of(Clip) == before


def trained(config, chosen: tuple, notes: dict) -> tuple[list, list, dict]:
    """Evaluations, steps and weights of a run."""
    kept = []
    evals, steps = train(config, keep=kept.append, probes=chosen, notes=notes)
    return evals, steps, kept[0].state_dict()


def same_to_the_bit(config) -> tuple[pd.DataFrame, dict]:
    """Train without and with probes; the steps and the tables."""
    notes = {}
    (evals, steps, weights), (evals2, steps2, weights2) = (trained(config, chosen, notes)
                                                           for chosen in ((), ALL))
    assert evals == evals2 and steps == steps2 and len(evals)
    assert weights.keys() == weights2.keys()
    assert not [key for key, values in weights.items() if not torch.equal(values, weights2[key])]
    return pd.DataFrame(steps), notes


def widest(tuner: str) -> str:
    """A tower that the tuner goes with, both if it can."""
    towers = TUNERS[tuner].towers
    return "both" if "both" in towers else towers[0]


TUNER = {name: METHODS[name].needs_tuner or "lora" for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_same_to_the_bit_with_probes(tiny, name):
    args = {"ranpac": {"width": 40}}.get(name, {})  # to spare time
    config = tiny.replace(method=name, method_args=args, tuner=TUNER[name],
                          tower=widest(TUNER[name]), eval_every=16, steps_per_batch=2,
                          batch_size=15)
    steps, notes = same_to_the_bit(config)
    assert set(notes) - {"method"} == {"cost", *ALL}
    for probe in ("gradients", "classes"):
        if not METHODS[name]().trains:
            assert len(notes[probe]) == 0
        else:  # every step, under its number
            found = notes[probe][["step", "stage", "images_seen"]].drop_duplicates()
            expected = steps[["step", "stage", "images_seen"]].drop_duplicates()
            assert found.to_dict("list") == expected.to_dict("list")
            assert set(notes[probe].term) - {"total"} <= set(steps.term)
    ends = [0, 4, 8] if METHODS[name]().trains else [0]
    assert notes["drift"].step.drop_duplicates().tolist() == ends and len(
        notes["drift"]) == 6 * len(ends)


OTHERS = [{"tower": "image"}, {"tower": "text"}, {"precision": "bf16"},
          {"optimizer": "sgd",
           "clip_norm": 1.0}, *({"tuner": name, "tower": widest(name), "lr": 1e-3}
                                for name in TUNERS if name not in ("none", *TUNER.values()))]


@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_other_settings_are_the_same_to_the_bit_with_probes(tiny, settings):
    same_to_the_bit(tiny.replace(method="finetune", **settings))


def test_an_unknown_probe_is_refused_in_a_run(tiny):
    with pytest.raises(
            ValueError,
            match="probes='drifts' is unknown. Did you mean drift.*classes, drift, gradients"):
        train(tiny, probes=["drifts"])


# ---- by name


def test_the_references_of_a_run_are_its_first_test_images_and_its_prompts(clip, toy, monkeypatch):
    monkeypatch.setattr(probing, "IMAGES_PER_CLASS", 3)
    benchmark = toy().load()
    few = benchmark.test.labels != 1  # a class without test images
    test = Labelled(benchmark.test.images[torch.from_numpy(few)], benchmark.test.labels[few],
                    benchmark.test.class_names, benchmark.test.template)
    benchmark = type(benchmark)("few", benchmark.train, test, benchmark.captions, benchmark.groups)
    prompts = clip.class_text(list(test.class_names), test.template)
    drift, classes = PROBES["drift"](clip, benchmark, prompts), PROBES["classes"](clip, benchmark,
                                                                                  prompts)
    assert drift.classes == [0, 2, 3, 4, 5] == list(classes.image_means) == list(
        classes.text_starts)
    assert [drift.labels.count(k) for k in drift.classes] == [3] * 5
    with torch.no_grad():
        for k in drift.classes:
            rows = torch.from_numpy(np.flatnonzero(test.labels == k)[:3])
            mean = clip.encode_image(test.images[rows]).mean(0)
            assert torch.allclose(classes.image_means[k], mean / mean.norm(), atol=1e-6)
            assert torch.allclose(classes.text_starts[k],
                                  clip.encode_text(prompts[k:k + 1])[0], atol=1e-6)


def test_in_a_run_probes_look_together_each_as_it_would_alone(tiny):
    together, alone = {}, {}
    train(tiny.replace(method="finetune"), probes=ALL, notes=together)
    gradients, classes, drift = (together[name] for name in ("gradients", "classes", "drift"))
    assert set(drift["class"]) == set(classes["class"]) == {
        "red brick", "green leaf", "blue door", "grey stone", "yellow sun", "black cat"
    }
    # the start and two stage ends: ten steps are more than there are
    assert drift[["stage", "images_seen"]].drop_duplicates().to_numpy().tolist() == [[0,
                                                                                      0], [1, 30],
                                                                                     [2, 60]]
    assert drift[drift.stage == 2].text.max() > 1e-4
    assert set(gradients.tower) == {"image", "text"}
    absent = classes[~classes.present]
    assert len(absent) and (absent.attraction == 0).all() and (absent.repulsion > 0).all()
    assert (classes.unexplained < 1e-2).all()
    assert classes.push.notna().all() and classes[
        classes.present]["image push"].notna().all()  # has references
    train(tiny.replace(method="finetune"), probes=("gradients",), notes=alone)
    pd.testing.assert_frame_equal(alone["gradients"], gradients)


# ---- a loop of one's own, on open_clip's model


@pytest.fixture
def own(toy_cfg):
    """A plain open_clip model with images, tokens, and the row of each image's text."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**toy_cfg).train()
    tokens = torch.zeros(4, 32, dtype=torch.long)
    tokens[:, 0], tokens[:, 3] = 49406, 49407
    tokens[:, 1:3] = torch.arange(1, 9).view(4, 2)
    return model, torch.randn(6, 3, 64, 64), tokens, torch.tensor([0, 1, 1, 2, 0, 0])


NAMES = ["ant", "bee", "cod", "doe"]


@pytest.mark.parametrize("way", ["encode", "call", "call by keyword"])
def test_classes_on_a_plain_model(own, way):
    model, images, tokens, target = own
    labels = [NAMES[y] for y in target]
    with Classes(model) as probe:
        if way == "encode":
            f, t = model.encode_image(images, normalize=True), model.encode_text(
                tokens, normalize=True)
            s = model.logit_scale.exp()
        else:
            f, t, s = model(images, tokens) if way == "call" else model(image=images, text=tokens)
        loss = match(f, t, s, target)
        probe.look({"task": loss}, labels=labels, classes=NAMES)
        loss.backward()
    table = probe.table().set_index("class")
    assert list(table.index) == NAMES and table.present.tolist() == [True, True, True, False]
    f, t = (model.encode_image(
        images, normalize=True).detach(), model.encode_text(tokens, normalize=True).detach())
    c = s.item() / 6 * ((s.item() * f @ t.T).softmax(-1) - F.one_hot(target, 4))
    assert np.allclose(table.gradient, (c.T @ f).norm(dim=-1), rtol=1e-4)
    assert np.allclose(table.attraction, (c.clamp(max=0).T @ f).norm(dim=-1), rtol=1e-4, atol=1e-8)
    assert table.attraction["doe"] == 0 and (table.unexplained < 1e-4).all()
    assert all(p.grad is not None for p in model.visual.parameters())


def test_classes_given_features(own):
    model, images, tokens, target = own
    f, t = F.normalize(model.encode_image(images), dim=-1), F.normalize(
        model.encode_text(tokens), dim=-1)
    loss = match(f, t, model.logit_scale.exp(), target)
    with Classes() as probe:
        probe.look({"task": loss}, labels=target, classes=range(4), image=f, text=t)
    with Classes(model) as other:
        f, t, s = model(images, tokens)
        other.look({"task": match(f, t, s, target)}, labels=target, classes=range(4))
    numbers = probe.table().select_dtypes("number").astype(float)
    assert np.allclose(numbers,
                       other.table()[numbers.columns].astype(float), rtol=1e-3, atol=1e-6,
                       equal_nan=True)


def test_classes_of_a_frozen_tower_of_a_plain_model(own):
    """Its texts are encoded without gradients, as one does with a tower that is not trained."""
    model, images, tokens, target = own
    tables = []
    for frozen in (False, True):
        with Classes(model) as probe:
            with torch.set_grad_enabled(not frozen):
                t = model.encode_text(tokens, normalize=True)
            with torch.inference_mode():
                model.encode_text(tokens, normalize=True)  # an evaluation, which is in no loss
            f = model.encode_image(images, normalize=True)
            probe.look({"task": match(f, t, model.logit_scale.exp(), target)}, labels=target,
                       classes=range(4))
        tables.append(probe.table())
    columns = ["gradient", "attraction", "repulsion", "image gradient"]
    assert np.allclose(tables[0][columns], tables[1][columns], rtol=1e-4, atol=1e-7, equal_nan=True)


def test_classes_on_a_plain_model_says_what_is_missing(own):
    model, images, tokens, target = own
    given = {"labels": target, "classes": range(4)}
    with Classes(model) as probe:
        f, t = model.encode_image(images), model.encode_text(tokens, normalize=True)
        with pytest.raises(ValueError, match="image features are not unit-norm.*normalize=True"):
            probe.look({"task": match(F.normalize(f, dim=-1), t, torch.tensor(7.0), target)},
                       **given)
        f = model.encode_image(images, normalize=True)
        with pytest.raises(ValueError, match="one encode_image and one encode_text.*encode_image"):
            probe.look({"task": match(f, t, torch.tensor(7.0), target)}, **given)
        f, t, s = model(images, tokens)
        f, t, s = model(images, tokens)
        with pytest.raises(ValueError, match="one encode_image and one encode_text"):
            probe.look({"task": match(f, t, s, target)}, **given)
        f, t, s = model(images, tokens)
        with pytest.raises(ValueError, match="labels=6, classes=3"):
            probe.look({"task": match(f, t, s, target)}, labels=target, classes=range(3))
        f, t, s = model(images, tokens)
        probe.look({"task": match(f, t, s, target)}, **given)  # and works then
    assert len(probe.table()) == 4


def test_all_probes_in_a_loop_of_ones_own(own):
    model, images, tokens, target = own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (Gradients(model) as gradients, Classes(model) as classes,
          Drift(model, images, target, tokens[:3], range(3), every=1) as drift):
        for _ in range(3):
            f, t, s = model(images, tokens)
            loss = match(f, t, s, target)
            optimizer.zero_grad()
            drift.look(
                {"task": loss})  # before the other, which must not take its features for the loss's
            gradients.look({"task": loss})
            classes.look({"task": loss}, labels=target, classes=range(4))
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model(images, tokens)  # an evaluation
    assert len(classes.table()) == 12 and set(gradients.table().step) == {0, 1, 2}
    assert set(drift.table().step) == {0, 1, 2, 3}
    assert set(gradients.table().tower) == {"image", "text", "temperature"}
    assert drift.table().text.iloc[-1] > 0 and (drift.table().text.iloc[:3].abs() < 1e-6).all()
    assert model.training


def test_drift_on_a_plain_model_is_of_directions(own):
    """open_clip's encoders do not normalise unless they are asked to."""
    model, images, tokens, target = own
    with Drift(model, images, target, tokens[:3], range(3), every=1) as probe:
        with torch.no_grad():
            model.text_projection.mul_(3)  # longer, and the same direction
        probe.look({"task": torch.tensor(0.0)})
    assert probe.table().text.abs().max() < 1e-6 and probe.table().gap.max() < 2
    assert len(probe.table()) == 6


def test_gradients_on_a_plain_model(own):
    model, images, tokens, target = own
    f, t, s = model(images, tokens)
    loss = match(f, t, s, target)
    with Gradients(model) as probe:
        probe.look({"task": loss})
    loss.backward()
    rows = probe.table().set_index(["tower", "block"])
    expected = torch.cat(
        [p.grad.flatten() for p in model.visual.transformer.resblocks[1].parameters()]).norm()
    assert rows.norm["image", "1"] == pytest.approx(float(expected), rel=1e-4)
    assert rows.norm["temperature", "all"] == pytest.approx(float(model.logit_scale.grad.abs()),
                                                            rel=1e-4)


# ---- cost


@pytest.mark.parametrize("settings", [{"tower": "image"}, {"method": "frozen", "tuner": "none"}], ids=str)
def test_cost_counts_the_free_parameters(tiny, settings):
    notes, config = {}, tiny.replace(**settings)
    train(config, notes=notes)
    clip, _, _ = prepare(config)
    cost = notes["cost"]
    assert cost["parameters"] == sum(p.numel() for p in clip.parameters() if p.requires_grad)
    assert (cost["parameters"] == 0) == (config.tuner == "none")
    assert cost["images_per_second"] > 0 and cost["peak_memory"] is None and set(notes) == {"cost"}


# ---- on the device


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def there(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def moved(model):
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(there(p), requires_grad=p.requires_grad))
        for name, b in module.named_buffers(recurse=False):
            setattr(module, name, there(b))
    return model


def test_gradients_are_not_waited_for(clip, batch, fake, monkeypatch):
    """Norms and angles stay on the device; the backward pass, which needs a real one, is stood in
    for."""
    with unset_fake_temporarily():
        TUNERS["lora"]().apply(clip, "both")
    clip = moved(clip)
    monkeypatch.setattr(torch.autograd, "grad",
                        lambda value, inputs, **_: [there(p) for p in inputs])
    loss = torch.ones((), device="cuda", requires_grad=True)
    with Gradients(clip) as probe:
        for _ in range(3):
            probe.look({"a": loss, "b": loss})
    numbers = [
        value for row in probe.rows for value in row.values() if isinstance(value, torch.Tensor)
    ]
    assert numbers and {value.device.type for value in numbers} == {"cuda"}
    assert {"norm", "previous", "cos a", "update",
            "update previous"} <= {key for row in probe.rows for key in row}


def test_drift_encodes_on_the_device(clip, batch, fake):
    clip = moved(clip)
    images = torch.empty(300, 3, 64, 64, dtype=torch.uint8, device="cuda")
    labels = [i % 6 for i in range(300)]
    drift = Drift(clip, images, labels, there(batch.prompts), range(6))
    image, text = drift._features()
    assert image.device == text.device == images.device and image.shape == (
        300, 16) and text.shape == (6, 16)
    assert {rows.device for rows in drift.members} == {images.device}
    assert torch.stack([image[rows].mean(0) for rows in drift.members]).device == images.device


def test_watched_features_stay_on_the_device(clip, batch, fake):
    with unset_fake_temporarily():
        TUNERS["full"]().apply(clip, "image")
    clip = moved(clip)
    batch = replace(batch, image=there(batch.image), prompts=there(batch.prompts))
    with Classes(clip) as probe:
        encoded = clip.encode(batch)
        loss = match(encoded.image, encoded.text, encoded.scale, batch.target)
        assert len(probe.waiting) == 1 and isinstance(probe.waiting[0], Seen)
    assert encoded.image.device == encoded.text.device == loss.device == batch.image.device
    assert encoded.text.requires_grad  # the frozen tower's
    assert {x.device for x in reachable(there(torch.zeros(2, 3)))} == {batch.image.device}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_probes_on_a_gpu_are_near_those_on_the_cpu(tiny):
    tables = {}
    for device in ("cpu", "cuda"):
        tables[device] = {}
        train(tiny.replace(device=device, lr=1e-4, method="finetune"), probes=ALL,
              notes=tables[device])
    assert tables["cuda"]["cost"]["peak_memory"] > 0
    for name, column in (("gradients", "norm"), ("classes", "gradient"), ("drift", "match")):
        assert np.allclose(tables["cpu"][name][column], tables["cuda"][name][column], rtol=1e-2,
                           atol=1e-3)
