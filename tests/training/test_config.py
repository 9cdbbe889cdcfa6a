"""A run's settings: what is refused, and with which words; what `run_id` depends on; what importing
costs."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from clstudy import RunConfig
from clstudy.training.config import check_choice

REPOSITORY = Path(__file__).parents[2]


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=True)
    return done.stdout


# ---- what is refused


@pytest.mark.parametrize(("settings", "near", "choice"), [
    ({"benchmark": "emojy"}, "emoji", "emoji_concepts"),
    ({"stream": "si-blury"}, "si_blurry", "disjoint"),
    ({"tuner": "lorra"}, "lora", "full"),
    ({"method": "fine_tune"}, "finetune", "frozen"),
    ({"augmentation": "ligth"}, "light", "crop_flip"),
    ({"benchmark_args": {"familys": ["noto"]}}, "families", "test_share"),
    ({"stream_args": {"task": 2}}, "tasks", "order"),
    ({"tuner_args": {"rnak": 2}}, "rank", "alpha"),
    ({"tuner_args": {"inti": "official"}}, "init", "rank"),
    ({"tuner_args": {"widht": 32}, "tuner": "adapter"}, "width", "dropout"),
    ({"tuner_args": {"dept": 2}, "tuner": "prompts"}, "depth", "length"),
])
def test_an_unknown_name_is_refused_with_the_near_one_and_the_choices(settings, near, choice):
    with pytest.raises(ValidationError) as error:
        RunConfig(**settings)
    field, value = next(iter(settings.items()))
    said = str(error.value)
    assert field in said
    assert str(next(iter(value)) if isinstance(value, dict) else value) in said
    assert f"Did you mean {near}" in said
    assert choice in said.split("Choices:")[1]


@pytest.mark.parametrize("settings", [
    {"stream_args": {"labels": []}}, {"stream_args": {"seed": 1}},  # these are given by the loop
    {"tuner_args": {"clip": None}}, {"tuner_args": {"tower": "image"}},
    {"method_args": {"nonsense": 1}}, {"stream": "joint", "stream_args": {"tasks": 2}},
], ids=str)
def test_options_that_a_choice_does_not_take_are_refused(settings):
    with pytest.raises(ValidationError, match="is unknown"):
        RunConfig(**settings)


@pytest.mark.parametrize(("field", "value"), [
    ("lr", 0), ("lr", -1e-3), ("lr", float("nan")), ("lr", float("inf")), ("lr", "fast"), ("weight_decay", -1),
    ("clip_norm", 0), ("batch_size", 0), ("batch_size", 1.5), ("steps_per_batch", 0), ("epochs", 0), ("eval_every", 0),
    ("held_out_every", 0), ("tower", "images"), ("optimizer", "adamww"), ("precision", "fp8"), ("device", "gpu"),
    ("seed", "x"),
])
def test_impossible_values_are_refused_by_field(field, value):
    with pytest.raises(ValidationError) as error:
        RunConfig(**{field: value})
    assert field in str(error.value)


@pytest.mark.parametrize(("tuner", "options", "said"), [
    ("lora", {"rank": 0}, "rank=0.*at least 1"), ("lora", {"rank": 2.5}, "rank=2.5.*whole number"),
    ("lora", {"alpha": 0}, "alpha=0.*above 0"), ("lora", {"init": "offical"}, "init='offical'.*official"),
    ("adapter", {"width": 0}, "width=0.*at least 1"), ("adapter", {"scale": 0}, "scale=0.*above 0"),
    ("adapter", {"dropout": 2}, "dropout=2.*below 1"), ("adapter", {"dropout": "half"}, "dropout='half'"),
    ("prompts", {"length": 0}, "length=0.*at least 1"), ("prompts", {"depth": -1}, "depth=-1.*at least 1"),
    ("prompts", {"init": 3}, "init=3.*a text or None"), ("l2p", {"pool": 0}, "pool=0.*at least 1"),
    ("l2p", {"top": 99}, "top=99.*from 1 to pool=10"), ("l2p", {"pool": 4}, "top=5.*from 1 to pool=4"),
    ("l2p", {"length": -1}, "length=-1.*at least 0"), ("dualprompt", {"general": -1}, "general=-1.*at least 0"),
    ("dualprompt", {"expert": "x"}, "expert='x'.*at least 0"), ("mvp", {"experts": 0}, "experts=0.*at least 1"),
    ("dualprompt", {"general_blocks": [0, 0]}, r"general_blocks=\[0, 0\].*different"),
    ("mvp", {"expert_blocks": [-1]}, r"expert_blocks=\[-1\]"), ("mvp", {"expert_blocks": 2}, "expert_blocks=2.*list"),
], ids=str)
def test_impossible_options_of_a_tuner_are_refused_before_a_model_is_loaded(tuner, options, said):
    pool = {"tower": "image", "method": tuner} if tuner in ("l2p", "dualprompt", "mvp") else {}
    RunConfig(tuner=tuner, **pool)  # the defaults are possible
    with pytest.raises(ValidationError, match=said):
        RunConfig(tuner=tuner, tuner_args=options, **pool)


def test_an_option_that_the_tower_does_not_have_is_refused_early():
    assert RunConfig(tuner="prompts", tower="text",
                     tuner_args={"init": "a big red sun"}).tower == "text"
    with pytest.raises(ValidationError, match="init='a big red sun'.*tower='image'"):
        RunConfig(tuner="prompts", tower="image", tuner_args={"init": "a big red sun"})


def test_a_tuner_refuses_in_the_same_words_as_the_configuration(clip):
    from clstudy.models.tuners import TUNERS

    wrong = {
        "lora": {"rank": 0}, "adapter": {"dropout": 1.0}, "prompts": {"depth": 0},
        "l2p": {"top": 99}, "dualprompt": {"experts": 0}, "mvp": {"expert_blocks": [1, 1]}
    }
    for name, options in wrong.items():
        pool = {"tower": "image", "method": name} if name in ("l2p", "dualprompt", "mvp") else {}
        with pytest.raises(ValueError) as late:
            TUNERS[name](**options).apply(clip, "image")
        with pytest.raises(ValidationError) as early:
            RunConfig(tuner=name, tuner_args=options, **pool)
        assert str(late.value) in str(early.value), name


def test_devices_that_exist_are_taken():
    for device in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert RunConfig(device=device).device == device


def test_extra_fields_are_refused():
    with pytest.raises(ValidationError, match="learning_rate"):
        RunConfig(learning_rate=1e-3)


def test_training_nothing_is_refused_but_for_the_frozen_model():
    with pytest.raises(ValidationError, match="nothing to train"):
        RunConfig(tuner="none", method="sit")
    assert RunConfig(tuner="none", method="frozen").tuner == "none"


def test_a_configuration_does_not_change():
    with pytest.raises(ValidationError):
        RunConfig().lr = 1.0


def test_but_changes_what_is_named_and_checks_again():
    base = RunConfig(method="finetune", seed=3)
    other = base.replace(lr=1e-3)
    assert other.model_dump() == {**base.model_dump(), "lr": 1e-3}
    with pytest.raises(ValidationError):
        base.replace(lr=0)
    with pytest.raises(ValidationError):
        base.replace(methd="sit")


# ---- run_id

CHANGES = {
    "benchmark": "emoji_concepts",
    "benchmark_args": {"split_seed": 1},
    "stream": "si_blurry",
    "stream_args": {"tasks": 3},
    "model": "ViT-B-32",
    "pretrained": "random",
    "tuner": "full",
    "tuner_args": {"rank": 8},
    "tower": "image",
    "method": "finetune",
    "method_args": {"weight": 1.0},
    "optimizer": "sgd",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "batch_size": 32,
    "steps_per_batch": 1,
    "epochs": 2,
    "milestones": [1],
    "augmentation": "none",
    "eval_every": 500,
    "held_out_every": 2,
    "precision": "bf16",
    "compile": True,
    "channels_last": True,
    "seed": 1,
    "stream_seed": 0,
    "device": "cpu",
}


def test_run_id_changes_with_every_field_but_the_device():
    assert set(CHANGES) == set(RunConfig.model_fields), "a new field needs a change here"
    base, seen = RunConfig(), set()
    for field, value in CHANGES.items():
        if field in ("method_args",
                     "milestones"):  # which do not go with the defaults of the others
            other = base.model_copy(update={field: value})
        else:
            other = base.replace(**{field: value})
        assert (other.run_id == base.run_id) == (field == "device"), field
        seen.add(other.run_id)
    assert len(seen) == len(CHANGES)


def test_run_id_is_twelve_digits_and_equal_in_another_process():
    here = RunConfig(stream_args={"tasks": 4, "order": "given"}, seed=5).run_id
    assert len(here) == 12 and int(here, 16) >= 0
    there = python(
        "from clstudy import RunConfig; "
        "print(RunConfig(stream_args={'order': 'given', 'tasks': 4}, seed=5).run_id)",
        PYTHONHASHSEED="7")
    assert there.strip() == here


def test_run_id_survives_json_and_takes_tuples_for_lists():
    config = RunConfig(benchmark_args={"families": ("noto", "twemoji")})
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again.run_id == config.run_id
    assert json.loads(
        config.model_dump_json())["benchmark_args"] == {"families": ["noto", "twemoji"]}


def test_run_id_changes_with_the_weights_behind_a_name(tmp_path, toy_model):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in toy_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    configs = {"folder": RunConfig(model=str(folder)),
               "file": RunConfig(pretrained=str(folder / "open_clip_model.safetensors"))}
    before = {name: config.run_id for name, config in configs.items()}
    assert before == {name: config.run_id for name, config in configs.items()}
    with open(folder / "open_clip_model.safetensors", "ab") as file:
        file.write(b" ")
    for name, config in configs.items():
        assert config.run_id != before[name], name


def test_the_package_lists_its_names():
    import clstudy

    assert {"RunConfig", "load_clip", "load_or_train", "load_runs"} <= set(dir(clstudy))
    with pytest.raises(AttributeError, match="load_clip"):
        clstudy.nothing  # noqa: B018


@pytest.mark.parametrize(("name", "value", "said"), [
    ("tower", "texd", "tower='texd' is unknown.*both"), ("precision", "fp8", "bf16, fp32"), ("tuner", "loar", "lora"),
    ("method", "sitt", "sit"), ("benchmark", "emojis", "emoji"), ("stream", "disjoined", "disjoint"),
    ("augmentation", "heavy", "light")])
def test_a_word_that_no_run_has_in_a_field_is_refused_before_a_run_is_made(name, value, said):
    with pytest.raises(ValueError, match=said):
        check_choice(name, value)


@pytest.mark.parametrize(("name", "value"), [("tower", "text"), ("benchmark", "folder:/a/b"), ("model", "ViT-B-16"),
                                             ("towers", "anything"), ("tuner", ["lora", "full"]), ("seed", 3)])
def test_a_word_that_fits_or_is_no_field_passes(name, value):
    check_choice(name, value)
