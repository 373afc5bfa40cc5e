"""(a) The paper's branch ablation on one architecture: neither, 1x1, identity, both.

    python benchmarks/branch_ablation.py            # trains what is missing, then compares
    python benchmarks/branch_ablation.py --compare  # compares what there is

The four nets are the same when deployed. The runs are in benchmarks/results/cifar_runs.json, means
and deviations over the seeds in benchmarks/results/branch_ablation.json, and the table of both in
docs/training.md; published figures (RepVGG-B0, ImageNet) stand beside them.
"""

from __future__ import annotations

from typing import Any

from cifar_common import (
    PAGE,
    RESULTS,
    Records,
    accuracies,
    open_cifar,
    parser,
    percent,
    spread,
)
from cifar_nets import RUNS, SMALL, shared_runs, train_net
from tables import fill, markdown

ARMS = {
    "neither": "Plain-S",
    "1x1": "Pointwise-S",
    "identity": "Identity-S",
    "both": "RepVGG-S",
}
PUBLISHED = {"neither": 72.39, "1x1": 73.15, "identity": 74.79, "both": 75.14}
"""RepVGG, CVPR 2021, table 6: RepVGG-B0, ImageNet top-1 in per cent."""


def main() -> None:
    options = parser(__doc__, "branch_ablation")
    options.set_defaults(runs=RUNS)
    options.add_argument("--compare", action="store_true", help="train nothing")
    options = options.parse_args()
    runs = shared_runs(options)
    if not options.compare:
        data = open_cifar(options)
        for seed in options.seeds:  # seed by seed: what is cut short has compared all arms
            for net in ARMS.values():
                train_net(runs, net, seed, data, options)
    records = Records(options.out, {"net": SMALL, "published_imagenet_b0": PUBLISHED})
    summary = compare(runs)
    records.set(summary=summary)
    if options.out.parent == RESULTS and options.epochs is None and options.images is None:
        fill(PAGE, "branch_ablation", text(summary))
    print(text(summary))


def compare(runs: Records) -> dict[str, Any]:
    """Return the arms' accuracies, and whether both branches gain more than the seeds differ."""
    summary: dict[str, Any] = {
        arm: spread(values) for arm, net in ARMS.items() if (values := accuracies(runs, net))
    }
    both, neither = summary["both"], summary["neither"]
    gain = both["mean"] - neither["mean"]
    comparison: dict[str, Any] = {"both_minus_neither": gain}
    if min(both["runs"], neither["runs"]) > 1:
        noise = (both["deviation"] ** 2 + neither["deviation"] ** 2) ** 0.5
        comparison |= {"deviation_of_a_difference": noise, "more_than_the_spread": gain > noise}
    return summary | comparison


def text(summary: dict[str, Any]) -> str:
    """Return the table and what follows from it."""
    rows = [(arm, percent(summary[arm]), f"{PUBLISHED[arm]:.2f}") for arm in ARMS if arm in summary]
    conclusion = (
        f"Both branches against neither: {100 * summary['both_minus_neither']:+.2f} points, "
    )
    if "deviation_of_a_difference" in summary:
        verdict = "more" if summary["more_than_the_spread"] else "not more"
        noise = 100 * summary["deviation_of_a_difference"]
        conclusion += (
            f"where the deviation of one such difference is {noise:.2f}: {verdict} than the spread."
        )
    else:
        conclusion += "of one run each: too few to say anything."
    header = ("branches beside 3x3", "CIFAR-10 test, %", "published, RepVGG-B0, ImageNet, %")
    return f"{markdown(header, rows)}\n\n{conclusion}"


if __name__ == "__main__":
    main()
