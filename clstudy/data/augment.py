"""Augmentation of whole batches on the device; each image has random numbers of its own.

All random numbers are drawn on the host from one generator and moved, so that a run gives the same
pictures on every device, and nothing waits for the device. Images are float in [0, 1], shape
(batch, 3, height, width)."""
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Images = Float[Tensor, "batch channels height width"]


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw one number per image."""
    drawn = low + (high - low) * torch.rand(len(like), generator=generator, device="cpu")
    return drawn.to(like.device, like.dtype)


def affine(images: Images, generator: torch.Generator, *, degrees: float = 10.0,
           scale: tuple[float, float] = (0.8, 1.1), shift: float = 0.08, flip: bool = True,
           fill: Tensor | float = 1.0) -> Images:
    """Rotate (± degrees), scale, shift (share of the side) and mirror each image, resampling once.

    fill: the value outside the picture (1.0 is white); a tensor must broadcast to the images."""
    angle = _uniform(images, -degrees, degrees, generator) * math.pi / 180
    size = 1 / _uniform(images, *scale, generator)
    mirror = torch.sign(_uniform(images, -1, 1, generator)) if flip else torch.ones_like(size)
    x, y = (_uniform(images, -2 * shift, 2 * shift, generator) for _ in range(2))
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    rows = [torch.stack([cos * mirror, -sin, x], -1), torch.stack([sin * mirror, cos, y], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def colour(images: Images, generator: torch.Generator, *, brightness: float = 0.2,
           contrast: float = 0.2, saturation: float = 0.3, grey: float = 0.1) -> Images:
    """Change brightness, contrast and saturation by factors within 1 ± the amount; make an image
    grey with probability `grey`."""
    b, c, s = (_uniform(images, 1 - amount, 1 + amount, generator).view(-1, 1, 1, 1)
               for amount in (brightness, contrast, saturation))
    to_grey = _uniform(images, 0, 1, generator).view(-1, 1, 1, 1) < grey
    luma = images.mean(1, keepdim=True)
    images = luma + (images - luma) * torch.where(to_grey, torch.zeros_like(s), s)
    return (((images - 0.5) * c + 0.5) * b).clamp(0, 1)


def none(images: Images, generator: torch.Generator) -> Images:
    """Change nothing."""
    return images


def light(images: Images, generator: torch.Generator) -> Images:
    """Move, mirror and recolour a little: the default for drawings."""
    return colour(affine(images, generator), generator)


def crop_flip(images: Images, generator: torch.Generator) -> Images:
    """Shift by up to 4 pixels of 224 and mirror, as SIT's code after its resize (papers: §1.1)."""
    return affine(images, generator, degrees=0.0, scale=(1.0, 1.0), shift=4 / 224, fill=0.0)


def autoaugment_cifar(images: Images, generator: torch.Generator) -> Images:
    """AutoAugment with its policy for CIFAR-10, then `crop_flip`: SIT's code on CIFAR, but image by
    image."""
    return crop_flip(autoaugment(images, generator, "cifar10"), generator)


def autoaugment_imagenet(images: Images, generator: torch.Generator) -> Images:
    """AutoAugment with its policy for ImageNet, then `crop_flip`: SIT's code on other data, but
    image by image."""
    return crop_flip(autoaugment(images, generator, "imagenet"), generator)


def autoaugment(images: Images, generator: torch.Generator, policy: str) -> Images:
    """Apply torchvision's AutoAugment (Cubuk et al. 2018, arXiv 1805.09501) to each uint8 image.

    policy: "cifar10" or "imagenet", the data that it was learned on. torchvision draws from torch's
    global generator: it is seeded from `generator` here, and left as it was. A batch of 64 takes 10
    ms at 32 pixels on one core, 80 ms at 224. SIT's released code draws once for a whole batch."""
    from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy  # costs a second to import

    change, whole = AutoAugment(AutoAugmentPolicy(policy)), (images * 255).round().to(torch.uint8)
    seed = _seed(generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices too
        return torch.stack([change(image) for image in whole]).to(images.dtype) / 255


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


AUGMENTATIONS = {
    "none": none,
    "light": light,
    "crop_flip": crop_flip,
    "autoaugment_cifar": autoaugment_cifar,
    "autoaugment_imagenet": autoaugment_imagenet,
}
