"""What eight bits cost: accuracy and latency of fused CIFAR-10 nets, single path and residual.

    python benchmarks/cifar_train.py RepVGG-S/0 ...   # the nets, if runs/cifar lacks them
    python benchmarks/int8_cifar.py                   # quantizes and judges on all test images
    python benchmarks/int8_cifar.py --elsewhere       # the same files without VNNI
    python benchmarks/int8_cifar.py --measure         # times the files in turn: on a quiet machine
    python benchmarks/int8_cifar.py --write           # the tables of docs/quantization.md

Each net is fused, quantized for OpenVINO and for ONNX Runtime without and with the remedies, and
judged on the test images in that engine. For OpenVINO, NNCF with its own defaults is shown beside
it. Each file is made twice: for processors that add products in 32 bits (VNNI), with weights of
eight bits, and for those that add pairs of them in 16 bits (AVX2), with seven. ``--elsewhere``
judges the second, and what the first lose there, without VNNI: OpenVINO with the instructions that
ONEDNN_MAX_CPU_ISA=AVX2 leaves, ONNX Runtime on 1,000 of the images under an emulator of a
processor with AVX2 (Debian's qemu-user), or both as they are where no processor has VNNI.

Calibration images are of the training split. The nets are those of the last epoch (nothing was
chosen by test accuracy). All files take one image; latencies are of one thread. Results are in
benchmarks/results/int8_cifar.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from cifar_common import ROOT, open_cifar, parser
from cifar_nets import NETS, RUNS, make_net, recipe
from tables import fill, markdown
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.int8 import sums_saturate
from reparam.deploy.engines.ov import to_openvino
from reparam.deploy.engines.program import Conversion
from reparam.lab.data import ImageData
from reparam.lab.quantizing import Score, finish_qat, labelled_batches, prepare_qat, read_samples
from reparam.lab.quantizing.openvino_ir import quiet_nncf
from reparam.lab.quantizing.result import score
from reparam.lab.training import Hardware, train

PAGE = ROOT / "docs" / "quantization.md"
WANTED = ("RepVGG-S", "QARepVGG-S", "RepOptimizer-S", "ResNet-S", "RepVGG-L", "ResNet-L")
SUFFIXES = {"openvino": ".xml", "onnxruntime": ".onnx"}
TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"target": "vnni", "equalize": False, "correct_bias": False},
    "remedies": {"target": "vnni", "equalize": True, "correct_bias": True},
    "plain-avx2": {"target": "avx2", "equalize": False, "correct_bias": False},
    "remedies-avx2": {"target": "avx2", "equalize": True, "correct_bias": True},
}
WITHOUT_VNNI = ("remedies", "plain-avx2", "remedies-avx2")
"""What is judged without VNNI: the files made for it, and one that is not."""
PUBLISHED = (
    ("RepVGG-A0", 72.4, 52.2, "arXiv 2212.01593"),
    ("QARepVGG-A0", 72.2, 70.4, "arXiv 2212.01593"),
    ("RepVGG-B1", None, 54.55, "arXiv 2205.15242"),
    ("RepOpt-B1", 78.47, 75.89, "arXiv 2205.15242"),
)
"""ImageNet top-1 in float and after post-training quantization, as the authors published it."""


def main() -> None:
    options = parser(__doc__, "int8_cifar")
    options.set_defaults(runs=RUNS)
    options.add_argument("--nets", nargs="+", default=WANTED, choices=NETS)
    options.add_argument("--files", type=Path, default=ROOT / "runs" / "int8_cifar")
    options.add_argument("--samples", type=int, default=300)
    options.add_argument("--limit", type=int, help="judge on so many test images only")
    options.add_argument("--qat", metavar="NET", help="train NET on while it rounds, for an epoch")
    options.add_argument("--elsewhere", action="store_true", help="judge without VNNI, and stop")
    options.add_argument("--emulator", default="qemu-x86_64 -cpu Haswell-v4")
    options.add_argument("--emulated", type=int, default=1_000, help="images under the emulator")
    options.add_argument("--measure", action="store_true", help="time the files, and stop")
    options.add_argument("--rounds", type=int, default=25)
    options.add_argument("--write", action="store_true", help="write the tables, and stop")
    options.add_argument("--again", action="store_true", help="judge what is judged already, too")
    options = options.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {"nets": {}}
    if options.measure:
        measure(found, options)
    elif not options.write:
        torch.set_num_threads(options.threads)
        data = open_cifar(options)
        if options.qat:
            aware(options.qat, found, data, options)
        else:
            for name in options.nets:
                step = judge_elsewhere if options.elsewhere else judge
                step(name, found, data, options)
    write_tables(found)


def judge(name: str, found: dict[str, Any], data: ImageData, options: argparse.Namespace) -> None:
    """Quantize one net in all ways, and judge every file in its engine."""
    known = found["nets"].get(name, {})
    if "plain-avx2" in known.get("openvino", {}) and not options.again:
        print(f"{name}: judged already")
        return
    net = trained_net(name, options)
    if net is None:
        return
    fused = reparam.fuse(net)
    once = Remembered(fused).eval()
    entry: dict[str, Any] = {
        "parameters": sum(p.numel() for p in fused.parameters()),
        "samples": options.samples,
        "latency_ms": known.get("latency_ms", {}),
    }
    options.files.mkdir(parents=True, exist_ok=True)
    for engine, suffix in SUFFIXES.items():
        reparam.export(
            fused, options.files / f"{name}-float{suffix}", read_samples(data, 1).inputs,
            reference=net, dynamic=False,
        )  # fmt: skip
        entry[engine] = {}
        for arm, how in ARMS.items():
            if how["target"] == "vnni" and sums_saturate(engine):
                print(f"{name} {engine} {arm}: this processor has no VNNI")
                continue
            result = reparam.quantize(
                fused, options.files / f"{name}-{arm}{suffix}", data,
                reference=once, evaluation=labelled_batches(data, limit=options.limit),
                samples=options.samples, dynamic=False, diagnose=arm == "plain", **how,
            )  # fmt: skip
            entry[engine][arm] = record(result.score) | {"bytes": result.size_bytes}
            if result.diagnosis is not None:
                entry["diagnosis"] = result.diagnosis.as_dict()
            print(f"{name} {engine} {arm}: {result.score}", flush=True)
        if engine == "openvino":
            verdict = with_defaults(fused, once, data, options)
            entry[engine]["defaults"] = record(verdict)
            print(f"{name} {engine} NNCF's defaults: {verdict}", flush=True)
    found["nets"][name] = entry
    save(found, options)


def judge_elsewhere(
    name: str, found: dict[str, Any], data: ImageData, options: argparse.Namespace
) -> None:
    """Judge the files of a net that was quantized, on a processor without VNNI."""
    net = trained_net(name, options)
    if net is None:
        return
    once = Remembered(reparam.fuse(net)).eval()
    for engine, suffix in SUFFIXES.items():
        how, command, limit = way_without_vnni(engine, options)
        if how is None:
            print(f"{name} {engine}: no processor without VNNI, and no {options.emulator}")
            continue
        entry = found["nets"][name][engine].setdefault("without VNNI", {"by": how})
        for arm in WITHOUT_VNNI:
            file = options.files / f"{name}-{arm}{suffix}"
            if arm in entry and not options.again:
                continue
            if not file.exists():
                print(f"{name} {engine} {arm}: no {file}")
                continue
            judged = list(labelled_batches(data, limit=limit).batches)
            with tempfile.TemporaryDirectory() as folder:
                runner = Elsewhere(command, file, torch.cat([x for x, _ in judged]), Path(folder))
            again = labelled_batches(data, limit=limit)
            verdict = score(once, runner, again, batch=len(judged[0][0]), progress=ignore)
            entry[arm] = record(verdict)
            print(f"{name} {engine} {arm}, {how}: {verdict}", flush=True)
            save(found, options)


def way_without_vnni(
    engine: str, options: argparse.Namespace
) -> tuple[str | None, list[str], int | None]:
    """Return how an engine is kept from VNNI here, the command to do it, and how many images."""
    if sums_saturate(engine):
        return "as it is", [sys.executable], options.limit
    if engine == "openvino":
        limit = "ONEDNN_MAX_CPU_ISA=AVX2"
        return limit, ["env", limit, sys.executable], options.limit
    command = shlex.split(options.emulator)
    if shutil.which(command[0]) is None:
        return None, [], None
    return options.emulator, [*command, sys.executable], options.emulated


class Elsewhere:
    """What a file returned for images in another process, one part after the other."""

    def __init__(self, command: list[str], file: Path, images: torch.Tensor, folder: Path) -> None:
        np.save(folder / "images.npy", images.numpy())
        script = Path(__file__).with_name("int8_elsewhere.py")
        paths = (file, folder / "images.npy", folder / "outputs.npy")
        subprocess.run([*command, str(script), *map(str, paths)], check=True)
        self.outputs = torch.from_numpy(np.load(folder / "outputs.npy"))
        self.done = 0

    def run(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        part = self.outputs[self.done : self.done + len(inputs[0])]
        self.done += len(part)
        return (part,)


def ignore(*_: object) -> None:
    """Show no progress."""


def record(verdict: Score) -> dict[str, Any]:
    """Return a verdict without the name of the data, which is a path of this machine."""
    return {key: value for key, value in verdict.as_dict().items() if key != "on"}


class Remembered(nn.Module):
    """A net that is run once on each batch, however many files it is compared with."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.known: dict[tuple[float, ...], torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        key = (len(x), *x.flatten()[:64].tolist(), float(x.sum()))
        if key not in self.known:
            self.known[key] = self.net(x)
        return self.known[key]


def trained_net(name: str, options: argparse.Namespace) -> nn.Module | None:
    """Return a net with the weights of its last epoch, in eval mode, or say how to make them."""
    seed = options.seeds[0]
    for path in (
        options.runs / f"{name}-{seed}" / "last.safetensors",
        options.runs / f"{name}.safetensors",
    ):
        if path.exists():
            net = make_net(name)
            reparam.load_checkpoint(net, path)
            return net.eval()
    print(f"{name}: no weights in {options.runs}; python benchmarks/cifar_train.py {name}/{seed}")
    return None


def with_defaults(
    fused: nn.Module, reference: nn.Module, data: ImageData, options: argparse.Namespace
) -> Score:
    """Judge what NNCF makes of the net without any argument of ours."""
    held = read_samples(data, options.samples)
    converted, _ = to_openvino(Conversion(fused, (held.first(1),)))
    with quiet_nncf() as nncf, tempfile.TemporaryDirectory() as folder:
        samples = nncf.Dataset([sample.numpy() for sample in held.batches(1)])
        quantized = nncf.quantize(converted, samples, subset_size=options.samples)
        openvino.save_model(quantized, f"{folder}/net.xml", compress_to_fp16=False)
        runner = get_engine("openvino").load(Path(folder) / "net.xml", Settings())
        judged = labelled_batches(data, limit=options.limit)
        return score(reference, runner, judged, batch=1, progress=ignore)


def aware(name: str, found: dict[str, Any], data: ImageData, options: argparse.Namespace) -> None:
    """Train a fused net on while it rounds, quantize it, and judge it beside the same in float."""
    net = trained_net(name, options)
    if net is None:
        return
    fused = reparam.fuse(net)
    how = recipe(options.epochs or 1).override(
        optimizer__learning_rate=1e-3, optimizer__weight_decay=0.0
    )
    for kind, begun in (("float", fused), ("aware", prepare_qat(fused, data))):
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                begun, data, recipe=how, out=folder, seed=0, hardware=Hardware(accelerator="cpu")
            )
        trained = result.model if kind == "float" else finish_qat(result.model)
        for engine, suffix in SUFFIXES.items():
            with tempfile.TemporaryDirectory() as folder:
                written = reparam.quantize(
                    trained, Path(folder) / f"net{suffix}", data, samples=options.samples,
                    evaluation=labelled_batches(data, limit=options.limit), dynamic=False,
                    diagnose=False,
                )  # fmt: skip
            entry = found.setdefault("trained_on", {}).setdefault(name, {}).setdefault(engine, {})
            entry[kind] = record(written.score)
            print(f"{name} {engine} trained on in {kind}: {written.score}", flush=True)
    save(found, options)


def measure(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Time all files of all nets in turn, float and int8, an engine at a time."""
    for engine, suffix in SUFFIXES.items():
        files = {
            f"{name} {kind}": options.files / f"{name}-{arm}{suffix}"
            for name in found["nets"]
            for kind, arm in (("float", "float"), ("int8", "remedies"))
        }
        result = reparam.benchmark(
            files, torch.randn(1, 3, 32, 32), engines=(engine,), threads=(1,), rounds=options.rounds
        )
        for m in result.measurements:
            name, _, kind = m.case.model.rpartition(" ")
            times = found["nets"][name]["latency_ms"].setdefault(engine, {})
            times[kind] = 1e3 * m.latency.median
            times[f"{kind}_quartiles"] = [1e3 * m.latency.q1, 1e3 * m.latency.q3]
            print(f"{name:16s} {engine:12s} {kind:6s} {times[kind]:.4f} ms")
    found["measured_on"] = describe_environment() | {"threads": 1, "batch": 1}
    save(found, options)


def save(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the results with where they were made."""
    found["environment"] = describe_environment()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(found, indent=1) + "\n")


# Tables ----------------------------------------------------------------------------------------


def write_tables(found: dict[str, Any]) -> None:
    """Write the tables of the page from the results."""
    nets = {name: found["nets"][name] for name in WANTED if name in found["nets"]}
    if not nets:
        print("nothing was judged yet")
        return
    tables = {
        "int8 accuracy": accuracy_table(nets),
        "int8 accuracy without VNNI": elsewhere_table(nets),
        "int8 latency": latency_table(nets),
        "int8 gap": gap_table(nets),
        "int8 layers": layers_table(nets),
        "int8 published": published_table(),
    }
    if "trained_on" in found:
        tables["int8 training"] = training_table(found["trained_on"])
    for name, table in tables.items():
        fill(PAGE, name, table)


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def accuracy_table(nets: dict[str, Any]) -> str:
    rows = [
        (
            name,
            percent(entry["openvino"]["plain"]["float_accuracy"]),
            *(cell(entry["openvino"][arm]) for arm in ("defaults", "plain", "remedies")),
            *(cell(entry["onnxruntime"][arm]) for arm in ("plain", "remedies")),
        )
        for name, entry in nets.items()
    ]
    head = (
        "net", "float", "OpenVINO, NNCF's defaults", "OpenVINO, no remedies", "OpenVINO, remedies",
        "ONNX Runtime, no remedies", "ONNX Runtime, remedies",
    )  # fmt: skip
    return markdown(head, rows)


def elsewhere_table(nets: dict[str, Any]) -> str:
    """Every file where no processor has VNNI, beside what the file for VNNI makes of it."""
    rows = []
    for name, entry in nets.items():
        for engine, title in TITLES.items():
            judged = entry[engine].get("without VNNI", {})
            arms = [judged[arm] for arm in (*WITHOUT_VNNI[1:], WITHOUT_VNNI[0]) if arm in judged]
            if len(arms) == len(WITHOUT_VNNI):
                exact = arms[0]
                rows.append(
                    (name, title, f"{exact['samples']:,}", percent(exact["float_accuracy"]),
                     *map(cell, arms))
                )  # fmt: skip
    head = (
        "net", "engine", "images", "float", "for AVX2, no remedies", "for AVX2, remedies",
        "for VNNI, remedies",
    )  # fmt: skip
    return markdown(head, rows)


def cell(verdict: dict[str, Any]) -> str:
    """Accuracy, the points lost, and the agreement with the float net."""
    return (
        f"{percent(verdict['accuracy'])} ({-verdict['drop']:+.2f}; {verdict['output_db']:.0f} dB)"
    )


def latency_table(nets: dict[str, Any]) -> str:
    rows = []
    for name, entry in nets.items():
        row: list[str] = [name, f"{entry['parameters'] / 1e3:.0f} k"]
        for engine in SUFFIXES:
            times = entry["latency_ms"].get(engine)
            if times is None:
                row += ["", "", ""]
            else:
                row += [f"{times['float']:.3f}", f"{times['int8']:.3f}"]
                row.append(f"{times['float'] / times['int8']:.2f}x")
        rows.append(row)
    columns = [f"{t}, {what}" for t in TITLES.values() for what in ("float ms", "int8 ms", "gain")]
    return markdown(("net", "parameters", *columns), rows)


def gap_table(nets: dict[str, Any]) -> str:
    """Every single path beside the ResNet of its size: accuracy and latency in eight bits."""
    rows = []
    for name, entry in nets.items():
        other = f"ResNet-{name.rpartition('-')[2]}"
        if name.startswith("ResNet") or other not in nets:
            continue
        for engine, title in TITLES.items():
            mine, its = entry["latency_ms"].get(engine), nets[other]["latency_ms"].get(engine)
            if mine is None or its is None:
                continue
            points = 100 * (
                entry[engine]["remedies"]["accuracy"] - nets[other][engine]["remedies"]["accuracy"]
            )
            rows.append(
                (
                    f"{name} against {other}",
                    title,
                    f"{points:+.2f}",
                    f"{mine['float'] / its['float']:.2f}",
                    f"{mine['int8'] / its['int8']:.2f}",
                )
            )
    head = ("nets", "engine", "int8 accuracy, points", "latency ratio, float", "int8")
    return markdown(head, rows)


def layers_table(nets: dict[str, Any]) -> str:
    """The three layers of every net that hurt most, as the diagnosis finds them."""
    rows = []
    for name, entry in nets.items():
        worst = sorted(entry["diagnosis"]["layers"], key=lambda layer: layer["output_db"])[:3]
        rows += [
            (
                name,
                f"`{layer['name']}`, {layer['what']}",
                f"{layer['weight_low']:.2f} to {layer['weight_high']:.2f}",
                f"{layer['input_low']:.1f} to {layer['input_high']:.1f}",
                f"{layer['input_spread']:.1f}x",
                f"{layer['weight_db']:.0f}",
                f"{layer['input_db']:.0f}",
                f"{layer['output_db']:.0f}",
            )
            for layer in worst
        ]
    head = (
        "net", "layer", "weights", "reads", "spread", "weight dB", "input dB", "output dB",
    )  # fmt: skip
    return markdown(head, rows)


def published_table() -> str:
    rows = [
        (name, "" if exact is None else f"{exact:g}", f"{int8:g}", source)
        for name, exact, int8, source in PUBLISHED
    ]
    return markdown(("net", "float", "int8", "published in"), rows)


def training_table(trained: dict[str, Any]) -> str:
    rows = []
    for name, engines in trained.items():
        for engine, kinds in engines.items():
            for kind, verdict in kinds.items():
                how = "in float" if kind == "float" else "while it rounds"
                rows.append(
                    (f"{name}, trained on {how}", TITLES[engine],
                     percent(verdict["float_accuracy"]), cell(verdict))
                )  # fmt: skip
    return markdown(("net", "engine", "float", "int8"), rows)


if __name__ == "__main__":
    main()
