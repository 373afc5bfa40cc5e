"""Does the harness cost anything? Each engine through `reparam.benchmark`, and written by hand.

The hand-written calls are measured by the same interleaved rounds, as plain functions, so that the
two see the same machine. A ratio of 1 means that the adapter of the engine adds nothing.

    python benchmarks/harness_overhead.py [--rounds 30] [--engines eager,onnxruntime]
    python benchmarks/harness_overhead.py --check      # is the table of docs/deploy.md up to date?

The results go to benchmarks/results/harness_overhead.json engine by engine, and from there into the
table of docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tables import ROOT, fill, markdown

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking import BenchmarkResult
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.deploy.benchmarking.results import quartiles
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.program import Conversion
from reparam.report.benchmarks import engine_label

PAGE = ROOT / "docs" / "deploy.md"
RESULTS = ROOT / "benchmarks" / "results" / "harness_overhead.json"
LIMIT = 0.05


def eager_by_hand(model: torch.nn.Module, x: torch.Tensor, _: Path) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return model(x)

    return call


def onnxruntime_by_hand(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], Any]:
    import onnxruntime

    path = folder / "hand.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Two sessions take turns here, and one that goes on spinning after its call would take the
    # cores from the other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def openvino_by_hand(model: torch.nn.Module, x: torch.Tensor, _: Path) -> Callable[[], Any]:
    import openvino

    program = torch.export.export(model, (x,))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", options)
    request, array = compiled.create_infer_request(), x.numpy()
    return lambda: request.infer({0: array}, share_inputs=True)


def compile_by_hand(model: torch.nn.Module, x: torch.Tensor, _: Path) -> Callable[[], Any]:
    compiled = torch.compile(model)

    def call() -> Any:
        with torch.inference_mode():
            return compiled(x)

    return call


def aoti_by_hand(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], Any]:
    path = torch._inductor.aoti_compile_and_package(
        torch.export.export(model, (x,)), package_path=str(folder / "hand.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)

    def call() -> Any:
        with torch.inference_mode():
            return loaded(x)

    return call


def executorch_by_hand(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.export(model, (x,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path = folder / "hand.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    loaded = Runtime.get().load_program(path)
    method = loaded.load_method("forward")
    # A method does not keep its program alive.
    return lambda _program=loaded: method.execute([x])


def ncnn_by_hand(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], Any]:
    import ncnn
    import pnnx

    torch.onnx.export(model, (x,), folder / "hand.onnx", dynamo=True, verbose=False)
    shape = f"inputshape=[{','.join(map(str, x.shape))}]f32"
    files = ["ncnnparam=hand.param", "ncnnbin=hand.bin", "fp16=0"]
    subprocess.run(
        [pnnx.EXEC_PATH, "hand.onnx", shape, *files], cwd=folder, check=True, capture_output=True
    )
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(str(folder / "hand.param"))
    net.load_model(str(folder / "hand.bin"))
    image = ncnn.Mat(x[0].numpy()).clone()
    read, wanted = net.input_names()[0], net.output_names()[0]

    def call() -> Any:
        extractor = net.create_extractor()
        extractor.input(read, image)
        return extractor.extract(wanted)

    return call


BY_HAND = {
    "eager": eager_by_hand,
    "compile": compile_by_hand,
    "aoti": aoti_by_hand,
    "onnxruntime": onnxruntime_by_hand,
    "openvino": openvino_by_hand,
    "executorch": executorch_by_hand,
    "ncnn": ncnn_by_hand,
}


def alternate(
    first: Callable[[], Any], second: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Time two calls by hand, by turns, the first turn changing sides each round."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            call = (first, second)[side]
            call()
            samples = []
            for _ in range(5):
                start = time.perf_counter()
                call()
                samples.append(time.perf_counter() - start)
            times[side].append(statistics.median(samples))
    return times


def measure(engine: str, size: int, rounds: int) -> dict[str, Any]:
    """Time one engine by hand, through its adapter alone, and through the whole harness."""
    torch.manual_seed(0)
    model = reparam.fuse(reparam.models.repvgg_a0().eval())
    x = torch.randn(1, 3, size, size)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        hand = BY_HAND[engine](model, x, Path(name))
        runner = get_engine(engine).prepare(Conversion(model, (x,)), Settings(threads))
        runner.activate()
        bound = runner.bind((x,))
        for call in (hand, bound):
            for _ in range(5):
                call()
        ours, theirs = alternate(bound, hand, rounds)
        # And the harness as a whole: what it records of a hand-written call, beside the engine.
        found: BenchmarkResult = reparam.benchmark(
            {"engine": model, "hand": lambda _, hand=hand: hand()},
            x,
            engines=(engine,),
            threads=(threads,),
            rounds=rounds,
        )
    adapter = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
    harness = found.ratio("engine", "hand").quartiles
    return {
        "engine": engine,
        "threads": threads,
        "hand_ms": 1e3 * statistics.median(theirs),
        "adapter_ms": 1e3 * statistics.median(ours),
        "adapter_ratio": [adapter.q1, adapter.median, adapter.q3],
        "harness_ms": 1e3 * found["engine"].latency.median,
        "harness_ratio": [harness.q1, harness.median, harness.q3],
    }


def page_table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/deploy.md."""
    return markdown(
        ["engine", "by hand", "adapter / by hand", "in `reparam.benchmark` / by hand"],
        [
            [
                engine_label(row["engine"]),
                f"{row['hand_ms']:.2f} ms",
                *(
                    "{1:.3f} ({0:.3f} to {2:.3f})".format(*row[name])
                    for name in ("adapter_ratio", "harness_ratio")
                ),
            ]
            for row in rows
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    installed = [name for name in BY_HAND if get_engine(name).available()]
    parser.add_argument("--engines", default=",".join(installed), help="names with commas")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="only compare the page's table")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if arguments.json.exists():
        former = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
        rows = {row["engine"]: row for row in former}
    if arguments.check:
        return int(not fill(PAGE, "harness-overhead", page_table(list(rows.values())), check=True))
    for engine in arguments.engines.split(","):
        rows[engine] = measure(engine, arguments.size, arguments.rounds)
        rows = {name: rows[name] for name in BY_HAND if name in rows}
        record = {"environment": describe_environment(), "rows": list(rows.values())}
        write_text(arguments.json, json.dumps(record, indent=1) + "\n")
        fill(PAGE, "harness-overhead", page_table(list(rows.values())))
        low, middle, high = rows[engine]["adapter_ratio"]
        print(
            f"{engine:12s} by hand {rows[engine]['hand_ms']:7.3f} ms   "
            f"adapter / hand {middle:.3f} ({low:.3f} to {high:.3f})   "
            f"in reparam.benchmark {rows[engine]['harness_ratio'][1]:.3f}"
        )
    ratios = ("adapter_ratio", "harness_ratio")
    worst = max(abs(row[name][1] - 1) for row in rows.values() for name in ratios)
    print(f"largest deviation of a median from 1: {worst:.1%}; allowed: {LIMIT:.0%}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
