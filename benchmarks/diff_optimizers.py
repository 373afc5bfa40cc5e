"""Ask of sixty nets whether what exporters and optimisers make of them is the same function.

Each net is compared by `reparam.diff` with its fused form, its exported program, two exports to
ONNX (torch's own, and the older one through TorchScript), and with what onnxsim, OnnxSlim,
onnxoptimizer and ONNX Runtime's optimiser (extended) make of the first of these. A net runs in a
process of its own, so that a crash of a tool is a result. What is stored is not done again, so a
run can be stopped; `--again` repeats the pairs of an outcome on the files that `--files` keeps.

pip install onnxsim onnxslim onnxoptimizer
python benchmarks/diff_optimizers.py                     # writes results/diff_optimizers.json
python benchmarks/diff_optimizers.py --nets timm:resnet18 --files /tmp/files
python benchmarks/diff_optimizers.py --again "not shown" --files /tmp/files
python benchmarks/diff_optimizers.py --table             # writes the table of docs/diff.md
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from coverage_models import calibrate
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

HERE = Path(__file__).parent
OUT = HERE / "results" / "diff_optimizers.json"
PAGE = HERE.parent / "docs" / "diff.md"

TIMM = (
    "test_resnet", "test_convnext", "test_mambaout", "resnet18", "mobilenetv3_small_050",
    "lcnet_035", "repvgg_a0", "mobilenetv2_050", "mobilenetv1_100", "mnasnet_050", "ghostnet_050",
    "regnetx_002", "regnety_002", "starnet_s050", "fasternet_t0", "resnet18d", "resnetv2_18",
    "seresnet18", "legacy_seresnet18", "selecsls42", "skresnet18", "mobilenetv4_conv_small_050",
    "efficientnet_lite0", "tf_efficientnet_lite0", "repghostnet_050", "fastvit_t8",
    "mobileone_s0", "repvit_m0_9", "convnext_atto", "convnextv2_atto", "edgenext_xx_small",
    "efficientvit_b0", "shvit_s1", "poolformer_s12", "mobilevit_xxs", "ese_vovnet19b_slim_dw",
    "cs3darknet_focus_s", "dla46x_c", "fbnetc_100", "hgnetv2_b0", "lcnetv2_small", "mixnet_s",
    "mobilenetv3_rw", "nf_regnet_b0", "regnetz_005", "resnext26ts", "rexnet_100",
)  # fmt: skip
TORCHVISION = (
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "squeezenet1_1",
    "shufflenet_v2_x0_5", "googlenet", "regnet_x_400mf", "efficientnet_b0",
)  # fmt: skip
OURS = ("repvgg_a0", "repvgg_d2se", "mobileone_s0", "mobileone_s1")
NETS = (
    *(f"timm:{name}" for name in TIMM),
    *(f"torchvision:{name}" for name in TORCHVISION),
    *(f"reparam:{name}" for name in OURS),
)
LARGER = {"torchvision:squeezenet1_1": 96, "torchvision:googlenet": 96}
PIXELS, CLASSES = 64, 10

MADE = {
    "fused": "`reparam.fuse`",
    "program": "`torch.export`",
    "dynamo": "ONNX export (dynamo)",
    "torchscript": "ONNX export (TorchScript)",
    "onnxsim": "onnxsim",
    "onnxslim": "OnnxSlim",
    "onnxoptimizer": "onnxoptimizer",
    "onnxruntime": "ONNX Runtime, extended",
}
TOOLS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxslim", "onnxoptimizer", "onnxruntime")


# ------------------------------------------------------------------ what is compared


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    house, _, net = name.partition(":")
    if house == "timm":
        import timm

        model = timm.create_model(net, num_classes=CLASSES)
    elif house == "torchvision":
        from torchvision import models

        options = {"aux_logits": False} if net == "googlenet" else {}
        model = models.get_model(net, weights=None, num_classes=CLASSES, **options)
    else:
        model = getattr(reparam.models, net)(num_classes=CLASSES)
    pixels = LARGER.get(name, PIXELS)
    calibrate(model, torch.randn(8, 3, pixels, pixels), lambda model, x: model(x))
    return model, torch.randn(1, 3, pixels, pixels)


def dynamo(model: nn.Module, x: torch.Tensor, path: Path, _: Path) -> None:
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)


def torchscript(model: nn.Module, x: torch.Tensor, path: Path, _: Path) -> None:
    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=18)


def onnxsim(_model: nn.Module, _x: torch.Tensor, path: Path, source: Path) -> None:
    import onnx
    from onnxsim import simplify

    simple, checked = simplify(onnx.load(source))
    if not checked:
        raise RuntimeError("its own check failed")
    onnx.save(simple, path)


def onnxslim(_model: nn.Module, _x: torch.Tensor, path: Path, source: Path) -> None:
    import onnx
    from onnxslim import slim

    onnx.save(slim(onnx.load(source)), path)


def onnxoptimizer(_model: nn.Module, _x: torch.Tensor, path: Path, source: Path) -> None:
    import onnx
    import onnxoptimizer as tool

    onnx.save(tool.optimize(onnx.load(source)), path)


def onnxruntime(_model: nn.Module, _x: torch.Tensor, path: Path, source: Path) -> None:
    import onnxruntime as tool

    options = tool.SessionOptions()
    options.graph_optimization_level = tool.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    tool.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


WRITERS: dict[str, Callable[[nn.Module, torch.Tensor, Path, Path], None]] = {
    "dynamo": dynamo, "torchscript": torchscript, "onnxsim": onnxsim, "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer, "onnxruntime": onnxruntime,
}  # fmt: skip


def other(made: str, model: nn.Module, x: torch.Tensor, folder: Path) -> Any:
    """What a tool makes of a net: a module, a program, or the path of a file."""
    if made == "fused":
        return reparam.fuse(model, x)
    if made == "program":
        return torch.export.export(model, (x,))
    path = folder / f"{made}.onnx"
    if not path.exists():
        draft = folder / f"{made}.draft.onnx"
        WRITERS[made](model, x, draft, folder / "dynamo.onnx")
        draft.rename(path)
    return path


# ------------------------------------------------------------------ one net


def judge(model: nn.Module, x: torch.Tensor, made: str, folder: Path) -> dict[str, Any]:
    try:
        made_of_it = other(made, model, x, folder)
    except Exception as error:  # noqa: BLE001 (whatever a tool raises is what it did)
        return {"outcome": "failed", "why": (str(error).splitlines() or [type(error).__name__])[0]}
    start = time.process_time()
    found = reparam.diff(model, made_of_it, x)
    kind = {"equal": "identical" if found.worst == 0 else "rounding"}
    return {
        "outcome": kind.get(found.outcome, found.outcome),
        "numbers": found.numbers,
        "worst": found.worst,
        "proven": found.proven,
        "what": None if found.outcome == "equal" else str(found),
        "seconds": round(time.process_time() - start, 2),
    }


def one(name: str, pairs: list[str], folder: Path, told: Connection) -> None:
    """Judge the pairs of one net, and tell of each as it begins and ends."""
    model, x = build(name)
    folder.mkdir(parents=True, exist_ok=True)
    for made in pairs:
        told.send((made, None))
        told.send((made, judge(model, x, made, folder)))


def in_its_own_process(name: str, pairs: list[str], folder: Path) -> dict[str, Any]:
    """Judge one net; the pair at which the process dies, if it does, has failed."""
    # A fork has all libraries loaded, which takes longer than most nets.
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=one, args=(name, pairs, folder, theirs))
    process.start()
    theirs.close()
    found: dict[str, Any] = {}
    try:
        while True:
            made, result = ours.recv()
            found[made] = result or {"outcome": "failed", "why": "the process ended"}
    except EOFError:
        process.join()
    return found


# ------------------------------------------------------------------ all nets


def run(names: list[str], files: Path, again: set[str]) -> None:
    stored = json.loads(OUT.read_text()) if OUT.exists() else {"nets": {}}
    for library in ("timm", "torchvision", *TOOLS):
        with suppress(ImportError):  # a tool that is not there fails by itself
            importlib.import_module(library)
    for name in names:
        results = stored["nets"].setdefault(name, {})
        redo = {made for made, result in results.items() if result["outcome"] in again}
        while wanted := [made for made in MADE if made not in results or made in redo]:
            found = in_its_own_process(name, wanted, files / name.replace(":", "-"))
            if not found:
                raise RuntimeError(f"{name} could not be built")
            results |= found
            redo -= set(found)
            stored["environment"] = describe_environment()
            stored["tools"] = {tool: _version(tool) for tool in TOOLS}
            write_text(OUT, json.dumps(stored, indent=1))
            print(name, {made: each["outcome"] for made, each in found.items()}, flush=True)


def _version(tool: str) -> str | None:
    try:
        return version(tool)
    except PackageNotFoundError:
        return None


def table(stored: dict[str, Any]) -> str:
    nets = stored["nets"]
    heads = ("identical", "rounding", "different", "not shown", "failed")
    lines = [
        "| made by | equal | up to rounding | different | not shown | no file | proven |",
        "|---|---|---|---|---|---|---|",
    ]
    totals: Counter[str] = Counter()
    for made, words in MADE.items():
        each = [results[made] for results in nets.values() if made in results]
        count = Counter(result["outcome"] for result in each)
        totals += count
        lines.append(_row(words, count, heads))
    lines.append(_row("together", totals, heads))
    return "\n".join(lines)


def _row(words: str, count: Counter[str], heads: tuple[str, ...]) -> str:
    judged = sum(count.values()) - count["failed"]
    proven = count["identical"] + count["rounding"]
    share = f"{proven / judged:.1%}" if judged else "-"
    return f"| {words} | " + " | ".join(str(count[head]) for head in heads) + f" | {share} |"


BEGIN, END = "<!-- table: diff_optimizers -->", "<!-- end -->"


def write_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = table(json.loads(OUT.read_text()))
    write_text(PAGE, f"{before}{BEGIN}\n{made}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), metavar="NET")
    parser.add_argument("--files", type=Path, help="where the files of the tools are kept")
    parser.add_argument("--again", nargs="+", default=[], metavar="OUTCOME")
    parser.add_argument("--table", action="store_true", help="write the table of docs/diff.md")
    options = parser.parse_args()
    if options.table:
        write_table()
    elif options.files:
        run(options.nets, options.files, set(options.again))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(options.nets, Path(folder), set(options.again))


if __name__ == "__main__":
    main()
