"""Tuners by name: which parameters of a model move, and in which tower.

A tuner is a dataclass of its options with one verb, `apply(clip, tower)`; tower is "image", "text"
or "both". The temperature (logit_scale) is frozen, as in SIT's code, unless `full` is asked to
train it.
"""
from clstudy.models.tuners.adapter import Adapter
from clstudy.models.tuners.base import Tuner
from clstudy.models.tuners.coop import CoOp
from clstudy.models.tuners.full import Full, NoTuner
from clstudy.models.tuners.lora import Lora
from clstudy.models.tuners.prompt_pool import DualPromptPool, L2PPool, MVPPool
from clstudy.models.tuners.prompt_tuning import Prompts
from clstudy.models.tuners.rescale import Rescale

TUNERS: dict[str, type[Tuner]] = {
    "none": NoTuner,
    "full": Full,
    "lora": Lora,
    "adapter": Adapter,
    "prompts": Prompts,
    "coop": CoOp,
    "rescale": Rescale,
    "l2p": L2PPool,
    "dualprompt": DualPromptPool,
    "mvp": MVPPool,
}
