"""Methods by name. A method is a dataclass with a `loss`; add yours to the dict.

Tables have this order; figures keep families together."""
from clstudy.methods.agem import AGEM
from clstudy.methods.class_means import ClassMeans
from clstudy.methods.clib import CLIB
from clstudy.methods.clip_loss import ClipLoss
from clstudy.methods.compose import Compose
from clstudy.methods.derpp import DERpp
from clstudy.methods.dualprompt import DualPrompt
from clstudy.methods.er import ER
from clstudy.methods.ewc import EWC
from clstudy.methods.finetune import Finetune
from clstudy.methods.frozen import Frozen
from clstudy.methods.gcl import GCL
from clstudy.methods.gdro import GDRO
from clstudy.methods.geodl import GeoDL
from clstudy.methods.imm import IMM
from clstudy.methods.l2p import L2P
from clstudy.methods.lwf import LwF
from clstudy.methods.mvp import MVP
from clstudy.methods.ranpac import RanPAC
from clstudy.methods.replay_features import ReplayFeatures
from clstudy.methods.sit import SIT
from clstudy.methods.slca import SLCA
from clstudy.methods.text_cache import TextCache
from clstudy.methods.vr_lwf import VRLwF
from clstudy.methods.wise_ft import WiSEFT
from clstudy.methods.zscl import ZSCL

METHODS = {
    "frozen": Frozen,
    "class_means": ClassMeans,
    "text_cache": TextCache,
    "ranpac": RanPAC,
    "finetune": Finetune,
    "sit": SIT,
    "er": ER,
    "derpp": DERpp,
    "clib": CLIB,
    "replay_features": ReplayFeatures,
    "slca": SLCA,
    "lwf": LwF,
    "ewc": EWC,
    "vr_lwf": VRLwF,
    "zscl": ZSCL,
    "geodl": GeoDL,
    "agem": AGEM,
    "imm": IMM,
    "wise_ft": WiSEFT,
    "clip_loss": ClipLoss,
    "gcl": GCL,
    "gdro": GDRO,
    "compose": Compose,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "mvp": MVP,
}
