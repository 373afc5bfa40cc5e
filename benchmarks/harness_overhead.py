"""Does the harness cost anything? Each engine through `reparam.benchmark`, and written by hand.

The hand-written calls are measured by the same interleaved rounds, as plain functions, so that the
two see the same machine. A ratio of 1 means that the adapter of the engine adds nothing.

    python benchmarks/harness_overhead.py [--rounds 30] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import reparam
from reparam.benchmarking import BenchmarkResult
from reparam.benchmarking.environment import describe_environment
from reparam.benchmarking.results import quartiles
from reparam.engines import Settings, get_engine

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


BY_HAND = {
    "eager": eager_by_hand,
    "onnxruntime": onnxruntime_by_hand,
    "openvino": openvino_by_hand,
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = reparam.fuse(reparam.models.repvgg_a0().eval())
    x = torch.randn(1, 3, arguments.size, arguments.size)
    threads = torch.get_num_threads()
    rows = []
    for engine, by_hand in BY_HAND.items():
        with tempfile.TemporaryDirectory() as name:
            hand = by_hand(model, x, Path(name))
            runner = get_engine(engine).prepare(model, (x,), Settings(threads), Path(name))
            bound = runner.bind((x,))
            for call in (hand, bound):
                for _ in range(5):
                    call()
            ours, theirs = alternate(bound, hand, arguments.rounds)
            # And the harness as a whole: what it records of a hand-written call, beside the engine.
            found: BenchmarkResult = reparam.benchmark(
                {"engine": model, "hand": lambda _, hand=hand: hand()},
                x,
                engines=(engine,),
                threads=(threads,),
                rounds=arguments.rounds,
            )
        adapter = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
        harness = found.ratio("engine", "hand").quartiles
        rows.append(
            {
                "engine": engine,
                "hand_ms": 1e3 * statistics.median(theirs),
                "adapter_ms": 1e3 * statistics.median(ours),
                "adapter_ratio": [adapter.q1, adapter.median, adapter.q3],
                "harness_ms": 1e3 * found["engine"].latency.median,
                "harness_ratio": [harness.q1, harness.median, harness.q3],
            }
        )
        print(
            f"{engine:12s} by hand {rows[-1]['hand_ms']:7.3f} ms   "
            f"adapter / hand {adapter.median:.3f} ({adapter.q1:.3f} to {adapter.q3:.3f})   "
            f"in reparam.benchmark {harness.median:.3f} ({harness.q1:.3f} to {harness.q3:.3f})"
        )
    if arguments.json:
        record = {"environment": describe_environment(), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    worst = max(abs(row["adapter_ratio"][1] - 1) for row in rows)
    print(f"largest deviation of a median from 1: {worst:.1%}; allowed: {LIMIT:.0%}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
