"""An optimizer that trains a plain net as if it had branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer

from reparam._support.arguments import MODULE, NONE, TEXT, a, takes
from reparam.branching.rep_optimizer.scales import BranchScales, scaled_convs
from reparam.errors import InputError

Rule = Literal["gradient", "update"]

_RULES: dict[type[Optimizer], Rule] = {
    SGD: "gradient",
    Adam: "update",
    AdamW: "update",
    NAdam: "update",
    Adamax: "update",
}


class RepOptimizer(Optimizer):
    r"""Train plain kernels as the sums of constant-scale branches that they stand for.

    The branches' parameters :math:`\theta_b` and the plain kernel :math:`W` are related by a
    constant map, element by element :math:`W = \sum_b \sigma_b \theta_b + C`, so that
    :math:`\partial \ell / \partial \theta_b = \sigma_b g` with :math:`g = \partial \ell /
    \partial W`. What a step of the base optimizer on all :math:`\theta_b` does to ``W`` then
    follows, and this class does just that to ``W``. Forward, backward and memory are those of the
    plain net; there is one multiplier of the size of each kernel.

    **Rule "gradient"** (SGD), with :math:`M = \sum_b \sigma_b^2` (paper, equation 4):

    .. math:: \Delta W = \mathrm{SGD}(M \odot g,\; W - C)

    An SGD step is linear in gradient and parameter, so this is *exact* for any learning-rate
    schedule, momentum, dampening, Nesterov, ``maximize``, and for weight decay as long as all
    branches of a kernel have the same: :math:`\sum_b \sigma_b \lambda \theta_b = \lambda (W - C)`.
    Decay therefore acts on ``W`` *after* the multiplier. Different decays for different branches
    have no counterpart, since ``W`` alone does not determine the branches.

    **Rule "update"** (AdamW, Adam without weight decay, NAdam, Adamax), with
    :math:`A = \sum_b |\sigma_b|`: an adaptive step does not see the gradient's scale, so a
    gradient multiplier would do nothing. Branch ``b`` moves by :math:`-\eta\, \mathrm{sign}
    (\sigma_b)\, \hat m / (\sqrt{\hat v} + \epsilon / |\sigma_b|)`, hence

    .. math:: \Delta W = -\eta \sum_b |\sigma_b| \frac{\hat m}{\sqrt{\hat v} +
              \epsilon / |\sigma_b|} \;-\; \eta \lambda (W - C)

    which is taken as :math:`-\eta A \hat m / (\sqrt{\hat v} + \epsilon / A)`, by stepping on
    :math:`V = W / A`. It is *exact* where an element belongs to one branch (all taps but the
    central one), and everywhere for :math:`\epsilon = 0`; else it differs from the branches' step
    by less than :math:`\epsilon / (\min_b |\sigma_b| \sqrt{\hat v})` of its size. Adam with
    coupled weight decay puts the decay through the adaptive denominator of each branch, which
    ``W`` does not determine: refused. ``foreach``, ``fused``, ``amsgrad`` and ``maximize`` work.

    Clipping: the branches' gradients have the norm of :math:`\sqrt{M} \odot g`, see
    :meth:`branch_gradient_norm`. Clipping ``g`` itself is something else. Weights in half
    precision are rounded twice a step by the update rule; keep them in float32.

    Args:
        base: The optimizer to step with; it holds the state, and param groups are shared with it,
            so schedulers, ``state_dict``, ``GradScaler`` and Lightning work as ever.
        model: The plain net whose parameters it optimizes.
        scales: Scales by the name of the convolution; see
            :func:`~reparam.branching.rep_optimizer.default_scales` and
            :func:`~reparam.branching.rep_optimizer.search_scales`. For training from scratch, first
            set the kernels with :func:`~reparam.branching.rep_optimizer.initialize_`.
        rule: How the branches act; known for the optimizers above. ``"gradient"`` is right for a
            step that is linear in the gradient, ``"update"`` for one that ignores its scale.

    Raises:
        InputError: The scales do not fit the model, a kernel is not among the optimizer's
            parameters, or the optimizer is of a kind whose rule is not known or not exact.

    Source: Ding et al., Re-parameterizing Your Optimizers rather than Architectures, arXiv
    2205.15242, section 3.1 and appendix A (the proof for SGD).

    >>> import torch
    >>> from reparam.branching.rep_optimizer import RepOptimizer, default_scales, initialize_
    >>> net = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)
    >>> scales = default_scales(net)
    >>> initialize_(net, scales)
    >>> base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    >>> optimizer = RepOptimizer(base, net, scales)
    >>> net(torch.randn(1, 4, 8, 8)).square().mean().backward()
    >>> optimizer.step()

    """

    @takes(
        base=a("a torch.optim.Optimizer", Optimizer),
        model=MODULE,
        scales=a("a mapping of names to BranchScales", Mapping),
        rule=TEXT | NONE,
    )
    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        scales: Mapping[str, BranchScales],
        *,
        rule: Rule | None = None,
    ) -> None:
        self.rule = _rule_of(base, rule)
        self._effects = _effects(model, scales, self.rule)
        _check_parameters(base, self._effects, self.rule)
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        # From here on one state and one list of groups, seen by both.
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; gradients are left as they were found.

        Args:
            closure: Evaluates the loss with its gradients and returns it; called once, before.

        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad(), self._as_branches():
            self.base.step()
        return loss

    def branch_gradient_norm(self) -> Tensor:
        r"""Norm of the gradient that the multi-branch net would have: of :math:`\sqrt{M} \odot g`.

        To clip as that net would be clipped, scale the gradients by ``max_norm`` over this.
        """
        squares = [
            parameter.grad.square().sum()
            if effect is None
            else (parameter.grad.square() * effect.squares.to(parameter)).sum()
            for parameter, effect in self._with_gradients()
            if parameter.grad is not None
        ]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        base = self.__dict__.get("base")
        if base is None:
            super().add_param_group(param_group)
        else:
            base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Keep the base optimizer and the multipliers in copies and pickles."""
        own = {"rule": self.rule, "_effects": self._effects, "base": self.base}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state, and share it with the base optimizer."""
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})

    def _with_gradients(self) -> Iterator[tuple[nn.Parameter, _Effect | None]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter, self._effects.get(parameter)

    @contextmanager
    def _as_branches(self) -> Iterator[None]:
        """Present kernels and gradients so that the base optimizer's step is the branches'."""
        gradients: list[tuple[nn.Parameter, Tensor]] = []
        shifts: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                effect = self._effects.get(parameter)
                if effect is None or parameter.grad is None:
                    continue
                gradients.append((parameter, parameter.grad))
                multiplier = effect.multiplier.to(parameter)
                parameter.grad = parameter.grad * multiplier
                if effect.constant is not None:
                    pull = effect.constant.to(parameter) * group.get("weight_decay", 0)
                    if self.rule == "gradient":
                        parameter.grad.add_(pull, alpha=1 if group.get("maximize") else -1)
                    else:
                        shifts.append((parameter, pull * group["lr"]))
                if self.rule == "update":
                    parameter.div_(multiplier)
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
                if self.rule == "update":
                    parameter.mul_(self._effects[parameter].multiplier.to(parameter))
            for parameter, shift in shifts:
                parameter.add_(shift)


@dataclass(eq=False)
class _Effect:
    """What the branches of one kernel do to its steps; tensors of the kernel's shape.

    Attributes:
        multiplier: Of the gradient, or of the update.
        squares: Of the squared gradient, for its norm.
        constant: Part of the kernel that is not trained and does not decay.

    """

    multiplier: Tensor
    squares: Tensor
    constant: Tensor | None


def _effects(
    model: nn.Module, scales: Mapping[str, BranchScales], rule: Rule
) -> dict[Tensor, _Effect]:
    if not scales:
        raise InputError("no scales are given; use the base optimizer as it is")
    effects: dict[Tensor, _Effect] = {}
    for name, conv in scaled_convs(model, scales).items():
        weight = conv.weight
        if weight in effects:
            raise InputError(f"the weight of {name!r} has scales already, under another name")
        squares = scales[name].squares(conv).to(weight)
        multiplier = squares if rule == "gradient" else scales[name].magnitudes(conv).to(weight)
        constant = scales[name].constant(conv)
        effects[weight] = _Effect(
            multiplier, squares, None if constant is None else constant.to(weight)
        )
    return effects


def _rule_of(base: Optimizer, rule: Rule | None) -> Rule:
    if isinstance(base, RepOptimizer):
        raise InputError("the base optimizer is a RepOptimizer already; needed a plain one")
    if rule in ("gradient", "update"):
        return rule
    if rule is not None:
        raise InputError(f"got rule={rule!r}; needed 'gradient' or 'update'")
    for cls in type(base).__mro__:
        if cls in _RULES:
            return _RULES[cls]
    known = ", ".join(cls.__name__ for cls in _RULES)
    raise InputError(
        f"it is not known how branches act under {type(base).__name__}; known: {known}. Pass "
        f"rule='gradient' if its step is linear in the gradient, rule='update' if its step does "
        f"not depend on the gradient's scale"
    )


def _check_parameters(base: Optimizer, effects: Mapping[Tensor, _Effect], rule: Rule) -> None:
    groups = {p: group for group in base.param_groups for p in group["params"]}
    missing = sum(weight not in groups for weight in effects)
    if missing:
        raise InputError(
            f"{missing} of the {len(effects)} kernels with scales are not among the optimizer's "
            f"parameters; needed an optimizer of the same model"
        )
    if rule == "gradient" or isinstance(base, AdamW):
        return
    coupled = [
        group
        for group in (groups[weight] for weight in effects)
        if group.get("weight_decay") and not group.get("decoupled_weight_decay")
    ]
    if coupled:
        raise InputError(
            f"{type(base).__name__} has weight_decay={coupled[0]['weight_decay']} in its "
            f"gradients, where it has no counterpart for branches; use decoupled decay (AdamW)"
        )
