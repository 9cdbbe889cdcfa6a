"""Nothing on the wrong device and nothing waited for: every loss and every augmentation under fake
CUDA tensors.

Fake tensors have a device and a shape but no values. Two of them on different devices do not mix,
and a value cannot be asked for (`.item()`, `.cpu().numpy()`, `if tensor:`), so both mistakes are
found on a machine without a GPU. What runs on the host by design is made before: tokens, labels,
random numbers. The backward pass needs a real device.
"""
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torchvision.transforms.v2 import AutoAugment

from clstudy.data import augment
from clstudy.data.augment import AUGMENTATIONS
from clstudy.evaluation.accuracy import hits
from clstudy.evaluation.features import CHUNK, features
from clstudy.losses.functional import contrastive, distillation, geodesic, match
from clstudy.methods import METHODS
from clstudy.models.clip import Clip
from clstudy.models.tuners import TUNERS

CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def there(tensor: torch.Tensor) -> torch.Tensor:
    """As large and of the same kind, on the fake GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def moved(clip: Clip) -> Clip:
    """Every parameter and buffer on the fake GPU. (`Module.to` cannot make fake tensors of real
    ones.)"""
    for module in clip.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(there(p), requires_grad=p.requires_grad))
        for name, b in module.named_buffers(recurse=False):
            setattr(module, name, there(b))
    return clip


@pytest.fixture(params=TUNERS)
def tuned(request, clip):
    """The toy model under each tuner, on the host; and the tuner's name."""
    TUNERS[request.param]().apply(clip, TUNERS[request.param].towers[-1])
    return clip, request.param


@pytest.fixture
def on_cuda(tuned, batch, fake):
    """The toy model under each tuner, and a batch, there; labels and indices stay on the host."""
    return moved(tuned[0]), replace(batch, image=there(batch.image), prompts=there(batch.prompts))


def test_fake_tensors_find_both_mistakes(fake):
    values = torch.rand(3, device="cuda")
    with pytest.raises(FakeTensorDeviceMismatchError):
        values + torch.rand(3)
    with pytest.raises(DataDependentOutputException):
        values.sum().item()
    with pytest.raises(DataDependentOutputException):
        bool(values.sum() > 0)


def test_a_model_moves_as_a_whole(on_cuda):
    clip, batch = on_cuda
    assert {t.device for t in (*clip.parameters(), *clip.buffers())} == {CUDA} == {clip.device}
    assert batch.text.device == batch.target.device == batch.present().text.device == CUDA


PAIRS = [(tuner, name) for name in METHODS for tuner in TUNERS
         if METHODS[name].needs_tuner in ("", tuner)]


@pytest.mark.parametrize(("tuned", "name"), PAIRS, indirect=["tuned"])
def test_every_loss_is_computed_on_the_device_without_waiting(tuned, batch, name):
    (clip, _), method = tuned, METHODS[name]()
    method.before_stage(clip,
                        batch.stage)  # on the host: fake tensors cannot be copied as a teacher is
    if method.needs_reference:
        method.rehearse(clip, batch)  # reference pairs are drawn on the host by design
    with FakeTensorMode():
        loss_on_the_device(method, clip, batch)


def taken(part):
    """What a method holds: models, tensors and tensors by name are there, all else is as it was."""
    if isinstance(part, dict):
        return {name: taken(value) for name, value in part.items()}
    return moved(part) if isinstance(
        part, Clip) else there(part) if isinstance(part, torch.Tensor) else part


def loss_on_the_device(method, clip, batch) -> None:
    for name, part in vars(method).items():
        setattr(method, name, taken(part))
    clip, batch = moved(clip), replace(batch, image=there(batch.image), prompts=there(
        batch.prompts))
    terms = method.loss(clip.train(), batch)
    assert all(term.device == CUDA and term.shape == () and term.dtype == torch.float32
               for term in terms.values())
    method.edit_gradients(clip)
    method.after_step(clip, batch)
    assert method.deploy(clip).device == CUDA


def every_operation(self, image: torch.Tensor) -> torch.Tensor:
    """In place of AutoAugment's choice, which is made on the host by design: all operations of its
    policy."""
    for name in sorted({operation for pair in self._policies for operation, _, _ in pair}):
        image = self._apply_image_or_video_transform(image, name, 0.5, self.interpolation,
                                                     self._fill)
    return image


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_stays_on_the_device(fake, name, monkeypatch):
    monkeypatch.setattr(AutoAugment, "forward", every_operation)
    monkeypatch.setattr(augment, "_seed", lambda generator: 0)
    generator = torch.Generator().manual_seed(
        0)  # on the host, for the same pictures on every device
    images = torch.empty(4, 3, 64, 64, device="cuda")
    found = AUGMENTATIONS[name](images, generator)
    assert found.device == CUDA and found.shape == images.shape and found.dtype == images.dtype


def test_losses_on_the_device(fake):
    image, text = torch.rand(5, 8, device="cuda"), torch.rand(5, 8, device="cuda")
    scale, target = torch.rand((), device="cuda"), torch.zeros(5, dtype=torch.long, device="cuda")
    for loss in (match(image, text, scale, target, torch.rand(
            5, device="cuda")), contrastive(
                image, text, scale), contrastive(image, text, scale, torch.rand(
                    5, 5, device="cuda")), distillation(image, text, 2.0), geodesic(image, text)):
        assert loss.device == CUDA


@torch.inference_mode()
def test_evaluation_until_its_one_look(on_cuda):
    """What `evaluate` does before it moves the hits to the host; its tokens are made on the host
    and moved."""
    clip, batch = on_cuda
    images = torch.empty(CHUNK + 5, 3, 64, 64, dtype=torch.uint8, device="cuda")
    similarity = features(clip.eval(), images) @ clip.encode_text(batch.prompts).T
    assert similarity.device == CUDA and similarity.shape == (CHUNK + 5, 6)
    labels = torch.zeros(CHUNK + 5, dtype=torch.long, device="cuda")
    for offered in (torch.ones(1, 6, dtype=torch.bool, device="cuda"),
                    torch.ones(CHUNK + 5, 6, dtype=torch.bool, device="cuda")):
        assert hits(similarity, labels, offered).device == CUDA


def test_batches_are_cut_from_images_on_the_device(toy, fake):
    from clstudy.data.streams import Stage
    from clstudy.training.loop import batches

    benchmark = toy_on_cuda(toy)
    prompts = torch.empty(6, 9, dtype=torch.long, device="cuda")
    stage, seen = Stage(1, (0, 1), np.arange(12)), []
    for batch in batches(stage, benchmark, seen, prompts, 8, stage.index):
        assert batch.image.device == batch.target.device == batch.text.device == CUDA
        assert batch.image.dtype == torch.float32


def toy_on_cuda(toy):
    """The toy benchmark with its pictures on the fake GPU."""
    with unset_fake_temporarily():
        benchmark = toy().load()
    return replace(benchmark, train=replace(benchmark.train, images=there(benchmark.train.images)))


# ---- on a real one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_is_near_the_run_on_the_cpu(tiny):
    from small_runs import train

    runs = {device: train(tiny.replace(device=device, lr=1e-4)) for device in ("cpu", "cuda")}
    steps = {device: [row["value"] for row in found[1]] for device, found in runs.items()}
    assert np.allclose(steps["cpu"], steps["cuda"],
                       atol=1e-3)  # the same batches under the same augmentation
    assert [row["set"] for row in runs["cpu"][0]] == [row["set"] for row in runs["cuda"][0]]
