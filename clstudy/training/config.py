"""The settings of a run, as one small frozen object for notebooks, tests, the command and workers.

Construction checks all names and options before anything is loaded. `run_id` is a hash of
everything that can change the numbers."""
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from clstudy.utils.files import fingerprint
from clstudy.utils.options import make
from clstudy.utils.paths import DATA
from clstudy.utils.validation import choose

AXES = ("benchmark", "stream", "tuner", "method")  # each a field with its options in `<axis>_args`
RESULTS = 1  # part of `run_id`; raised whenever a change of the code can change results


def registry(axis: str) -> Mapping[str, Any]:
    """Import and return the choices of an axis, or the augmentations, by name."""
    if axis == "benchmark":
        from clstudy.data.benchmarks import BENCHMARKS as known
    elif axis == "stream":
        from clstudy.data.streams import STREAMS as known
    elif axis == "tuner":
        from clstudy.models.tuners import TUNERS as known
    elif axis == "method":
        from clstudy.methods import METHODS as known
    else:
        from clstudy.data.augment import AUGMENTATIONS as known
    return known


def check_choice(name: str, value: Any) -> None:
    """Refuse a text that is no choice of the RunConfig field of this name; let all else pass."""
    field = RunConfig.model_fields.get(name)
    if field is None or not isinstance(value, str):
        return
    if get_origin(field.annotation) is Literal:
        choose(name, value, get_args(field.annotation))
    elif name in (*AXES, "augmentation"):
        choose(name, with_path(value, {})[0], registry(name))


def with_path(benchmark: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Turn `folder:PATH` into the benchmark `folder` with that path.

    The path is made absolute, because workers may run in another folder."""
    if benchmark.startswith("folder:"):
        benchmark, options = "folder", {**options, "path": benchmark.removeprefix("folder:")}
    if benchmark == "folder" and isinstance(options.get("path"), str | Path):
        try:
            options = {**options, "path": str(Path(options["path"]).expanduser().absolute())}
        except RuntimeError as error:  # of ~somebody
            raise ValueError(f"benchmark_args: path={str(options['path'])!r}: {error}") from None
    return benchmark, options


class RunConfig(BaseModel):
    """One point of the grid benchmark × stream × tuner × method, and how to optimise it.

    ValueError: impossible values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    benchmark: str = "emoji"
    benchmark_args: dict[str, Any] = {}
    stream: str = "disjoint"
    stream_args: dict[str, Any] = {}  # tasks="groups" takes the benchmark's named groups of classes
    model: str = "icon-clip"
    pretrained: str | None = None  # a tag, a file, or "random"
    tuner: str = "lora"
    tuner_args: dict[str, Any] = {}
    tower: Literal["image", "text", "both"] = "both"
    method: str = "sit"
    method_args: dict[str, Any] = {}
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    clip_norm: float | None = Field(None, gt=0)  # largest gradient norm; None: not clipped
    batch_size: int = Field(64, ge=1)  # images
    steps_per_batch: int = Field(3, ge=1)  # optimiser steps on a batch, each with new augmentation
    epochs: int = Field(1, ge=1)  # passes over a stage; 1 is online
    milestones: list[int] = []  # epochs of each stage after which lr is divided by ten
    augmentation: str = "light"
    eval_every: int | None = Field(None, ge=1)  # images between evaluations; None: at stage ends
    # stages between held-out sets and retrieval, of which first and last always; "evaluation": also
    # between stage ends, every `eval_every` images
    held_out_every: Annotated[int, Field(ge=1)] | Literal["evaluation"] = 1
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, weights stay fp32
    compile: bool = False
    channels_last: bool = False
    seed: int = 0
    stream_seed: int | None = None  # class order and arrival; None: the same as seed
    device: str = "auto"  # not part of run_id, as is how many threads there are

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if value != "auto" and value.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device={value!r} is unknown. Choices: auto, cpu, cuda, cuda:N, mps")
        return value

    @model_validator(mode="before")
    @classmethod
    def _path(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name, options = given.get("benchmark"), given.get("benchmark_args", {})
        if not isinstance(name, str) or not isinstance(options, dict):
            return given  # refused later
        name, options = with_path(name, options)
        return given | {"benchmark": name, "benchmark_args": options}

    @model_validator(mode="after")
    def _names(self) -> "RunConfig":
        choose("augmentation", self.augmentation, registry("augmentation"))
        last = self.epochs - 1
        if not all(1 <= epoch <= last for epoch in self.milestones):
            raise ValueError(f"milestones={self.milestones!r}: must be numbers from 1 to "
                             f"epochs - 1 = {last}")
        _, _, tuner, method = (self.make(axis) for axis in AXES)
        tuner.check_tower(self.tower)
        needs = method.needs_tuner or self.tuner
        if self.tuner != needs:
            raise ValueError(f"method={self.method!r} needs tuner={needs!r}, not {self.tuner!r}")
        if self.tuner == "none" and method.trains and not method.owns_parameters:
            raise ValueError(f"tuner='none' leaves method={self.method!r} nothing to train; choose "
                             "another tuner, or a method that trains nothing, such as 'frozen'")
        return self

    def make(self, axis: str) -> Any:
        """Return the benchmark, stream, tuner or method of this run, with its options."""
        return make(axis, getattr(self, axis), registry(axis), getattr(self, f"{axis}_args"))

    def held_out_at(self, stage: int, stages: int, complete: bool) -> bool:
        """Return whether an evaluation measures held-out sets and retrieval, too.

        stages: of the run. complete: at the end of the stage, or before training (stage 0)."""
        if self.held_out_every == "evaluation":
            return True
        return complete and (stage % self.held_out_every == 0 or stage == stages)

    @property
    def run_id(self) -> str:
        """The identity of the run with the files as they are now."""
        return self.id_of(self.fingerprints())

    def id_of(self, fingerprints: list[str]) -> str:
        """Return twelve hexadecimal digits: a hash of settings, files and `RESULTS`."""
        settings = self.model_dump(mode="json", exclude={"device"})
        whole = json.dumps([RESULTS, settings, fingerprints], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:12]

    def fingerprints(self) -> list[str]:
        """Return those of the files that the numbers depend on: data and weights."""
        named = []
        if self.model == "icon-clip":
            named.append(DATA / "icon-clip" / "open_clip_model.safetensors")
        for path in (Path(given) for given in (self.model, self.pretrained) if given):
            named += sorted(path.glob("open_clip_*")) if path.is_dir() else [path]
        weights = [fingerprint(path) for path in named if path.exists()]
        return self.make("benchmark").fingerprint() + weights

    def replace(self, **changes) -> "RunConfig":
        """Return the same run with other settings, checked again."""
        return RunConfig(**{**self.model_dump(), **changes})
