"""Accuracy against measured latency: before pruning, after it, and after branches and training.

    python benchmarks/cifar_train.py RepVGG-L/0 ResNet-L/0   # the nets, if runs/cifar lacks them
    python benchmarks/prune_cifar.py --prune     # searches with the clock: on a quiet machine
    python benchmarks/prune_cifar.py             # trains what was pruned; goes on where it stopped
    python benchmarks/prune_cifar.py --measure   # times everything in turn: on a quiet machine

A single path and a ResNet of about as many multiply-adds are brought to the same target, half the
latency in ONNX Runtime on one thread, by the same method. What is left gets RepVGG's branches, is
trained on for a few epochs, and is fused. The nets that were not pruned are trained on for as long,
so that nothing is put down to pruning that is due to more training. Results are in
benchmarks/results/prune_cifar.json, and docs/pruning.md has its tables and its picture from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cifar_common import ROOT, Records, open_cifar, parser, run
from cifar_nets import RUNS, make_net, recipe
from tables import fill, markdown
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.lab.data import ImageData
from reparam.lab.pruning import load_pruned
from reparam.lab.training import Recipe, accuracy
from reparam.lab.training.callbacks import RunFiles, save_weights

PAGE = ROOT / "docs" / "pruning.md"
PICTURE = ROOT / "docs" / "images" / "pruning.svg"
NETS = {"RepVGG-L": "single path", "ResNet-L": "residual"}
ENGINE, LATENCY = "onnxruntime", 0.5
SEARCHED = 0.49
"""What the search is asked for: a little less, for no machine is the same twice."""
ENGINES = ("onnxruntime", "openvino")
IMAGES = 1024
EPOCHS = 8
STAGES = {
    "before": "before",
    "pruned": "pruned",
    "trained": "pruned, branched, trained on, fused",
    "control": "not pruned, trained on, fused",
}


def main() -> None:
    options = parser(__doc__, "prune_cifar")
    options.set_defaults(seeds=[0])
    options.add_argument("--nets", type=Path, default=RUNS, help="folder of the trained nets")
    options.add_argument("--only", nargs="+", choices=list(NETS), default=list(NETS))
    options.add_argument("--prune", action="store_true", help="search with the clock, and stop")
    options.add_argument("--measure", action="store_true", help="time everything, and draw it")
    options.add_argument("--draw", action="store_true", help="draw what was measured")
    options = options.parse_args()
    data = open_cifar(options)
    records = Records(
        options.out,
        {
            "engine": ENGINE, "target": LATENCY, "searched": SEARCHED, "images": IMAGES,
            "threads": 1, "batch": 1,
            "recipe": train_on(options.epochs).to_dict(),
        },
    )  # fmt: skip
    if options.prune:
        for name in options.only:
            prune(name, records, data, options)
    elif options.measure:
        measure(records, data, options)
    elif not options.draw:
        for name in options.only:
            train(name, records, data, options)
    if options.measure or options.draw:
        write_page(records.content)


def train_on(epochs: int | None) -> Recipe:
    """Return the recipe of the nets, at half its learning rate and for a few more epochs."""
    made = recipe(epochs or EPOCHS)
    return made.override(optimizer__learning_rate=made.optimizer.learning_rate / 2)


def trained_net(name: str, options: argparse.Namespace) -> nn.Module:
    """Return a net in its training form with the weights of its run."""
    net = make_net(name)
    delivered = options.nets / f"{name}.safetensors"
    finished = RunFiles(options.nets / f"{name}-0").last
    path = delivered if delivered.exists() else finished
    if not path.exists():
        raise SystemExit(f"{path} is missing; make it: python benchmarks/cifar_train.py {name}/0")
    reparam.load_checkpoint(net, path)
    return net.eval()


def pruned_file(name: str, options: argparse.Namespace) -> Path:
    return options.runs / f"{name}-pruned.safetensors"


def prune(name: str, records: Records, data: ImageData, options: argparse.Namespace) -> None:
    """Bring a net to half its latency, and keep its weights."""
    if name in records.content.get("pruned", {}) and pruned_file(name, options).exists():
        print(f"{name}: pruned already")
        return
    net = trained_net(name, options)
    fused = reparam.fuse(net)
    started = time.perf_counter()
    result = reparam.prune(
        fused,
        torch.zeros(1, *data.image_shape),
        latency=SEARCHED,
        engine=ENGINE,
        threads=1,
        importance="first_order",
        data=data.sample(IMAGES),
        progress=lambda done, total, what: print(f"{name}: {done}/{total} {what}", flush=True),
    )
    seconds = time.perf_counter() - started
    options.runs.mkdir(parents=True, exist_ok=True)
    save_weights(result.model.state_dict(), pruned_file(name, options))
    found = {
        **result.to_dict(),
        "seconds": seconds,
        "accuracy": {"before": score(fused, data), "pruned": score(result.model, data)},
    }
    records.set(pruned={**records.content.get("pruned", {}), name: found})
    print(result, found["accuracy"], sep="\n", flush=True)


def score(model: nn.Module, data: ImageData) -> float:
    return float(accuracy(model, data, data.validation))


def train(name: str, records: Records, data: ImageData, options: argparse.Namespace) -> None:
    """Train the pruned net with branches, and the whole net for as long."""

    def branched() -> nn.Module:
        pruned = load_pruned(reparam.fuse(trained_net(name, options)), pruned_file(name, options))
        return reparam.branch(pruned, "repvgg", calibrate=data.sample(256)[0])

    makers: dict[str, Callable[[], nn.Module]] = {
        "trained": branched,
        "control": lambda: trained_net(name, options),
    }
    for stage, make in makers.items():
        run(records, f"{name} {stage}/0", make, data, train_on(options.epochs), options, seed=0)


def nets_of(
    name: str, records: Records, options: argparse.Namespace, data: ImageData
) -> dict[str, nn.Module]:
    """Return the deployed net of every stage that there is."""
    whole = trained_net(name, options)
    fused = reparam.fuse(whole)
    pruned = load_pruned(fused, pruned_file(name, options))
    branched = reparam.branch(pruned, "repvgg", calibrate=data.sample(256)[0])
    nets = {"before": fused, "pruned": pruned}
    for stage, net in (("trained", branched), ("control", whole)):
        if f"{name} {stage}/0" in records:
            reparam.load_checkpoint(net, RunFiles(options.runs / f"{name} {stage}-0").last)
            nets[stage] = reparam.fuse(net.eval())
    return nets


def measure(records: Records, data: ImageData, options: argparse.Namespace) -> None:
    """Time all nets in turn, and count their accuracy as they are deployed."""
    nets = {name: nets_of(name, records, options, data) for name in NETS}
    models = {f"{name} {stage}": net for name, n in nets.items() for stage, net in n.items()}
    timed = reparam.benchmark(
        models, torch.zeros(1, *data.image_shape), engines=ENGINES, threads=(1,), rounds=40
    )
    rows = []
    for name, stages in nets.items():
        for stage, net in stages.items():
            latency = {}
            for engine in ENGINES:
                case, before = (f"{name} {stage}", engine), (f"{name} before", engine)
                ratio = timed.ratio(case, before)
                latency[engine] = {
                    "median_ms": 1e3 * timed[case].latency.median,
                    "ratio": ratio.median,
                    "quartiles": [ratio.quartiles.q1, ratio.quartiles.q3],
                }
            counts = reparam.deploy.benchmarking.profile(net, torch.zeros(1, *data.image_shape))
            rows.append(
                {
                    "net": name,
                    "stage": stage,
                    "accuracy": score(net, data),
                    "latency": latency,
                    "multiply_adds": counts.multiply_adds,
                    "parameters": counts.parameters,
                }
            )
            print(rows[-1], flush=True)
    records.set(stages=rows, timed_on=timed.environment)


def write_page(content: dict[str, Any]) -> None:
    """Write the tables and the picture of docs/pruning.md from the results."""
    rows = content["stages"]
    by = {(row["net"], row["stage"]): row for row in rows}
    body = []
    for row in rows:
        before = by[row["net"], "before"]
        lost = 100 * (row["accuracy"] - before["accuracy"])
        ort, ov = (row["latency"][engine] for engine in ENGINES)
        body.append(
            [
                f"{row['net']} ({NETS[row['net']]}), {STAGES[row['stage']]}",
                f"{100 * row['accuracy']:.2f}",
                "" if row is before else f"{lost:+.2f}",
                f"{ort['median_ms']:.3f}",
                f"{ort['ratio']:.2f}",
                f"{ov['ratio']:.2f}",
                f"{row['multiply_adds'] / before['multiply_adds']:.2f}",
                f"{row['parameters'] / before['parameters']:.2f}",
            ]
        )
    header = [
        "net", "accuracy %", "points", "ONNX Runtime ms", "of before", "OpenVINO, of before",
        "multiply-adds", "parameters",
    ]  # fmt: skip
    fill(PAGE, "prune-stages", markdown(header, body))
    fill(PAGE, "prune-groups", groups_table(content))
    fill(PAGE, "prune-finding", finding(content, by))
    write_text(PICTURE, picture(rows))


def finding(content: dict[str, Any], by: dict[tuple[str, str], Any]) -> str:
    """Say for each net whether it is at half the latency within half a point."""
    lines = []
    for name, kind in NETS.items():
        before, after = by[name, "before"], by.get((name, "trained"))
        if after is None:
            pruned = by[name, "pruned"]
            points = 100 * (pruned["accuracy"] - before["accuracy"])
            lines.append(
                f"- **{name}** ({kind}): {pruned['latency'][ENGINE]['ratio']:.2f} of the latency "
                f"at {points:+.2f} points as pruned; the run that trains it on is not recorded yet."
            )
            continue
        ratio = after["latency"][ENGINE]["ratio"]
        points = 100 * (after["accuracy"] - before["accuracy"])
        reached = ratio <= content["target"] and points >= -0.5
        line = (
            f"- **{name}** ({kind}): {ratio:.2f} of the latency at {points:+.2f} points, so the "
            f"aim (half the latency within 0.5 points) is {'met' if reached else 'not met'}."
        )
        if control := by.get((name, "control")):
            against = 100 * (after["accuracy"] - control["accuracy"])
            line += f" Against the whole net trained on for as long: {against:+.2f} points."
        lines.append(line)
    return "\n".join(lines)


def groups_table(content: dict[str, Any]) -> str:
    """List what had to be pruned together."""
    body = []
    for name, kind in NETS.items():
        for group in content["pruned"][name]["groups"]:
            layers = ", ".join(f"`{layer}`" for layer in group["layers"])
            body.append([name, layers, group["before"], group["after"]])
        if not content["pruned"][name]["groups"]:
            body.append([name, f"none: a {kind}", "", ""])
    return markdown(["net", "layers that share their channels", "before", "after"], body)


def _label(x: float, y: float, anchor: str, colour: str, text: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">{text}</text>'
    )


def picture(rows: list[dict[str, Any]]) -> str:
    """Draw accuracy against latency, an arrow from each stage to the next."""
    width, height, left, top, right, bottom = 720, 400, 64, 24, 700, 340
    longest = 1.15 * max(row["latency"][ENGINE]["median_ms"] for row in rows)
    accuracies = [100 * row["accuracy"] for row in rows]
    low, high = int(min(accuracies)) - 1, int(max(accuracies)) + 2

    def at(row: dict[str, Any]) -> tuple[float, float]:
        x = left + (right - left) * row["latency"][ENGINE]["median_ms"] / longest
        y = bottom - (bottom - top) * (100 * row["accuracy"] - low) / (high - low)
        return round(x, 1), round(y, 1)

    parts = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    step = max(1, (high - low) // 6)
    for tick in range(low, high + 1, step):
        y = bottom - (bottom - top) * (tick - low) / (high - low)
        parts.append(f'<path d="M{left},{y:.1f} H{right}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for tick in range(6):
        x = left + (right - left) * tick / 5
        label = f"{longest * tick / 5:.2f}"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    parts.append(f'<path d="M{left},{bottom} H{right}" stroke="#52606d"/>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 46}" text-anchor="middle">latency in ONNX '
        f"Runtime, one image, one thread (ms)</text>"
        f'<text x="{left}" y="{top - 8}">accuracy on CIFAR-10 (%)</text>'
    )
    for (name, kind), colour in zip(NETS.items(), ("#1d4ed8", "#b45309"), strict=True):
        own = {row["stage"]: at(row) for row in rows if row["net"] == name}
        path = [own[stage] for stage in ("before", "pruned", "trained") if stage in own]
        points = " ".join(f"{x},{y}" for x, y in path)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" '
            f'marker-end="url(#tip)"/>'
        )
        for stage, (x, y) in own.items():
            fill = "#ffffff" if stage == "control" else colour
            parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{fill}" stroke="{colour}"/>')
        # The residual net is the faster one, so its labels go to the left of its marks.
        side, shift = ("end", -9) if kind == "residual" else ("start", 9)
        x, y = own["before"]
        place = (x - 9, y - 8, "end") if kind == "residual" else (x, y + 22, "middle")
        parts.append(_label(*place, colour, f"{name}, {kind}"))
        for stage, label in (("pruned", "pruned"), ("trained", "trained on"), ("control", "whole")):
            if stage in own:
                x, y = own[stage]
                parts.append(_label(x + shift, y - 7, side, colour, label))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Accuracy against latency of a single path and of a residual net: before '
        'pruning, after it, and after training on"><style>text{font:13px system-ui,sans-serif;'
        'fill:#1f2933}</style><defs><marker id="tip" viewBox="0 0 8 8" refX="9" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" '
        'fill="#52606d"/></marker></defs>' + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    main()
