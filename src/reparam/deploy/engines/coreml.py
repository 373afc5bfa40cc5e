"""Core ML: the engine of Apple's systems. It is converted for anywhere, and runs there alone.

Elsewhere what is written is read back, operations and numbers, and computed in PyTorch; that finds
what the conversion changed, and nothing of what Core ML's own kernels do.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam.deploy.engines._inputs import as_arrays, one_by_one
from reparam.deploy.engines._quiet import converting, silent
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    get_engine,
    register,
)
from reparam.deploy.engines.coreml_program import run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion

_RUNS_HERE = sys.platform == "darwin"


def _write(conversion: Conversion, path: Path, *, half: bool = False, eight: bool = False) -> Axes:
    """Convert a model with coremltools and write an ML program (``.mlpackage``, a folder).

    A file for one sample, with every shape fixed, is what the Neural Engine takes and what
    :attr:`Dynamic.AUTO` writes; :attr:`Dynamic.BATCH` and :attr:`Dynamic.SIZE` keep dimensions
    variable. Inputs and outputs are float32 arrays, channels first.

    Args:
        conversion: The model.
        path: The package.
        half: Store the weights in float16 and let Core ML compute in it, which its GPU and Neural
            Engine need.
        eight: Store the weights of layers in eight bits, a step for each output channel; Core ML
            widens them. Its activations stay as they are: to round those, coremltools has to run
            the model, which it can on Apple's systems alone.
    """
    tools = get_engine("coreml").module("coremltools")
    program = conversion.of_one_sample().program(bounded=True)
    what = f"coremltools could not convert {conversion.name}"
    with converting(what, program.hint, briefly=True), silent():
        converted = tools.convert(
            program.exported.run_decompositions({}),
            convert_to="mlprogram",
            compute_precision=tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS16 if eight else tools.target.iOS15,
            skip_model_load=True,
        )
        if eight:
            converted = _in_eight_bits(converted)
        converted.user_defined_metadata.update(conversion.metadata)
        converted.save(str(path))
    # Beside the manifest: what a tool of ExecuTorch's would ask for.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    return program.axes


def _in_eight_bits(converted: Any) -> Any:
    """The same with the weights of layers in eight bits, symmetric about zero."""
    shrink = get_engine("coreml").module("coremltools.optimize.coreml")
    how = shrink.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    return shrink.linear_quantize_weights(converted, shrink.OptimizationConfig(global_config=how))


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a package holds."""
    tools = get_engine("coreml").module("coremltools")
    with silent():
        return dict(tools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata)


class _ReadRunner(Runner):
    """A file whose program is computed in PyTorch, for its values and not for its speed."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._shapes = [tuple(variable.shape) for variable in function.inputs.values()]

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        del inputs
        raise UnsupportedCaseError(
            "Core ML runs on Apple's systems alone, so that it cannot be measured here"
        )

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        values = [x.detach().cpu() for x in inputs]
        first = self._shapes[0]
        if first and first[0] == 1 and values[0].dim() > 0 and len(values[0]) != 1:
            return one_by_one(self._compute, values)
        return self._compute(values)

    def _compute(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        for shape, value in zip(self._shapes, inputs, strict=True):
            sizes = zip(shape, value.shape, strict=False)
            if len(shape) != value.dim() or any(n != m for n, m in sizes if isinstance(n, int)):
                shown = tuple(n if isinstance(n, int) else "N" for n in shape)
                raise UnsupportedCaseError(
                    f"the Core ML file takes an input of shape {shown}, and was given "
                    f"{tuple(value.shape)}"
                )
        with torch.no_grad():
            return run_program(self._function, inputs)


class _ModelRunner(Runner):
    """A file in Core ML itself."""

    def __init__(self, model: Any) -> None:
        spec = model.get_spec().description
        self._model = model
        self._inputs = [value.name for value in spec.input]
        self._outputs = [value.name for value in spec.output]

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        feed = dict(zip(self._inputs, as_arrays(inputs), strict=True))
        return lambda: self._model.predict(feed)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return one_by_one(self._predict, inputs)

    def _predict(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = self._model.predict(dict(zip(self._inputs, as_arrays(inputs), strict=True)))
        return [torch.as_tensor(found[name]) for name in self._outputs]


def _format(
    backend: str | None = None, precision: str = "fp32", *, half: bool = False, eight: bool = False
) -> Format:
    return Format(
        "Core ML", ".mlpackage", "coreml", partial(_write, half=half, eight=eight), _metadata,
        ("coremltools",), backend=backend, precision=precision,
    )  # fmt: skip


@register
class CoreMLEngine(Engine):
    """Core ML on Apple's systems; elsewhere its files are read back, and not measured."""

    name: ClassVar[str] = "coreml"
    label: ClassVar[str] = "Core ML"
    suffixes: ClassVar[tuple[str, ...]] = (".mlpackage",)
    formats: ClassVar[tuple[Format, ...]] = (
        _format(),
        _format("fp16", "fp16", half=True),
        _format("int8", "int8-weights", half=True, eight=True),
    )
    requirements: ClassVar[tuple[str, ...]] = ("coremltools",)
    extra: ClassVar[str] = "coreml"

    def available(self) -> bool:
        """Say whether models can run in it here."""
        return _RUNS_HERE and super().available()

    def module(self, name: str) -> Any:
        """Import a module of coremltools, in silence; see :meth:`Engine.module`."""
        log = logging.getLogger("coremltools")
        level = log.level
        log.setLevel(logging.ERROR)  # it tells of versions of torch that it was not tested with
        try:
            with silent():
                return super().module(name)
        finally:
            log.setLevel(level)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Open a package, in Core ML where that is, else for its values alone."""
        del settings  # Core ML chooses its own threads
        tools = self.module("coremltools")
        with silent():
            if _RUNS_HERE:
                return _ModelRunner(tools.models.MLModel(str(path)))
            model = tools.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            reader = self.module("coremltools.converters.mil.frontend.milproto.load")
            program = reader.load(spec, spec.specificationVersion, model.weights_dir)
        return _ReadRunner(program.functions["main"])
