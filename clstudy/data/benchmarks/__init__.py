"""Benchmarks by name. A benchmark is a dataclass of its options with `load()`; add yours here."""
from clstudy.data.benchmarks.base import Benchmark
from clstudy.data.benchmarks.coco import CocoCrops, EuroSat
from clstudy.data.benchmarks.domainnet import DomainNet
from clstudy.data.benchmarks.emoji import Emoji, EmojiConcepts, EmojiStyles
from clstudy.data.benchmarks.emoji_kinds import EmojiKinds
from clstudy.data.benchmarks.folder import Folder
from clstudy.data.benchmarks.imagenet import ImageNet
from clstudy.data.benchmarks.mtil import Mtil
from clstudy.data.benchmarks.sit_benchmarks import Cifar10, Cifar100, ImageNetR, TinyImageNet

BENCHMARKS: dict[str, type[Benchmark]] = {
    "emoji": Emoji,
    "emoji_concepts": EmojiConcepts,
    "emoji_kinds": EmojiKinds,
    "emoji_styles": EmojiStyles,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "tiny_imagenet": TinyImageNet,
    "imagenet_r": ImageNetR,
    "coco_crops": CocoCrops,
    "eurosat": EuroSat,
    "mtil": Mtil,
    "folder": Folder,
    "imagenet": ImageNet,
    "domainnet": DomainNet,
}
