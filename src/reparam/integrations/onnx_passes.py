"""Folding among the passes of ``onnx_ir`` and the rewriting rules of ``onnxscript``.

Put it in front of what folds batch norms into convolutions and leaves biases there, as the default
rules of ``onnxscript.rewriter``, ``onnxscript.optimizer.optimize``, onnxsim and OnnxSlim do: a bias
in front of a padded convolution is no constant any more, so that fewer layers merge afterwards.
"""

from __future__ import annotations

from typing import Any

import reparam
from reparam._support.optional import require
from reparam.fusing import Plan

require("onnxscript.rewriter", extra="deploy", purpose="The passes for ONNX")

# ruff: noqa: E402 - the imports come behind the question whether they can be made
import onnx_ir as ir
from onnx_ir import external_data
from onnxscript.rewriter import RewriteRuleSet


class FusePass(ir.passes.FunctionalPass):
    """A pass that returns the model with its branches, norms and scales folded.

    The model that comes in is only read; what goes out is a new one, with its weights in memory.
    ``modified`` of the result says whether anything folded, and :attr:`plan` what, and why the rest
    stays (:func:`reparam.plan`). Each fold is compared in float64 with what it replaces.

    Args:
        options: ``where``, ``outputs`` and ``fixed`` of :func:`reparam.fuse`.

    Attributes:
        plan: The plan of the last model; None before the first.

    Raises:
        ReparamError: What :func:`reparam.fuse` raises; a pass manager wraps it in its own error.

    Example:
        >>> import onnx_ir as ir
        >>> from onnx_ir.passes.common import RemoveUnusedNodesPass
        >>> passes = ir.passes.PassManager([FusePass(), RemoveUnusedNodesPass()])
        >>> made = passes(ir.load("net.onnx")).model  # doctest: +SKIP

    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.plan: Plan[Any] | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Plan, fold, and read the result back as a model of ``onnx_ir``."""
        proto = ir.to_proto(external_data.load_to_model(model.clone()))
        self.plan = reparam.plan(proto, **self.options)
        made = self.plan.apply()
        return ir.passes.PassResult(ir.from_proto(made), made != proto)


class FuseRules(RewriteRuleSet):
    """The same as a rule set for ``onnxscript.rewriter.rewrite``, which changes its model in place.

    What folds is found over the whole graph, not by patterns, so that the set holds no rules of
    its own; to run it beside others, put ``RewritePass(FuseRules())`` in front of theirs.

    Args:
        options: ``where``, ``outputs`` and ``fixed`` of :func:`reparam.fuse`.

    Example:
        >>> from onnxscript.rewriter import rewrite
        >>> made = rewrite(model, FuseRules())  # doctest: +SKIP

    """

    def __init__(self, **options: Any) -> None:
        self.rules = []
        self.remove_unused_nodes = False
        self.folding = FusePass(**options)

    def apply_to_model(
        self, model: ir.Model, *, verbose: int | None = None, tracer: Any = None
    ) -> int:
        """Put the folded graph in the place of the model's; return 1 if anything changed."""
        result = self.folding(model)
        if not result.modified or tracer is not None:
            return 0
        made = result.model
        model.graph, model.ir_version = made.graph, made.ir_version
        model.functions.clear()
        model.functions.update(made.functions)
        if verbose:
            print(self.folding.plan)  # noqa: T201 - what `verbose` of the other rule sets does
        return 1
