"""Methods by name. A method is a dataclass with a `loss`; add yours to the dict."""
from .clib import CLIB
from .derpp import DERpp
from .dualprompt import DualPrompt
from .er import ER
from .ewc import EWC
from .finetune import Finetune
from .frozen import Frozen
from .l2p import L2P
from .lwf import LwF
from .mvp import MVP
from .sit import SIT

METHODS = {
    "frozen": Frozen,
    "finetune": Finetune,
    "sit": SIT,
    "er": ER,
    "derpp": DERpp,
    "clib": CLIB,
    "lwf": LwF,
    "ewc": EWC,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "mvp": MVP,
}
