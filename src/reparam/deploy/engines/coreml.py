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

from reparam._support import optional
from reparam._support.spelling import advice
from reparam.deploy.engines._quiet import silent
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    register,
)
from reparam.deploy.engines.coreml_program import run_program
from reparam.deploy.engines.program import quiet
from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion

__all__ = ["CoreMLEngine", "write_coreml"]

_EXTRA = "coreml"
_RUNS_HERE = sys.platform == "darwin"


def write_coreml(
    conversion: Conversion, path: Path, *, half: bool = False, eight: bool = False
) -> Axes:
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

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        MissingExtraError: coremltools is not installed.
        ExportError: The model cannot be converted, or not with what may vary.
    """
    tools = _tools("exporting to Core ML")
    program = conversion.of_one_sample().program(bounded=True)
    precision = tools.precision.FLOAT16 if half else tools.precision.FLOAT32
    try:
        with silent(), quiet(), torch.no_grad():
            converted = tools.convert(
                program.exported.run_decompositions({}),
                convert_to="mlprogram",
                compute_precision=precision,
                minimum_deployment_target=tools.target.iOS16 if eight else tools.target.iOS15,
                skip_model_load=True,
            )
            if eight:
                converted = _in_eight_bits(converted)
            converted.user_defined_metadata.update(conversion.metadata)
            converted.save(str(path))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = advice("; {dynamic} writes it for one sample of fixed size", dynamic=True)
        raise ExportError(
            f"coremltools could not convert {conversion.name}: {first}"
            + (hint if program.shapes else "")
        ) from error
    # Beside the manifest: what a tool of ExecuTorch's would ask for.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    return program.axes


def _in_eight_bits(converted: Any) -> Any:
    """The same with the weights of layers in eight bits, symmetric about zero."""
    shrink = optional.require("coremltools.optimize.coreml", extra=_EXTRA, purpose="eight bits")
    how = shrink.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    return shrink.linear_quantize_weights(converted, shrink.OptimizationConfig(global_config=how))


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a package holds."""
    tools = _tools("reading Core ML")
    with silent():
        return dict(tools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata)


def _tools(purpose: str) -> Any:
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of versions of torch that it was not tested with
    try:
        with silent():
            return optional.require("coremltools", extra=_EXTRA, purpose=purpose)
    finally:
        log.setLevel(level)


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
        if not self._one_at_a_time(values):
            return self._compute(values)
        samples = [self._compute([x[i : i + 1] for x in values]) for i in range(len(values[0]))]
        return [torch.cat(found) for found in zip(*samples, strict=True)]

    def _one_at_a_time(self, inputs: Sequence[torch.Tensor]) -> bool:
        first = self._shapes[0]
        return bool(first) and first[0] == 1 and inputs[0].dim() > 0 and len(inputs[0]) != 1

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
        feed = {n: x.detach().cpu().numpy() for n, x in zip(self._inputs, inputs, strict=True)}
        return lambda: self._model.predict(feed)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        samples = [self._predict([x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))]
        return [torch.cat(found) for found in zip(*samples, strict=True)]

    def _predict(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        feed = {n: x.detach().cpu().numpy() for n, x in zip(self._inputs, inputs, strict=True)}
        found = self._model.predict(feed)
        return [torch.as_tensor(found[name]) for name in self._outputs]


def _format(
    backend: str | None = None, precision: str = "fp32", *, half: bool = False, eight: bool = False
) -> Format:
    return Format(
        "Core ML",
        ".mlpackage",
        "coreml",
        partial(write_coreml, half=half, eight=eight),
        _metadata,
        ("coremltools",),
        backend=backend,
        precision=precision,
    )


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
    extra: ClassVar[str] = _EXTRA

    def available(self) -> bool:
        """Say whether models can run in it here."""
        return _RUNS_HERE and super().available()

    def require(self) -> None:
        """Raise unless coremltools is installed; see :meth:`Engine.require`."""
        _tools("the engine 'coreml'")

    def open(self, path: Path, settings: Settings) -> Runner:
        """Open a package, in Core ML where that is, else for its values alone."""
        del settings  # Core ML chooses its own threads
        tools = _tools("the engine 'coreml'")
        try:
            with silent():
                if _RUNS_HERE:
                    return _ModelRunner(tools.models.MLModel(str(path)))
                model = tools.models.MLModel(str(path), skip_model_load=True)
                spec = model.get_spec()
                reader = optional.require(
                    "coremltools.converters.mil.frontend.milproto.load",
                    extra=_EXTRA,
                    purpose="reading Core ML",
                )
                program = reader.load(spec, spec.specificationVersion, model.weights_dir)
        except Exception as error:
            raise ExportError(f"coremltools could not read {path.name}: {error}") from error
        return _ReadRunner(program.functions["main"])
