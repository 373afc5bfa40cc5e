"""LiteRT in eight bits, by ai-edge-quantizer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from reparam._support import optional
from reparam.deploy.engines._quiet import silent
from reparam.deploy.engines.litert import to_litert
from reparam.lab.quantizing.backends import Job, Written, operations_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PURPOSE = "quantizing for LiteRT"
_LAYERS = ("BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def write_litert_int8(job: Job, path: Path) -> Written:
    """Convert the net and let ai-edge-quantizer round it, with float32 inputs and outputs.

    Weights are int8 with a step for each output channel; activations int8 with an offset; ranges
    are the smallest and largest values of the samples, where the tool's own default is a moving
    average that cuts off what exceeds it.

    Raises:
        MissingExtraError: litert-torch or what comes with it is not installed.
        ExportError: The net cannot be converted, or a layer that stays in float is not in it.
    """
    content, axes = to_litert(job.conversion)
    operations = list(_layers(content))
    weights = ((scope, weight) for scope, weight in operations if weight is not None)
    names = operations_of(job.layers, weights, job.keep_float)
    quantized = _quantize(content, job, [names[name] for name in job.keep_float])
    path.write_bytes(quantized)
    # Rounding renames tensors and leaves the layers in their order.
    after = [weight is None for _, weight in _layers(quantized)]
    rounded = {scope for (scope, _), done in zip(operations, after, strict=True) if done}
    return Written(axes, tuple(name for name in job.layers if names.get(name) in rounded))


def _quantize(content: bytes, job: Job, ignored: list[str]) -> bytes:
    with silent():
        tools, calibrators, managers, recipes, ranges = (
            optional.require(f"ai_edge_quantizer.{name}", extra="litert", purpose=_PURPOSE)
            for name in ("quantizer", "calibrator", "recipe_manager", "recipe", "utils.qsv_utils")
        )
        kinds = recipes.TFLOperationName
        left = [(".*", kinds.INPUT), (".*", kinds.OUTPUT)]
        left += [(f"^{re.escape(scope)}$", kinds.ALL_SUPPORTED) for scope in ignored]
        names = ("regex", "operation", "algorithm_key")
        unrounded = tools.AlgorithmName.NO_QUANTIZE
        recipe = recipes.static_wi8_ai8()
        recipe += [dict(zip(names, (*each, unrounded), strict=True)) for each in left]
        samples = ({"args_0": sample.numpy()} for sample in job.samples.batches(1))
        manager = managers.RecipeManager()
        manager.load_quantization_recipe(recipe)
        calibrator = calibrators.Calibrator(
            content, num_threads=1, qsv_update_func=ranges.min_max_update
        )
        calibrator.calibrate({"serving_default": list(samples)}, manager)
        quantizer = tools.Quantizer(content)
        quantizer.load_quantization_recipe(recipe)
        found = quantizer.quantize(calibrator.get_model_qsvs(), enable_progress_report=False)
        return bytes(found.quantized_model)


def _layers(content: bytes) -> Iterator[tuple[str, Any | None]]:
    """Yield the scope of each operation that may be a layer, and its weight as PyTorch has it.

    The weight is ``None`` where it is no constant in float32.
    """
    schema = optional.require(
        "ai_edge_litert.schema_py_generated", extra="litert", purpose=_PURPOSE
    )
    tools = optional.require(
        "ai_edge_quantizer.utils.tfl_flatbuffer_utils", extra="litert", purpose=_PURPOSE
    )
    numpy = optional.require("numpy", extra="litert", purpose=_PURPOSE)
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    kinds = {getattr(schema.BuiltinOperator, name): name for name in _LAYERS}
    graph = model.subgraphs[0]
    for operation in graph.operators:
        kind = kinds.get(model.operatorCodes[operation.opcodeIndex].builtinCode)
        if kind is None:
            continue
        stored = graph.tensors[operation.inputs[1]]
        data = model.buffers[stored.buffer].data
        weight = None
        if data is not None and stored.type == schema.TensorType.FLOAT32:
            weight = numpy.frombuffer(bytes(data), numpy.float32).reshape(stored.shape)
            # (O, kernel, I) here and (1, kernel, O) for depthwise; (O, I, kernel) in PyTorch.
            if kind in ("CONV_2D", "CONV_3D"):
                weight = numpy.moveaxis(weight, -1, 1)
            elif kind == "DEPTHWISE_CONV_2D":
                weight = numpy.moveaxis(weight, -1, 0)
        yield tools.get_op_scope(operation, graph.tensors), weight
