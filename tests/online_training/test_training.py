"""Merged blocks in the ways that nets are trained: processes, checkpointing, formats, compilers."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import reparam
from stepping import assert_same_state, merged, merged_by_force, randomised, train_both
from zoo.mobile import MobileOneBlock
from zoo.repvgg import RepVGGBlock


def _wide() -> nn.Module:
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.ReLU(),
            MobileOneBlock(6, 6, groups=6, branches=2, activation=nn.ReLU),
            MobileOneBlock(6, 8, kernel=1, branches=2, activation=nn.ReLU),
            RepVGGBlock(8, 8, stride=2),
        )
    )


def _batches(steps: int, count: int = 4) -> list[torch.Tensor]:
    return [torch.randn(count, 3, 7, 8, dtype=torch.float64) + 0.3 for _ in range(steps)]


def _gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    (
        net(x) * torch.linspace(-1, 1, 8, dtype=torch.float64).view(-1, 1, 1)
    ).square().mean().backward()
    return [p.grad for p in net.parameters()]


def _assert_alike(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


class _Checkpointed(nn.Module):
    """Runs every block again in the backward pass instead of keeping its values."""

    def __init__(self, net: nn.Sequential, *, reentrant: bool) -> None:
        super().__init__()
        self.net, self._reentrant = net, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.net:
            x = checkpoint(block, x, use_reentrant=self._reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(*, reentrant: bool) -> None:
    """Statistics follow twice, as those of branches do."""
    wide = _wide()
    online = merged_by_force(wide)
    x = _batches(1)[0]
    both = [_Checkpointed(net, reentrant=reentrant) for net in (wide, online)]
    grads = [_gradients(net, x.clone().requires_grad_()) for net in both]
    _assert_alike(*grads)
    assert_same_state(wide, online)


def test_gradients_accumulate_and_graphs_are_kept() -> None:
    wide = _wide()
    online = merged_by_force(wide)
    batches = _batches(3)
    for net in (wide, online):
        for x in batches:
            net(x).square().mean().backward()
        y = net(batches[0])
        for retain in (True, False):
            y.tanh().mean().backward(retain_graph=retain)
    _assert_alike([p.grad for p in online.parameters()], [p.grad for p in wide.parameters()])


def test_channels_last() -> None:
    wide = _wide()
    wide = wide[1:]  # of a first 1x1 layer PyTorch's own gradient fails in this format
    online = merged_by_force(wide).to(memory_format=torch.channels_last)
    x = torch.randn(4, 6, 7, 8, dtype=torch.float64)
    _assert_alike(_gradients(online, x.to(memory_format=torch.channels_last)), _gradients(wide, x))
    assert_same_state(wide, online)


def test_frozen_layers_and_input_gradients() -> None:
    """Kernels without gradients, and no gradient of the input where none is asked for."""
    wide = _wide()[2:]
    online = merged_by_force(wide)
    found = []
    for net in (wide, online):
        net[0].convs.requires_grad_(False)
        x = torch.randn(4, 6, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        net(x).square().mean().backward()
        found.append([x.grad, *(p.grad for p in net.parameters() if p.requires_grad)])
        assert all(p.grad is None for p in net[0].convs.parameters())
    _assert_alike(*found)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_nets_train_alike() -> None:
    wide = _wide()
    online = merged_by_force(wide)
    compiled = torch.compile(online, backend="eager")
    x = _batches(1)[0]
    _assert_alike(_gradients(compiled, x), _gradients(wide, x))
    assert_same_state(wide, online)


def test_a_new_shape_is_decided_for_anew() -> None:
    """No choice by counted work changes a result."""
    wide = _wide()
    online = reparam.online(wide)
    assert merged(online)
    for size in (5, 24):
        train_both(wide, online, [torch.randn(2, 3, size, size, dtype=torch.float64)])


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        wide, online, batches = torch.load(f"{folder}/nets.pt", weights_only=False)
        # Batches of different sizes: each counts by its size.
        parts = [x[:3] if rank == 0 else x[3:] for x in batches]
        train_both(
            DistributedDataParallel(copy.deepcopy(wide)),
            DistributedDataParallel(copy.deepcopy(online)),
            parts,
        )
        for module in online.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = nn.SyncBatchNorm  # in place: merged parts keep their keys
                module.process_group = None
        optimizer = torch.optim.SGD(online.parameters(), lr=0.02, momentum=0.9)
        for x in parts:
            optimizer.zero_grad()
            online(x).square().sum().backward()
            for parameter in online.parameters():  # DDP takes no SyncBatchNorm on CPUs
                dist.all_reduce(parameter.grad)
            optimizer.step()
        torch.save(online.state_dict(), f"{folder}/found{rank}.pt")
        dist.barrier()  # neither closes its sockets while the other still reads
    finally:
        dist.destroy_process_group()
    # All is written. The wrappers' reducers may still hold gloo's threads, and a shutdown of the
    # interpreter that meets one running aborts the process.
    os._exit(0)


def test_two_processes_train_as_one_with_all_images(tmp_path: Path) -> None:
    """DistributedDataParallel; SyncBatchNorm: joint moments, in one sum over processes."""
    torch.manual_seed(0)
    wide = randomised(
        nn.Sequential(
            MobileOneBlock(4, 4, groups=4, branches=2, activation=nn.ReLU),
            MobileOneBlock(4, 8, kernel=1, branches=2, activation=nn.ReLU),
        )
    )
    batches = [torch.randn(5, 4, 6, 7, dtype=torch.float64) for _ in range(3)]
    torch.save((wide, merged_by_force(wide), batches), tmp_path / "nets.pt")
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.02, momentum=0.9)
    for x in batches:
        optimizer.zero_grad()
        wide(x).square().sum().backward()
        optimizer.step()
    for rank in range(2):
        found = torch.load(tmp_path / f"found{rank}.pt")
        for name, value in wide.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
