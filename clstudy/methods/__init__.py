"""Methods by name. A method is a dataclass with a `loss`; add yours to the dict."""
from .agem import AGEM
from .clib import CLIB
from .clip_loss import ClipLoss
from .compose import Compose
from .derpp import DERpp
from .dualprompt import DualPrompt
from .er import ER
from .ewc import EWC
from .finetune import Finetune
from .frozen import Frozen
from .gcl import GCL
from .gdro import GDRO
from .geodl import GeoDL
from .imm import IMM
from .l2p import L2P
from .lwf import LwF
from .mvp import MVP
from .sit import SIT
from .vr_lwf import VRLwF
from .wise_ft import WiSEFT
from .zscl import ZSCL

METHODS = {
    "frozen": Frozen,
    "finetune": Finetune,
    "sit": SIT,
    "er": ER,
    "derpp": DERpp,
    "clib": CLIB,
    "lwf": LwF,
    "vr_lwf": VRLwF,
    "geodl": GeoDL,
    "ewc": EWC,
    "clip_loss": ClipLoss,
    "gcl": GCL,
    "gdro": GDRO,
    "compose": Compose,
    "imm": IMM,
    "wise_ft": WiSEFT,
    "zscl": ZSCL,
    "agem": AGEM,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "mvp": MVP,
}
