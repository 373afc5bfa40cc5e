"""ncnn, an engine for phones and small boards, run here on this processor; converted by pnnx."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support.files import scratch
from reparam._support.spelling import advice
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    get_engine,
    register,
)
from reparam.deploy.engines.ort import write_onnx
from reparam.deploy.engines.program import Dynamic
from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reparam.deploy.engines.program import Axes, Conversion

_REDUCED = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")
"""Options by which ncnn computes in less than single precision; most are on by default."""


def write_ncnn(conversion: Conversion, path: Path) -> Axes:
    """Write a model as ``path`` (``.param``, the graph) and a ``.bin`` beside it (float32).

    ncnn's arrays have no batch dimension: a model is written for one sample, and its height and
    width may vary where the model allows it.
    """
    pnnx = get_engine("ncnn").module("pnnx")
    if conversion.dynamic is Dynamic.BATCH:
        raise ExportError(
            "ncnn has no batch dimension, so a variable batch cannot be exported"
            + advice("; {dynamic} keeps the size variable where the model allows it", dynamic=True)
            + advice("; {dynamic} fixes every shape", dynamic=False)
        )
    one = replace(conversion, inputs=tuple(x[:1] for x in conversion.inputs))
    with scratch() as folder:
        axes = write_onnx(one, folder / "model.onnx")
        _convert(pnnx.EXEC_PATH, folder, one.inputs, axes)
        for made, wanted in (("model.param", path), ("model.bin", path.with_suffix(".bin"))):
            wanted.write_bytes((folder / made).read_bytes())
    return tuple({i: name for i, name in each.items() if name != "batch"} for each in axes)


def _convert(
    program: str,
    folder: Path,
    inputs: Sequence[torch.Tensor],
    axes: Sequence[dict[int, str]],
) -> None:
    """Run pnnx on ``model.onnx``; it makes ``model.param`` and ``model.bin``."""
    second = [
        [2 * n if names.get(i, "batch") != "batch" else n for i, n in enumerate(x.shape)]
        for x, names in zip(inputs, axes, strict=True)
    ]
    shapes = [f"inputshape={_spell([list(x.shape) for x in inputs])}"]
    if second != [list(x.shape) for x in inputs]:
        shapes.append(f"inputshape2={_spell(second)}")
    outputs = ["fp16=0", "ncnnparam=model.param", "ncnnbin=model.bin"]
    done = subprocess.run(  # noqa: S603 - the program of an installed package
        [program, "model.onnx", *shapes, *outputs],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not (folder / "model.bin").is_file():
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise ExportError(f"pnnx could not convert the model: {' / '.join(last)}")


def _spell(shapes: Sequence[Sequence[int]]) -> str:
    return ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)


class _NetRunner(Runner):
    def __init__(self, library: Any, net: Any) -> None:
        self._library, self._net = library, net
        self._inputs, self._outputs = net.input_names(), net.output_names()

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        samples = {x.shape[0] for x in inputs}
        if samples != {1}:
            raise UnsupportedCaseError(
                f"ncnn runs one sample at a time, and the batch is {max(samples)}"
            )
        arrays = self._arrays(inputs, 0)
        return lambda: self._extract(arrays)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        samples = [self._extract(self._arrays(inputs, i)) for i in range(inputs[0].shape[0])]
        copies = [[torch.tensor(y.numpy()) for y in sample] for sample in samples]
        return [torch.stack(values) for values in zip(*copies, strict=True)]

    def _arrays(self, inputs: Sequence[torch.Tensor], sample: int) -> list[Any]:
        values = (x[sample].detach().cpu().contiguous().numpy() for x in inputs)
        # The copy gives ncnn's own alignment, which its kernels expect of an input.
        return [self._library.Mat(value).clone() for value in values]

    def _extract(self, arrays: Sequence[Any]) -> list[Any]:
        extractor = self._net.create_extractor()
        for name, array in zip(self._inputs, arrays, strict=True):
            extractor.input(name, array)
        found = []
        for name in self._outputs:
            code, array = extractor.extract(name)
            if code:
                raise RuntimeError(f"ncnn could not compute {name!r} (code {code})")
            found.append(array)
        return found


@register
class NcnnEngine(Engine):
    """ncnn on the CPU, one sample at a time."""

    name: ClassVar[str] = "ncnn"
    label: ClassVar[str] = "ncnn"
    suffixes: ClassVar[tuple[str, ...]] = (".param",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("ncnn", ".param", name, write_ncnn, packages=("ncnn", "pnnx"), companion=".bin"),
    )
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    requirements: ClassVar[tuple[str, ...]] = ("ncnn", "pnnx")
    extra: ClassVar[str] = "mobile"

    def open(self, path: Path, settings: Settings) -> Runner:
        """Load a ``.param`` file and the ``.bin`` file beside it."""
        library = self.module("ncnn")
        net = library.Net()
        net.opt.use_vulkan_compute = False
        for option in _REDUCED:
            setattr(net.opt, option, False)
        net.opt.use_bf16_storage = settings.precision == "bf16"
        if settings.threads is not None:
            net.opt.num_threads = settings.threads
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise ExportError(f"{path.name} needs {weights.name} beside it, which is not there")
        if net.load_param(str(path)) or net.load_model(str(weights)):
            raise ExportError(f"ncnn could not load {path.name}")
        return _NetRunner(library, net)
