r"""Constant branch scales of plain convolutions, and what they mean for one kernel.

A CSLA block (constant-scale linear addition, arXiv 2205.15242, section 3.1) is, without its bias,

.. math:: y = t \odot (A * x) + s \odot (B * x) + c \odot x

with a kxk kernel ``A``, a 1x1 kernel ``B``, a vector ``c``, all trained, and constant scales ``t``
and ``s`` per output channel. It is one convolution with the kernel

.. math:: W = t A + s\,\mathrm{pad}(B) + \mathrm{pad}(\mathrm{diag}(c))

that is, a fixed linear map ``W = L(A, B, c)`` which, element by element of ``W``, adds up at most
three numbers. Both sums over branches that an optimizer needs are therefore tensors of the shape
of ``W``: :math:`\sum_b \sigma_b^2` and :math:`\sum_b |\sigma_b|`, where the scale :math:`\sigma_b`
of the identity is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam.algebra import AffineConv
from reparam.branching.operators import conv_operator_geometry
from reparam.branching.select import Where, refusal, select, tied_weights
from reparam.errors import InputError

_FIELDS = ("kernel", "pointwise", "identity")
_Power = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class BranchScales:
    r"""Scales of the branches beside one convolution with ``C`` output channels.

    Attributes:
        kernel: Shape ``(C,)``: the constant scale ``t`` of the kxk branch; nowhere zero.
        pointwise: Shape ``(C,)``: the constant scale ``s`` of the 1x1 branch, or None without it.
        identity: Shape ``(C,)``: the first value of ``c``, or None without an identity branch.
        train_identity: Whether ``c`` is trained (as in the paper), or stays as it is.

    Raises:
        InputError: A scale is not a finite vector, or the lengths differ.

    """

    kernel: Tensor
    pointwise: Tensor | None = None
    identity: Tensor | None = None
    train_identity: bool = True

    def __post_init__(self) -> None:
        """Check the shapes."""
        for name in _FIELDS:
            value = getattr(self, name)
            if value is None:
                continue
            if value.dim() != 1 or not value.is_floating_point():
                raise InputError(
                    f"the {name} scale has shape {tuple(value.shape)} and type {value.dtype}; "
                    f"needed one floating point number per output channel"
                )
            if value.shape != self.kernel.shape:
                raise InputError(
                    f"the {name} scale has {value.numel()} channels and the kernel scale "
                    f"{self.kernel.numel()}; needed the same number"
                )
            if not bool(value.isfinite().all()):
                raise InputError(f"the {name} scale is not finite everywhere")
        if not bool((self.kernel != 0).all()):
            raise InputError("the kernel scale is zero in a channel, which would never be trained")

    def squares(self, conv: _ConvNd) -> Tensor:
        r"""Sum the squared scales, :math:`\sum_b \sigma_b^2`, for each element of the kernel.

        Returns:
            Shape of ``conv.weight``, float64: the gradient multiplier of the paper (equation 4).

        """
        return self._sums(conv, torch.square)

    def magnitudes(self, conv: _ConvNd) -> Tensor:
        r"""Sum the absolute scales, :math:`\sum_b |\sigma_b|`, for each element of the kernel."""
        return self._sums(conv, torch.abs)

    def constant(self, conv: _ConvNd) -> Tensor | None:
        """Part of the kernel that is not trained: an untrained identity, else None."""
        if self.identity is None or self.train_identity:
            return None
        return _kernel(conv, torch.zeros_like(self.kernel), identity=self.identity)

    def combine(self, kernel: Tensor, pointwise: Tensor | None, conv: _ConvNd) -> Tensor:
        """Add the branches up to one kernel, in float64.

        Args:
            kernel: ``A``, shape of ``conv.weight``.
            pointwise: ``B``, shape ``(O, I / groups, 1, ...)``, or None without that branch.
            conv: The convolution that says where the centre is.

        """
        main = kernel.detach() * _column(self.kernel, kernel)
        if self.pointwise is None or pointwise is None:
            return _kernel(conv, main, identity=self.identity)
        addend = pointwise.detach() * _column(self.pointwise, pointwise)
        return _kernel(conv, main, addend, self.identity)

    def _sums(self, conv: _ConvNd, power: _Power) -> Tensor:
        trained = None if self.identity is None or not self.train_identity else self.identity
        return _kernel(
            conv,
            power(self.kernel.double()),
            None if self.pointwise is None else power(self.pointwise.double()),
            None if trained is None else torch.ones_like(trained),
        )


def scaled_convs(model: nn.Module, scales: Mapping[str, BranchScales]) -> dict[str, _ConvNd]:
    """Look up the convolutions that scales are given for, and check that they fit.

    Raises:
        InputError: A name is not that of a plain convolution with an odd, centred kernel, or the
            channels do not match.

    """
    modules = dict(model.named_modules())
    found: dict[str, _ConvNd] = {}
    for name, value in scales.items():
        module = modules.get(name)
        why = "there is no such module" if module is None else _unfit(module)
        if why is None and isinstance(module, _ConvNd):
            why = _mismatch(module, value)
            found[name] = module
        if why is not None:
            raise InputError(f"scales are given for {name!r}, but {why}")
    return found


def default_scales(model: nn.Module, *, where: Where = None) -> dict[str, BranchScales]:
    r"""Scales to begin a search with: the paper's rule by depth.

    The kxk and 1x1 scales of the ``l``-th convolution after the first of its stage are
    :math:`\sqrt{2 / l}`, those of the first are 1, and the identity starts at 1. A stage begins
    where a convolution has no identity branch: it changes the channels or the size.

    Args:
        model: A plain network whose convolutions run in the order of its modules.
        where: Which convolutions, as in :func:`reparam.branch`; by default all with a centred
            kernel of more than one tap.

    Returns:
        Scales by the name of the convolution.

    Raises:
        InputError: No convolution fits.

    Source: arXiv 2205.15242 (RepOptimizer), section 3.2 and its reference implementation.

    >>> from torch import nn
    >>> net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, stride=s) for s in (2, 1, 1, 1)))
    >>> [round(scales.kernel[0].item(), 3) for scales in default_scales(net).values()]
    [1.0, 1.414, 1.0, 0.816]

    """
    tied = tied_weights(model)
    chosen = {
        name: module
        for name, module in select(model, where).items()
        if isinstance(module, _ConvNd) and refusal(module, tied) is None and _unfit(module) is None
    }
    if not chosen:
        raise InputError(
            "no plain convolution with an odd, centred kernel of more than one tap was chosen"
        )
    scales: dict[str, BranchScales] = {}
    depth = 0
    for name, conv in chosen.items():
        with_identity = has_identity(conv)
        depth = depth + 1 if with_identity else 0
        value = torch.full((conv.out_channels,), math.sqrt(2 / depth) if depth else 1.0)
        ones = torch.ones(conv.out_channels)
        scales[name] = BranchScales(value, value.clone(), ones if with_identity else None)
    return scales


@torch.no_grad()
def initialize_(
    model: nn.Module,
    scales: Mapping[str, BranchScales],
    *,
    generator: torch.Generator | None = None,
) -> None:
    r"""Set plain kernels, in place, to what the branches of a new block add up to.

    .. math:: W \leftarrow t W + s\,\mathrm{pad}(B) + \mathrm{pad}(\mathrm{diag}(c))

    with a freshly drawn 1x1 kernel ``B``: the paper's rule of initialisation. Meant for a network
    that is trained from scratch; a trained one is trained on as it is.

    Raises:
        InputError: The scales do not fit the model.

    """
    for name, conv in scaled_convs(model, scales).items():
        pointwise = draw_pointwise(conv, generator) if scales[name].pointwise is not None else None
        conv.weight.copy_(scales[name].combine(conv.weight, pointwise, conv))


def pack_scales(scales: Mapping[str, BranchScales]) -> dict[str, Tensor]:
    """Write scales as a flat mapping of tensors, for safetensors or ``torch.save``."""
    packed: dict[str, Tensor] = {}
    for name, value in scales.items():
        for part in _FIELDS:
            tensor = getattr(value, part)
            if tensor is not None:
                frozen = part == "identity" and not value.train_identity
                packed[f"{name}:{'constant_' * frozen}{part}"] = tensor.detach().clone()
    return packed


def unpack_scales(packed: Mapping[str, Tensor]) -> dict[str, BranchScales]:
    """Read scales that :func:`pack_scales` wrote.

    Raises:
        InputError: A key is not of that form.

    """
    parts: dict[str, dict[str, Tensor]] = {}
    known = {*_FIELDS, "constant_identity"}
    for key, tensor in packed.items():
        name, _, part = key.rpartition(":")
        if part not in known:
            raise InputError(
                f"the key {key!r} does not end in one of {', '.join(sorted(known))} after a colon"
            )
        parts.setdefault(name, {})[part] = tensor
    return {name: _unpack_one(name, fields) for name, fields in parts.items()}


def _unpack_one(name: str, fields: Mapping[str, Tensor]) -> BranchScales:
    if "kernel" not in fields:
        raise InputError(f"the scales of {name!r} have {', '.join(fields)}; needed kernel")
    constant = fields.get("constant_identity")
    return BranchScales(
        fields["kernel"],
        fields.get("pointwise"),
        fields.get("identity") if constant is None else constant,
        train_identity=constant is None,
    )


def has_identity(conv: _ConvNd) -> bool:
    """Whether the input can be added to the output: equal channels, stride 1."""
    return conv.in_channels == conv.out_channels and set(conv.stride) == {1}


def draw_pointwise(conv: _ConvNd, generator: torch.Generator | None) -> Tensor:
    """Draw a 1x1 kernel as that of a new layer."""
    shape = (conv.out_channels, conv.in_channels // conv.groups, *(1,) * len(conv.kernel_size))
    device = generator.device if generator is not None else conv.weight.device
    fresh = torch.empty(shape, dtype=conv.weight.dtype, device=device)
    nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
    return fresh.to(conv.weight.device)


def _unfit(module: nn.Module) -> str | None:
    if not isinstance(module, _ConvNd) or module.transposed:
        return f"it is a {type(module).__name__}, not a convolution"
    sizes, steps = module.kernel_size, module.dilation
    if math.prod(sizes) == 1:
        return "its kernel is 1x1"
    centred = [d * (k - 1) // 2 for d, k in zip(steps, sizes, strict=True)]
    same = module.padding == "same" or list(module.padding) == centred
    if any(k % 2 == 0 for k in sizes) or not same:
        return (
            f"its kernel {tuple(sizes)} with padding {module.padding} is not odd and centred, so "
            f"that a 1x1 would not line up with it"
        )
    return None


def _mismatch(conv: _ConvNd, scales: BranchScales) -> str | None:
    if scales.kernel.numel() != conv.out_channels:
        return f"it has {conv.out_channels} output channels, not {scales.kernel.numel()}"
    if scales.identity is not None and not has_identity(conv):
        return "it changes the channels or the size, so that there is no identity branch"
    return None


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Shape one number per output channel to multiply a kernel, in float64."""
    return values.detach().to(like.device, torch.float64).view(-1, *(1,) * (like.dim() - 1))


def _kernel(
    conv: _ConvNd, kernel: Tensor, pointwise: Tensor | None = None, identity: Tensor | None = None
) -> Tensor:
    """Add up the numbers of three branches where they are in one kernel, in float64.

    Each is a kernel of its branch, or has one number for each output channel.
    """
    geometry = replace(conv_operator_geometry(conv), bias=False)
    centre = replace(geometry, offsets=tuple((t[len(t) // 2],) for t in geometry.offsets))
    branches = [(geometry, kernel), (centre, pointwise)]
    if identity is not None:  # else there may be no group for each channel
        branches.append((replace(centre, groups=centre.in_channels), identity))
    total = AffineConv(geometry, kernel.new_zeros(geometry.kernel_shape))
    for where, numbers in branches:
        if numbers is not None:
            flat = numbers if numbers.dim() > 1 else _column(numbers, total.kernel)
            given = flat.to(total.kernel).expand(where.kernel_shape)
            total = total + AffineConv(where, given)
    return total.kernel
