"""(a) The paper's branch ablation on one architecture: neither, 1x1, identity, both.

    python benchmarks/branch_ablation.py

The four nets are the same when deployed. Means and deviations over the seeds are in
benchmarks/results/branch_ablation.json; published figures (RepVGG-B0, ImageNet) stand beside them.
"""

from __future__ import annotations

from functools import partial

from cifar_common import Records, accuracies, open_cifar, parser, repvgg, run, spread

from reparam.training import load_recipe

DEPTHS, WIDTHS, STEM_STRIDE = (2, 4, 4), (32, 64, 128), 2
ARMS = {"neither": "neither", "1x1": "1x1", "identity": "identity", "both": "repvgg"}
PUBLISHED = {"neither": 72.39, "1x1": 73.15, "identity": 74.79, "both": 75.14}
"""RepVGG, CVPR 2021, table 6: RepVGG-B0, ImageNet top-1 in per cent."""


def main() -> None:
    options = parser(__doc__, "branch_ablation").parse_args()
    data = open_cifar(options)
    recipe = load_recipe("cifar10-fast").override(
        epochs=options.epochs or 20, batch_size=256, optimizer__learning_rate=0.2
    )
    net = {"depths": DEPTHS, "widths": WIDTHS, "stem_stride": STEM_STRIDE}
    records = Records(options.out, {"net": net, "published_imagenet_b0": PUBLISHED})
    for seed in options.seeds:  # seed by seed: a run that is cut short has compared all arms
        for arm, branches in ARMS.items():
            make = partial(repvgg, DEPTHS, WIDTHS, stem_stride=STEM_STRIDE, branches=branches)
            run(records, f"{arm}/{seed}", make, data, recipe, options, seed=seed)
    summary = {arm: spread(values) for arm in ARMS if (values := accuracies(records, arm))}
    both, neither = summary["both"], summary["neither"]
    gain = both["mean"] - neither["mean"]
    noise = (both["deviation"] ** 2 + neither["deviation"] ** 2) ** 0.5
    records.content["summary"] = summary | {
        "both_minus_neither": gain,
        "deviation_of_a_difference": noise,
        "more_than_the_spread": gain > noise,
    }
    records.save()
    for arm in ARMS:
        entry = summary[arm]
        print(
            f"{arm:10} {100 * entry['mean']:.2f} % +- {100 * entry['deviation']:.2f} "
            f"({entry['runs']} runs; published on ImageNet: {PUBLISHED[arm]})"
        )
    print(f"both - neither: {100 * gain:+.2f} points, spread of a difference {100 * noise:.2f}")


if __name__ == "__main__":
    main()
