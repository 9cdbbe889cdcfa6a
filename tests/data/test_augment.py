"""AutoAugment inside a run: torchvision's, image by image, with no randomness but that of the
generator."""
import pytest
import torch
from torchvision.transforms import v2

from clstudy.data import augment
from clstudy.data.augment import AUGMENTATIONS, autoaugment, crop_flip

POLICIES = {"autoaugment_cifar": "cifar10", "autoaugment_imagenet": "imagenet"}
each = pytest.mark.parametrize(("name", "policy"), POLICIES.items())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    """Sixteen pictures of smooth colours, as a benchmark's uint8 are handed to the loop."""
    coarse = torch.rand(16, 3, 4, 4, generator=seeded(0))
    return (torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 255).round() / 255


@each
def test_the_same_generator_gives_the_same_pictures_and_goes_on(images, name, policy):
    generator, again = seeded(3), seeded(3)
    first, second = AUGMENTATIONS[name](images, generator), AUGMENTATIONS[name](images, generator)
    torch.manual_seed(99)  # what the rest of the run has drawn does not matter
    assert torch.equal(first, AUGMENTATIONS[name](images, again))
    assert torch.equal(second, AUGMENTATIONS[name](images, again))
    assert not torch.equal(first, second)
    assert first.shape == images.shape and first.dtype == images.dtype
    assert 0 <= first.min() and first.max() <= 1 and not torch.equal(first, images)


@each
def test_the_global_generator_is_left_as_it_was(images, name, policy):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    AUGMENTATIONS[name](images, seeded(0))
    assert torch.equal(torch.rand(3), expected)


@each
def test_it_is_the_policy_of_torchvision_and_then_the_crop(images, name, policy):
    generator = seeded(3)
    torch.manual_seed(augment._seed(generator))
    change = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    changed = torch.stack([change((image * 255).round().to(torch.uint8))
                           for image in images]).float() / 255
    assert torch.equal(autoaugment(images, seeded(3), policy), changed)
    assert torch.equal(AUGMENTATIONS[name](images, seeded(3)), crop_flip(changed, generator))


@each
def test_each_image_has_a_draw_of_its_own(images, name, policy):
    copies = images[:1].expand(16, -1, -1, -1).contiguous()
    found = autoaugment(copies, seeded(1), policy)
    assert len({tuple(image.flatten().tolist()) for image in found}) > 8


def test_the_two_policies_differ(images):
    assert not torch.equal(*(autoaugment(images, seeded(1), policy)
                             for policy in POLICIES.values()))
    with pytest.raises(ValueError):
        autoaugment(images, seeded(1), "cifar")
