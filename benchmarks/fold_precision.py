"""How exact is a folded weight? Ours, timm's conversion and the official one, against float64.

    python benchmarks/fold_precision.py [--models repvgg_a0 ...] [--official CHECKOUT]

One network with random numbers (all five quantities of every BN, eps too) is folded in each way.
The reference is RepVGG's equations 3 and 4 written out in float64 here, with nothing of the ways
that are compared. An error is counted in ulp: the spacing of float32 numbers at the exact value.
0.5 is what rounding once costs. The worst weights are those in the middle, where three branches
are added and may cancel; the others are one product each. `--official` is a checkout of the
authors' repository.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

RESULTS = Path(__file__).with_name("results") / "fold_precision.json"

Folded = list[tuple[Tensor, Tensor]]
"""Weight and bias of every block, in order."""


# ------------------------------------------------------------------------------ the network


def build(name: str, seed: int) -> nn.Module:
    """A network of timm's RepVGG blocks whose norms have random numbers, as after training."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            module.eps = 10.0 ** -(2 + 4 * torch.rand((), generator=rng).item())
            module.weight.data = 0.5 + torch.rand(count, generator=rng)
            module.bias.data = torch.randn(count, generator=rng)
            module.running_mean = torch.randn(count, generator=rng)
            module.running_var = 10.0 ** (3 * torch.rand(count, generator=rng) - 2)
    return model.eval()


def blocks_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if type(module).__name__ == "RepVggBlock":
            yield path, module


def exact(block: Any) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a block in float64."""
    dense = block.conv_kxk
    kernel, bias = scaled(dense.conv.weight, dense.bn)
    if block.conv_1x1 is not None:
        point, shift = scaled(block.conv_1x1.conv.weight, block.conv_1x1.bn)
        kernel[:, :, 1, 1] += point[:, :, 0, 0]
        bias += shift
    if block.identity is not None:
        width, groups = dense.conv.in_channels, dense.conv.groups
        unit = torch.zeros(width, width // groups, 1, 1)
        unit[range(width), [o % (width // groups) for o in range(width)]] = 1.0
        skip, shift = scaled(unit, block.identity)
        kernel[:, :, 1, 1] += skip[:, :, 0, 0]
        bias += shift
    return kernel, bias


def scaled(weight: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = (
        t.detach().double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    factor = gamma / (var + norm.eps).sqrt()
    return weight.detach().double() * factor.view(-1, 1, 1, 1), beta - mean * factor


# ------------------------------------------------------------------------------ three ways to fold


def by_reparam(model: nn.Module) -> Folded:
    fused = reparam.fuse(model)
    return [only_conv(fused.get_submodule(path)) for path, _ in blocks_of(model)]


def by_timm(model: nn.Module) -> Folded:
    converted = reparameterize_model(model)
    return [only_conv(converted.get_submodule(path)) for path, _ in blocks_of(model)]


def by_official(model: nn.Module) -> Folded:
    """Fold with the official block, filled with the numbers of timm's."""
    official = importlib.import_module("repvgg").RepVGGBlock
    found = []
    for _, block in blocks_of(model):
        conv = block.conv_kxk.conv
        shape = (conv.in_channels, conv.out_channels, 3)
        with contextlib.redirect_stdout(None):  # the block prints when it is made
            twin = official(*shape, stride=conv.stride[0], padding=1, groups=conv.groups)
        fill(twin.rbr_dense.conv, conv)
        fill(twin.rbr_dense.bn, block.conv_kxk.bn)
        fill(twin.rbr_1x1.conv, block.conv_1x1.conv)
        fill(twin.rbr_1x1.bn, block.conv_1x1.bn)
        if block.identity is not None:
            fill(twin.rbr_identity, block.identity)
        twin.eval().switch_to_deploy()
        found.append(only_conv(twin))
    return found


def fill(empty: nn.Module, full: nn.Module) -> None:
    state = full.state_dict()
    empty.load_state_dict({key: state[key] for key in empty.state_dict()})
    if isinstance(full, nn.BatchNorm2d):
        empty.eps = full.eps


def only_conv(module: nn.Module) -> tuple[Tensor, Tensor]:
    (layer,) = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    assert layer.bias is not None
    return layer.weight.detach(), layer.bias.detach()


# ------------------------------------------------------------------------------ errors


def ulps(found: Tensor, truth: Tensor) -> Tensor:
    """Distance from the exact value in spacings of float32 at that value."""
    assert found.dtype is torch.float32
    nearest = truth.float().abs()
    spacing = torch.nextafter(nearest, torch.tensor(math.inf)).double() - nearest.double()
    return (found.double() - truth).abs() / spacing


def summary(folded: Folded, reference: Folded) -> dict[str, Any]:
    pairs = list(zip(folded, reference, strict=True))
    weights = [ulps(found[0], truth[0]) for found, truth in pairs]
    biases = torch.cat([ulps(found[1], truth[1]) for found, truth in pairs])
    outer = torch.ones(3, 3, dtype=torch.bool)
    outer[1, 1] = False
    nearest = sum(
        int((found == truth.float()).sum())
        for pair, truths in pairs
        for found, truth in zip(pair, truths, strict=True)
    )
    numbers = sum(w.numel() for w in weights) + biases.numel()
    return {
        "worst_weight_ulp": max(float(w.max()) for w in weights),
        "worst_weight_off_centre_ulp": max(float(w[..., outer].max()) for w in weights),
        "worst_bias_ulp": float(biases.max()),
        "not_nearest": numbers - nearest,
        "numbers": numbers,
    }


def main() -> None:
    """Fold every model in every way, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["repvgg_a0", "repvgg_b1g4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--official", type=Path, help="checkout of the official RepVGG repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    ways: dict[str, Callable[[nn.Module], Folded]] = {"reparam": by_reparam, "timm": by_timm}
    if options.official:
        sys.path.insert(0, str(options.official))
        ways["official"] = by_official
    rows = []
    print("worst error in ulp: of all weights, of those off the centre, of biases")
    for name in options.models:
        for seed in options.seeds:
            model = build(name, seed)
            with torch.no_grad():
                reference = [exact(block) for _, block in blocks_of(model)]
            for way, fold in ways.items():
                row = {"model": name, "seed": seed, "way": way}
                row |= summary(fold(model), reference)
                rows.append(row)
                print(
                    f"{name:12} seed {seed}  {way:8} {row['worst_weight_ulp']:11.2f} "
                    f"{row['worst_weight_off_centre_ulp']:6.2f} {row['worst_bias_ulp']:9.2f}   "
                    f"{row['not_nearest']:,} of {row['numbers']:,} not the nearest"
                )
    environment = describe_environment()
    environment["versions"]["timm"] = timm.__version__
    options.out.parent.mkdir(exist_ok=True)
    record = {"environment": environment, "unit": "ulp of float32", "rows": rows}
    write_text(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
