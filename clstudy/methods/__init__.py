"""Methods by name. A method is a dataclass with a `loss`; add yours to the dict."""
from .finetune import Finetune
from .frozen import Frozen
from .sit import SIT

METHODS = {"frozen": Frozen, "finetune": Finetune, "sit": SIT}
