"""Augmentation of whole batches on the device, with randomness of its own for each image.

All random numbers are drawn on the host from one generator and moved, so that a run gives the same
pictures on every device, and nothing waits for the device. Images are float in [0, 1], shape
(batch, 3, height, width)."""
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Images = Float[Tensor, "batch channels height width"]


def _uniform(count: int, low: float, high: float, generator: torch.Generator,
             like: Tensor) -> Tensor:
    return (low + (high - low) * torch.rand(count, generator=generator, device="cpu")).to(
        like.device, like.dtype)


def affine(images: Images, generator: torch.Generator, *, degrees: float = 10.0,
           scale: tuple[float, float] = (0.8, 1.1), shift: float = 0.08, flip: bool = True,
           fill: Tensor | float = 1.0) -> Images:
    """Rotate (± degrees), scale, shift (share of the side) and mirror each image by its own
    amounts, in one resampling.

    fill: the value outside the picture (1.0 is white); a tensor must broadcast to the images."""
    count = len(images)
    angle = _uniform(count, -degrees, degrees, generator, images) * math.pi / 180
    size = 1 / _uniform(count, *scale, generator, images)
    mirror = torch.sign(_uniform(count, -1, 1, generator,
                                 images)) if flip else torch.ones_like(size)
    x, y = (_uniform(count, -2 * shift, 2 * shift, generator, images) for _ in range(2))
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    matrix = torch.stack(
        [torch.stack([cos * mirror, -sin, x], -1),
         torch.stack([sin * mirror, cos, y], -1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def colour(images: Images, generator: torch.Generator, *, brightness: float = 0.2,
           contrast: float = 0.2, saturation: float = 0.3, grey: float = 0.1) -> Images:
    """Brightness, contrast and saturation by a factor within 1 ± the amount, and grey with
    probability `grey`."""
    count = len(images)
    b, c, s = (_uniform(count, 1 - amount, 1 + amount, generator, images).view(-1, 1, 1, 1)
               for amount in (brightness, contrast, saturation))
    to_grey = _uniform(count, 0, 1, generator, images).view(-1, 1, 1, 1) < grey
    luma = images.mean(1, keepdim=True)
    images = luma + (images - luma) * torch.where(to_grey, torch.zeros_like(s), s)
    return (((images - 0.5) * c + 0.5) * b).clamp(0, 1)


def none(images: Images, generator: torch.Generator) -> Images:
    """No change."""
    return images


def light(images: Images, generator: torch.Generator) -> Images:
    """Small moves, mirror, a little colour: the default for drawings."""
    return colour(affine(images, generator), generator)


def crop_flip(images: Images, generator: torch.Generator) -> Images:
    """Random shift by up to 4 pixels of 224 with mirror, as the SIT code after its resize (papers:
    §1.1)."""
    return affine(images, generator, degrees=0.0, scale=(1.0, 1.0), shift=4 / 224, fill=0.0)


def autoaugment_cifar(images: Images, generator: torch.Generator) -> Images:
    """AutoAugment with its policy for CIFAR-10, then `crop_flip`: SIT's code on CIFAR, image by
    image."""
    return crop_flip(autoaugment(images, generator, "cifar10"), generator)


def autoaugment_imagenet(images: Images, generator: torch.Generator) -> Images:
    """AutoAugment with its policy for ImageNet, then `crop_flip`: SIT's code on other data, image
    by image."""
    return crop_flip(autoaugment(images, generator, "imagenet"), generator)


def autoaugment(images: Images, generator: torch.Generator, policy: str) -> Images:
    """torchvision's AutoAugment (Cubuk et al. 2018, arXiv 1805.09501), on uint8 and with a
    sub-policy for each image.

    policy: "cifar10" or "imagenet", the data that it was learned on. torchvision draws from torch's
    global generator: it is seeded from `generator` here, and left as it was. Cost on one core,
    images of 32 and of 224 pixels: 10 and 80 ms for a batch of 64. The released code draws once for
    a whole batch."""
    from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy  # costs a second to import

    change, whole = AutoAugment(AutoAugmentPolicy(policy)), (images * 255).round().to(torch.uint8)
    seed = _seed(generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            seed)  # the host's alone; torch.manual_seed would seed devices too
        return torch.stack([change(image) for image in whole]).to(images.dtype) / 255


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


AUGMENTATIONS = {
    "none": none, "light": light, "crop_flip": crop_flip, "autoaugment_cifar": autoaugment_cifar,
    "autoaugment_imagenet": autoaugment_imagenet
}
