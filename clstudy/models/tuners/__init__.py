"""Tuners by name: which parameters of a model move, and in which tower.

A tuner is a function `(clip, tower, **options) -> None` that freezes the model and then frees, or adds, what is to
be tuned. tower is "image", "text" or "both". The temperature (logit_scale) stays frozen, as in SIT's code, unless
`full` is asked to train it. What can be said of its options without a model is said by its check,
`(tower, **all options) -> None`, which RunConfig asks too."""
from clstudy.models.tuners.adapter import adapter, check_adapter
from clstudy.models.tuners.full import check_full, full, none
from clstudy.models.tuners.lora import check_lora, lora
from clstudy.models.tuners.prompt_pool import IMAGE_ONLY, check_dual, check_l2p, dualprompt, l2p, mvp
from clstudy.models.tuners.prompt_tuning import check_prompts, prompts
from clstudy.models.tuners.rescale import check_rescale, rescale

TUNERS = {"none": none, "full": full, "lora": lora, "adapter": adapter, "prompts": prompts}
TUNERS |= {"rescale": rescale}
TUNERS |= {"l2p": l2p, "dualprompt": dualprompt, "mvp": mvp}
CHECKS = {"lora": check_lora, "adapter": check_adapter, "prompts": check_prompts}  # raise ValueError
CHECKS |= {"full": check_full, "rescale": check_rescale}
CHECKS |= {"l2p": check_l2p, "dualprompt": check_dual, "mvp": check_dual}
TOWERS = ("image", "text", "both")
ONLY = {}  # tuner → the towers it goes with, and why not the others
ONLY |= dict.fromkeys(("l2p", "dualprompt", "mvp"), (("image",), IMAGE_ONLY))


def neutral(tuner: str, options: dict) -> bool:
    """Whether this tuner, before any training, leaves every output of the model equal to the bit."""
    return tuner in ("none", "full", "adapter", "rescale") or (tuner == "lora" and options.get("init") != "official")
