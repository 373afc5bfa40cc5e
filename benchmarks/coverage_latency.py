"""How much faster models of other libraries run when fused: eager PyTorch and ONNX Runtime.

    python benchmarks/coverage_latency.py [--seconds 20] [--only NAME ...] [--again]

One image at a time on one thread; the model as its library builds it and the fused one take turns.
The results go to benchmarks/results/coverage_latency.json model by model; what is in that file is
not measured again. `benchmarks/coverage_report.py` writes the table of docs/coverage.md from it.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch
from coverage_models import calibrate
from coverage_report import LATENCY

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

ENGINES = ("eager", "onnxruntime")
MODELS = (
    "mobileone_s0", "fastvit_t8", "repvgg_a0", "repvit_m0_9", "ghostnetv3_050", "resnet18",
    "mobilenetv3_small_050", "mixnet_s", "efficientvit_m0", "mobileone_s4", "efficientnet_lite0",
    "levit_128s", "repghostnet_050", "fastvit_sa12", "resnet18d", "densenet121", "convnext_atto",
    "xception41p", "vgg11_bn", "repvgg_b1g4",
)  # fmt: skip
"""Of timm: those with branches, and one each of the kinds that have only norms to lose."""


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Time a model of timm's before and after."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    x = torch.randn(1, 3, 224, 224)
    calibrate(model, torch.randn(2, 3, 224, 224), lambda net, images: net(images))
    models = {"before": model, "after": reparam.fuse(model, x)}
    result = reparam.benchmark(models, x, engines=ENGINES, threads=(1,), seconds=seconds)
    found: dict[str, Any] = {}
    for engine in ENGINES:
        times = {which: result[which, engine].latency.median for which in models}
        found[engine] = {
            **{f"{which}_ms": 1000 * value for which, value in times.items()},
            "ratio": result.ratio(("before", engine), ("after", engine)).median,
        }
    return found


def main() -> None:
    """Measure the models that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="for one model, all included")
    parser.add_argument("--only", nargs="+", default=MODELS, help="names of models")
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    stored = json.loads(LATENCY.read_text()) if LATENCY.exists() else {"models": {}}
    for name in options.only:
        if name in stored["models"] and not options.again:
            continue
        stored["models"][name] = measure(name, options.seconds)
        described = describe_environment()
        stored["environment"] = described
        stored["machine"] = (
            f"One thread, batch 1, 224 px, float32, {described['cpu']} "
            f"({described['cpu_capability']}), torch {described['versions']['torch']}, "
            f"ONNX Runtime {described['versions']['onnxruntime']}"
        )
        write_text(LATENCY, json.dumps(stored, indent=1, default=str) + "\n")
        print(name, stored["models"][name], flush=True)


if __name__ == "__main__":
    main()
