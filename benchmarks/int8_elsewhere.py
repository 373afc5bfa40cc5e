"""Run an eight-bit file on a processor without VNNI, or on one that is made to look like it.

    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/int8_elsewhere.py net.xml images.npy outputs.npy
    qemu-x86_64 -cpu Haswell-v4 python benchmarks/int8_elsewhere.py net.onnx images.npy outputs.npy

int8_cifar.py calls it: OpenVINO heeds the variable, ONNX Runtime computes with what the processor
has. It imports the engine alone, as under an emulator everything takes a hundred times as long.
The file takes one image at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def main() -> None:
    file, images, outputs = sys.argv[1:]
    run = with_openvino(file) if file.endswith(".xml") else with_onnxruntime(file)
    np.save(outputs, np.concatenate([run(image[None]) for image in np.load(images)]))


def with_openvino(file: str) -> Callable[[Any], Any]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(file, "CPU", settings)
    return lambda image: model([image])[0].copy()


def with_onnxruntime(file: str) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return lambda image: session.run(None, {name: image})[0]


if __name__ == "__main__":
    main()
