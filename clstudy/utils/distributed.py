"""One run on several processes or GPUs: each encodes its share of a batch, and all compute the loss
of the whole.

    torchrun --nproc-per-node 2 -m clstudy.cli train CONFIG.json

    F = [E_θ(x_1); …; E_θ(x_W)]      process r encodes its part x_r of the rows; every process gets all features
    L = L(F, θ)                      the loss over the whole batch, on every process
    ∇L = (1/W) Σ_r [ W · ∂L/∂F_r · ∂F_r/∂θ  +  ∂L/∂θ at fixed F ]

What is in brackets is the gradient that process r finds. Going back through the gathered features
it keeps its own rows, times W; what reaches weights without them (temperature, penalties, keys of
prompts) is the same on all processes. The mean is the gradient of one process, for every loss. Each
process holds the pixels of the whole batch, draws the same random numbers, and has the same memory,
averages and weights; so methods know nothing of this module.

`torch.nn.parallel.DistributedDataParallel` averages too, but the gradients of losses that each
process computes on its own rows: not those of pairs across processes. And it wants every use of the
model to pass its own forward, once a step; methods encode twice, copy the model, and ask for
gradients of their own. Here the mean is one call after `backward`.

Only a step's loss and evaluation are shared out (`sharing`). All else is computed in full on every
process: what a method does between steps (a memory's herding, Fisher information, A-GEM's second
gradient), a run with probes, and a tower in training that cannot be cut: see `uncut`. The first
process alone writes files."""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

PATIENCE = timedelta(
    minutes=30)  # of a process for the others; who dies is noticed at once, by torchrun
_ON = {"joined": False, "sharing": False}


@contextmanager
def joined() -> Iterator[None]:
    """For the length of the block the processes that torchrun started work together; without
    torchrun nothing is done.

    gloo on the CPU and, where there are GPUs, NCCL on them, one GPU a process."""
    if "RANK" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu())
    store, rank, count = next(
        dist.rendezvous("env://"))  # after --max-restarts it is the same store: addresses are old
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    _ON["joined"] = True
    if not first():
        os.environ["CLSTUDY_QUIET"] = "1"  # one bar is enough
    try:
        yield
    finally:
        _ON["joined"] = False
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _ON["joined"] else 1


def first() -> bool:
    """Whether this process is the one that writes."""
    return not _ON["joined"] or dist.get_rank() == 0


def own(device: torch.device) -> torch.device:
    """Of several processes each has the GPU with its number on the host. ValueError: one GPU for
    all; too few; MPS."""
    if world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise ValueError(
            f"device={str(device)!r}: several processes need 'cpu', or 'cuda' with a GPU for each")
    return torch.device("cuda", _own_gpu())


def _own_gpu() -> int:
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise ValueError(
            f"process {number + 1} of this host has no GPU, there are {there}: choose a smaller "
            "--nproc-per-node, or hide them (CUDA_VISIBLE_DEVICES=)")
    return number


# ---- in a step


@contextmanager
def sharing(wanted: bool = True) -> Iterator[None]:
    """Inside, `Clip.encode_image` and `encode_text` encode a share here and get the rest from the
    other processes.

    A gradient through them is that of this process's share; only `average` makes it whole."""
    before, _ON["sharing"] = _ON["sharing"], wanted and world_size() > 1
    try:
        yield
    finally:
        _ON["sharing"] = before


def encode(encoder: Callable[[Tensor], Tensor], rows: Tensor,
           tower: Callable[[], Iterator[nn.Module]]) -> Tensor:
    """`encoder(rows)`, computed in shares where that is wanted and can be. tower: its modules."""
    if not _ON["sharing"] or len(rows) < world_size() or any(uncut(module) for module in tower()):
        return encoder(rows)
    mine = shard(len(rows))
    return Gathered.apply(encoder(rows[mine]), len(rows), mine)


def shard(rows: int, rank: int | None = None) -> slice:
    """Which rows a process encodes, by default this one; sizes differ by one at most."""
    rank = dist.get_rank() if rank is None else rank
    return slice(rows * rank // world_size(), rows * (rank + 1) // world_size())


def uncut(module: nn.Module) -> bool:
    """Whether a module, in training, makes of a share something else than of the batch: statistics
    of the batch (BatchNorm), chance (dropout; other numbers would be drawn), or what says so by
    `needs_whole_batch = True` (prompts that a batch votes for and the loss reads)."""
    if not module.training:
        return False
    rates = [getattr(module, name, 0)
             for name in ("p", "prob", "drop_prob", "dropout")]  # torch, open_clip, timm
    return (isinstance(module, nn.modules.batchnorm._BatchNorm)
            or getattr(module, "needs_whole_batch", False)
            or any(isinstance(rate, float) and rate > 0 for rate in rates))


class Gathered(torch.autograd.Function):
    """The rows of all processes. (A sum of rows that are zero but on one process, so shares may
    differ in size.)"""

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
    """The function, called while `sharing`."""
    return sharing(wanted)(function)


def backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """`loss.backward()`, and the gradients of these parameters made whole."""
    loss.backward()
    average(parameters)


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Make the gradients those of the whole batch, the same on all processes. Every process has the
    same ones."""
    found = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not found:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in found])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(found, flat.split([gradient.numel() for gradient in found]),
                              strict=True):
        gradient.copy_(mean.view_as(gradient))


# ---- around steps


def due(saver) -> bool:
    """Whether to save now: the first process says when. Where one is to stop, all are, after the
    same step."""
    if world_size() == 1:
        return saver.due()
    flags = torch.tensor([saver.stopping, saver.due()], dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    saver.stopping = bool(flags[0])
    return bool(flags[1])


def save(saver) -> None:
    """Save at the end of a stage. All stop here, or none."""
    due(saver)
    saver.save()


def agreed(where: str, what: Any) -> Any:
    """`what`, once all processes are here. RuntimeError: they differ in it, or in random
    numbers."""
    if world_size() == 1:
        return what
    found = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    found.update(
        repr([p.detach().double().sum().item() for p in what] if _weights(what) else what).encode())
    digests = [None] * world_size()
    dist.all_gather_object(digests, found.hexdigest())
    if len(set(digests)) > 1:
        raise RuntimeError(
            f"{where} the processes differ in weights, random numbers or position; a method or tuner "
            "may depend on which rows a process encodes (see clstudy/utils/distributed.py)")
    return what


def _weights(thing: Any) -> bool:
    return isinstance(thing, list) and all(isinstance(p, Tensor) for p in thing)


def broadcast(what: Any = None) -> Any:
    """What the first process says, on every process."""
    box = [what]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
