"""Branches against depth: a plain net and RepVGG of 8, 14, 22 and 34 layers, other arms at 22.

    python benchmarks/depth_ablation.py            # tunes, trains what is missing, compares, draws
    python benchmarks/depth_ablation.py --compare  # trains nothing
    python benchmarks/depth_ablation.py --check    # are the table and the picture up to date?

Learning rates are tuned at each depth, for the plain net and for RepVGG: the best of seven on
held-out training images, in short runs. All arms of a depth deploy to the same convolutions and
are trained by the same recipe on a part of the training images; other training images draw the
curves, and the test images are seen once, at the end of each run. All runs are in
benchmarks/results/depth_ablation.json, of which the table and the picture of docs/training.md are
made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from cifar_common import (
    PAGE,
    RESULTS,
    Records,
    accuracies,
    open_parts,
    parser,
    percent,
    run,
    spread,
)
from cifar_nets import Net, begin_as_branches, imagine_branches, recipe, repvgg
from plots import COLOURS, Panel, Point, Series, save
from tables import ROOT, fill, markdown

from reparam.lab.data import ImageData
from reparam.lab.training import Recipe

PICTURE = ROOT / "docs" / "images" / "depth_ablation.svg"
DEPTHS = {8: (2, 2, 3), 14: (4, 4, 5), 22: (7, 7, 7), 34: (11, 11, 11)}
"""Blocks of each stage by the number of 3x3 convolutions, the stem included."""
WIDTHS = (16, 32, 64)
TRAIN_IMAGES, HELD_OUT = 8_000, 2_000
EPOCHS, TUNING_EPOCHS = 20, 6
RATES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
ONLINE = "both, online"
"""Both branches run as one convolution: the same function, of which one run is enough."""
PLAIN_RATE = ("neither", "both, plain's rate", "RepOptimizer")
"""The arms that have the plain net's learning rate; the others have that of RepVGG."""
TUNING_SEED = 100

ARMS = {
    "neither": "neither",
    "1x1": "1x1",
    "identity": "identity",
    "both": "repvgg",
    "both, plain's rate": "repvgg",
    "RepOptimizer": "neither",
    ONLINE: "repvgg",
}
"""Each arm and its branches beside the 3x3 convolution."""

PARTS = (
    [(22, "neither"), (22, "both")],
    [(22, "identity"), (22, "1x1"), (22, "RepOptimizer"), (22, "both, plain's rate")],
    [(8, "neither"), (8, "both")],
    [(14, "neither"), (14, "both")],
    [(34, "neither"), (34, "both, plain's rate")],
    [(34, "neither"), (34, "both")],
    [(22, ONLINE)],
)
"""What is trained first: whatever is cut short has compared something."""


def main() -> int:
    options = parser(__doc__, "depth_ablation")
    options.add_argument("--compare", action="store_true", help="train nothing")
    options.add_argument("--check", action="store_true", help="only compare the page")
    options = options.parse_args()
    if options.check:
        records = json.loads(options.out.read_text(encoding="utf-8"))
        return int(not write(records, check=True))
    records = Records(
        options.out,
        {
            "widths": WIDTHS,
            "stem_stride": 2,
            "depths": {str(depth): blocks for depth, blocks in DEPTHS.items()},
            "train_images": options.images or TRAIN_IMAGES,
            "held_out_images": HELD_OUT,
        },
    )
    if not options.compare:
        data = open_parts(options, TRAIN_IMAGES, HELD_OUT)
        for part in PARTS:
            for depth, arm in part[:2]:
                tune(records, depth, arm, data, options)
            for seed in options.seeds:  # seed by seed, for the same reason
                for depth, arm in part:
                    if seed in wanted(arm, options.seeds):
                        train_arm(records, depth, arm, seed, data, options)
    summary = compare(records, options.seeds)
    records.set(summary=summary)
    if options.out.parent == RESULTS:
        write(records.content, check=False)
    print(text(records.content))
    return 0


def write(content: dict[str, Any], *, check: bool) -> bool:
    """Put the table on the page and draw the picture, or compare; whether they were so already."""
    same = fill(PAGE, "depth_ablation", text(content), check=check)
    return draw(content, check=check) and same


def wanted(arm: str, seeds: list[int]) -> list[int]:
    """Return the seeds that an arm needs: one where it is another arm run in another way."""
    return seeds[:1] if arm.startswith(ONLINE) else seeds


def net(depth: int, arm: str) -> Net:
    """Return how a net is made: 16 pixels after the stem, 8 and 4 in the later stages."""
    make = partial(repvgg, DEPTHS[depth], WIDTHS, stem_stride=2, branches=ARMS[arm])
    if arm != "RepOptimizer":
        return Net(make)
    return Net(lambda: begin_as_branches(make()), imagine_branches)


def how(rate: float, epochs: int) -> Recipe:
    """Return the recipe of the short CIFAR runs, in smaller steps and in bf16."""
    return recipe(epochs).override(
        summary="Deep nets for small images",
        batch_size=64,
        precision="bf16",
        optimizer__learning_rate=rate,
    )


def tuning_key(depth: int, arm: str) -> str:
    """Return the key of the runs whose best learning rate an arm gets."""
    return f"tuning-{'neither' if arm in PLAIN_RATE else 'both'}-{depth}"


def tune(
    records: Records, depth: int, arm: str, data: ImageData, options: argparse.Namespace
) -> None:
    """Train with every learning rate, judged on images held out; no test image is seen."""
    key = tuning_key(depth, arm)
    _, of, at = key.split("-")
    for rate in RATES:
        run(
            records,
            f"{key}/{rate}",
            net(int(at), of).make,
            replace(data, test=None),
            how(rate, TUNING_EPOCHS),
            options,
            seed=TUNING_SEED,
        )


def best_rate(content: dict[str, Any], key: str) -> float:
    """Return the rate that did best on the held-out images."""
    runs = content["runs"]
    return max(RATES, key=lambda rate: runs[f"{key}/{rate}"]["accuracy"])


def train_arm(
    records: Records,
    depth: int,
    arm: str,
    seed: int,
    data: ImageData,
    options: argparse.Namespace,
) -> None:
    """Train one net with one seed, unless it was done already."""
    made = net(depth, arm)
    run(
        records,
        f"{arm}-{depth}/{seed}",
        made.make,
        data,
        how(best_rate(records.content, tuning_key(depth, arm)), options.epochs or EPOCHS),
        options,
        seed=seed,
        wrap_optimizer=made.wrap_optimizer,
        online=arm == ONLINE,
    )


def compare(records: Records, seeds: list[int]) -> dict[str, Any]:
    """Return every arm's accuracies, what both branches gain at each depth, and what is missing."""
    arms = [f"{arm}-{depth}" for depth, arm in sorted({pair for part in PARTS for pair in part})]
    found = {name: accuracies(records, name) for name in arms}
    gains = {
        str(depth): gain(found[f"neither-{depth}"], found[f"both-{depth}"])
        for depth in DEPTHS
        if found[f"neither-{depth}"] and found[f"both-{depth}"]
    }
    return {
        "arms": {name: spread(values) for name, values in found.items() if values},
        "gains": gains,
        "missing": {
            name: absent
            for name in arms
            if (absent := [s for s in wanted(name, seeds) if f"{name}/{s}" not in records])
        },
    }


def gain(neither: list[float], both: list[float]) -> dict[str, float | None]:
    """Return the difference of the means, and its standard error where each has two runs."""
    difference = statistics.fmean(both) - statistics.fmean(neither)
    if min(len(neither), len(both)) < 2:
        return {"gain": difference, "standard_error": None}
    squares = [statistics.variance(values) / len(values) for values in (neither, both)]
    return {"gain": difference, "standard_error": sum(squares) ** 0.5}


def text(content: dict[str, Any]) -> str:
    """Return the table and what follows from it, what is missing included."""
    summary, runs = content["summary"], content["runs"]
    shown = {name: percent(entry) for name, entry in summary["arms"].items()}
    rows = [
        (depth, *(shown.get(f"{arm}-{depth}", "-") for arm in ARMS), _gain(summary, depth))
        for depth in DEPTHS
    ]
    header = ("3x3 convolutions", *ARMS, "both - neither, points")
    parts = [markdown(header, rows)]
    parts += [_verdict(depth, found) for depth, found in summary["gains"].items()]
    parts += _online(runs)
    if summary["missing"]:
        told = (f"{arm} (seed {', '.join(map(str, s))})" for arm, s in summary["missing"].items())
        parts.append(f"Not trained yet: {'; '.join(told)}.")
    keys = dict.fromkeys(tuning_key(depth, arm) for depth in DEPTHS for arm in ARMS)
    rates = ", ".join(
        f"{best_rate(content, key):g} for {key.split('-')[1]} at {key.split('-')[2]} layers"
        for key in keys
        if all(runs.get(f"{key}/{rate}", {}).get("finished") for rate in RATES)
    )
    parts.append(f"Learning rates, the best of {len(RATES)} on held-out images: {rates}.")
    return "\n\n".join(parts)


def _online(runs: dict[str, Any]) -> list[str]:
    """Return how the losses of the arm run as one convolution lie beside those of the branches."""
    curve = runs.get(f"{ONLINE}-22/0", {}).get("curve")
    if not curve:
        return []
    epoch = curve[-1]["epoch"]
    others = [
        run["curve"][epoch - 1]["train_loss"]
        for key, run in runs.items()
        if key.startswith("both-22/") and len(run["curve"]) >= epoch
    ]
    loss = curve[-1]["train_loss"]
    told = (
        f"training loss {loss:.3f} after epoch {epoch}, where the {len(others)} runs of both have"
    )
    return [f"Online at 22 layers: {told} {min(others):.3f} to {max(others):.3f}."]


def _gain(summary: dict[str, Any], depth: int) -> str:
    found = summary["gains"].get(str(depth))
    if found is None:
        return "-"
    error = found["standard_error"]
    return f"{100 * found['gain']:+.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _verdict(depth: str, found: dict[str, float]) -> str:
    if found["standard_error"] is None:
        return f"At {depth} layers there are too few runs to say anything."
    errors = found["gain"] / found["standard_error"]
    enough = "more" if errors > 3 else "not more"
    return (
        f"At {depth} layers both branches gain {100 * found['gain']:+.2f} points over none, "
        f"{errors:.1f} standard errors of the difference: {enough} than three."
    )


def draw(content: dict[str, Any], *, check: bool) -> bool:
    """Draw accuracy against depth, and the training loss of the deepest nets."""
    arms = {"neither": ("plain", COLOURS[1]), "both": ("RepVGG's branches", COLOURS[0])}
    depth_series, curves = [], []
    for arm, (label, colour) in arms.items():
        points = []
        for depth in DEPTHS:
            entry = content["summary"]["arms"].get(f"{arm}-{depth}")
            if entry is None:
                continue
            mean, half = 100 * entry["mean"], 100 * (entry["deviation"] or 0.0)
            points.append(Point(depth, mean, mean - half, mean + half))
        if points:
            depth_series.append(Series(label, colour, tuple(points)))
        for depth in (22, 34):
            runs = [
                run["curve"]
                for key, run in content["runs"].items()
                if key.rpartition("/")[0] == f"{arm}-{depth}" and run.get("finished")
            ]
            curves += [
                Series(
                    label,
                    colour,
                    tuple(Point(entry["epoch"], entry["train_loss"]) for entry in curve),
                    marks=False,
                )
                for curve in runs
            ]
    panels = [
        Panel(
            "Test accuracy, % (mean, ± one deviation of the seeds)",
            "3x3 convolutions",
            "",
            tuple(depth_series),
        ),
        Panel("Training loss at 22 and 34 layers, every run", "epoch", "", tuple(curves)),
    ]
    told = "Accuracy against depth and training loss, plain and with RepVGG's branches"
    return save(PICTURE, [panel for panel in panels if panel.series], told, check=check)


if __name__ == "__main__":
    sys.exit(main())
