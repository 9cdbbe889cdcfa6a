"""One run on several processes or GPUs, which compute the loss of the whole batch together.

    torchrun --nproc-per-node 2 -m clstudy.cli train CONFIG.json

    F = [E_θ(x_1); …; E_θ(x_W)]      process r encodes its part x_r; every process gets all rows
    L = L(F, θ)                      the loss over the whole batch, on every process
    ∇L = (1/W) Σ_r [ W · ∂L/∂F_r · ∂F_r/∂θ  +  ∂L/∂θ at fixed F ]

Process r computes the gradient in brackets. The backward pass through the gathered features keeps
the rows of process r, times W; the gradient that reaches weights on another way (temperature,
penalties, keys of prompts) is the same on all processes. The mean over processes is therefore the
gradient of one process, for every loss. Each process holds the pixels of the whole batch, draws the
same random numbers, and has the same memory, averages and weights, so methods know nothing of this
module.

`torch.nn.parallel.DistributedDataParallel` averages the gradients of losses that each process
computes on its own rows, and so misses those of pairs across processes. It also wants every use of
the model to pass its own forward once a step; methods encode twice, copy the model, and ask for
gradients of their own. Here the mean is one call after `backward`.

Only the loss of a step and evaluation are shared out (`sharing`). Every process computes all else
in full: what a method does between steps (herding, Fisher information, A-GEM's second gradient), a
run with probes, and a tower whose training cannot be cut (`uncut`). Only the first process writes
files."""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from clstudy.utils import paths

PATIENCE = timedelta(minutes=30)  # for other processes; torchrun itself notices one that died
_ON = {"joined": False, "sharing": False}


@contextmanager
def joined() -> Iterator[None]:
    """Let the processes that torchrun started work together until the block ends.

    They talk by gloo on CPUs and by NCCL on GPUs, one GPU a process. Without torchrun nothing
    happens."""
    if "RANK" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu())
    store, rank, count = next(dist.rendezvous("env://"))
    # torchrun --max-restarts keeps the store, which still holds the addresses of the last attempt
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    _ON["joined"] = True
    if not first():
        os.environ[paths.QUIET] = "1"  # one bar is enough
    try:
        yield
    finally:
        _ON["joined"] = False
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if _ON["joined"] else 1


def first() -> bool:
    """Return whether this process is the one that writes."""
    return not _ON["joined"] or dist.get_rank() == 0


def own(device: torch.device) -> torch.device:
    """Return the device of this process: of several, each has the GPU with its number on the host.

    ValueError: several processes on MPS or on one named GPU, or more processes than GPUs."""
    if world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise ValueError(
            f"device={str(device)!r}: several processes need 'cpu', or 'cuda' with a GPU for each")
    return torch.device("cuda", _own_gpu())


def _own_gpu() -> int:
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"process {number + 1} of this host has no GPU, there are {count}: choose "
                         "a smaller --nproc-per-node, or hide them (CUDA_VISIBLE_DEVICES=)")
    return number


# ---- in a step


@contextmanager
def sharing(wanted: bool = True) -> Iterator[None]:
    """Let `Clip.encode_image` and `encode_text` encode a part of the rows on each process.

    All processes get all rows. A gradient through them is that of this process's part; only
    `average` makes it whole."""
    before, _ON["sharing"] = _ON["sharing"], wanted and world_size() > 1
    try:
        yield
    finally:
        _ON["sharing"] = before


def encode(encoder: Callable[[Tensor], Tensor], rows: Tensor,
           tower: Callable[[], Iterator[nn.Module]]) -> Tensor:
    """Return `encoder(rows)`, computed in parts while `sharing`. tower: returns its modules."""
    if not _ON["sharing"] or len(rows) < world_size() or any(uncut(module) for module in tower()):
        return encoder(rows)
    mine = shard(len(rows))
    return Gathered.apply(encoder(rows[mine]), len(rows), mine)


def shard(rows: int, rank: int | None = None) -> slice:
    """Return which rows a process encodes, by default this one. Sizes differ by one at most."""
    rank = dist.get_rank() if rank is None else rank
    return slice(rows * rank // world_size(), rows * (rank + 1) // world_size())


def uncut(module: nn.Module) -> bool:
    """Return whether a module, in training, treats part of a batch differently from all of it.

    Such modules are batch norm, dropout (parts would draw other random numbers), and those with
    `needs_whole_batch = True` (prompts that a batch votes for and the loss reads)."""
    if not module.training:
        return False
    names = ("p", "prob", "drop_prob", "dropout")  # of the rate, in torch, open_clip and timm
    rates = [getattr(module, name, 0) for name in names]
    return (isinstance(module, nn.modules.batchnorm._BatchNorm)
            or getattr(module, "needs_whole_batch", False)
            or any(isinstance(rate, float) and rate > 0 for rate in rates))


class Gathered(torch.autograd.Function):
    """The rows of all processes: a sum in which each process contributes its rows, else zeros."""

    @staticmethod
    def forward(ctx, part: Tensor, rows: int, mine: slice) -> Tensor:
        ctx.mine = mine
        whole = part.new_zeros(rows, *part.shape[1:])
        whole[mine] = part
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return world_size() * gradient[ctx.mine], None, None


def shared(function: Callable, wanted: bool = True) -> Callable:
    """Return the function as it runs while `sharing`."""
    return sharing(wanted)(function)


def backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Call `loss.backward()` and average the gradients of these parameters."""
    loss.backward()
    average(parameters)


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over processes, which is that of the whole batch.

    All processes must call it with the same parameters."""
    found = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not found:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in found])
    dist.all_reduce(flat)
    flat /= world_size()
    means = flat.split([gradient.numel() for gradient in found])
    for gradient, mean in zip(found, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


# ---- around steps


def due(saver) -> bool:
    """Return whether to save now, as the first process says. If one is to stop, all are."""
    if world_size() == 1:
        return saver.due()
    flags = torch.tensor([saver.stopping, saver.due()], dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    saver.stopping = bool(flags[0])
    return bool(flags[1])


def save(saver) -> None:
    """Save at the end of a stage. All processes stop here, or none."""
    due(saver)
    saver.save()


def agreed(where: str, what: Any) -> Any:
    """Return `what` (a list of weights, or a value), after all processes have compared theirs.

    RuntimeError: they differ in it, or in their random numbers."""
    if world_size() == 1:
        return what
    values = [p.detach().double().sum().item() for p in what] if isinstance(what, list) else what
    found = hashlib.sha256(torch.get_rng_state().numpy().tobytes() + repr(values).encode())
    digests = [None] * world_size()
    dist.all_gather_object(digests, found.hexdigest())
    if len(set(digests)) > 1:
        raise RuntimeError(
            f"{where} the processes differ in weights, random numbers or position; a method or "
            "tuner may depend on which rows a process encodes (see clstudy/utils/distributed.py)")
    return what


def broadcast(what: Any = None) -> Any:
    """Return the first process's `what`, on every process."""
    box = [what]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
