"""What benchmarks/cifar_tradeoff.py found, as tables and a picture."""

from __future__ import annotations

import statistics
from typing import Any

from cifar_common import PAGE, percent, spread
from plots import COLOURS, Panel, Point, Series, save
from tables import ROOT, fill, markdown

from reparam.report.paired import Paired, paired

__all__ = ["BATCHES", "ENGINES", "RESNETS", "against", "half_of", "in_short", "write"]

RESNETS = ("ResNet-20", "ResNet-32")
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
BATCHES = (1, 32)
CASES = [(engine, batch) for engine in ENGINES for batch in BATCHES]
_QUESTION = (
    "The fastest net that is at most a standard error of the difference less accurate; where there "
    "is none, the nearest of those in half the time:"
)
PICTURE = ROOT / "docs" / "images" / "cifar_tradeoff.svg"


def write(content: dict[str, Any], *, check: bool) -> bool:
    """Put the tables on the page and draw the picture, or compare; whether they were so already."""
    same = fill(PAGE, "cifar_tradeoff", text(content), check=check)
    return draw(content, check=check) and same


def text(content: dict[str, Any]) -> str:
    """Everything that was found, or what is to be done first."""
    if "latency" not in content:
        return "Not timed yet: `python benchmarks/cifar_tradeoff.py --latency`, on a quiet machine."
    return "\n\n".join(
        (
            "Times faster than ResNet-20 (engine, images a call), and the short runs:",
            search_table(content),
            "Trained in full, judged on the test images:",
            nets_table(content),
            _QUESTION,
            verdicts(content),
        )
    )


def times(content: dict[str, Any], name: str, case: tuple[str, int], kind: str) -> list[float]:
    """Milliseconds of a net, round by round."""
    [found] = [
        row["ms"]
        for row in content["latency"]
        if (row["net"], row["engine"], row["batch"], row["kind"]) == (name, *case, kind)
    ]
    return list(found)


def faster(
    content: dict[str, Any], name: str, other: str, case: tuple[str, int], kind: str = "float"
) -> Paired:
    """How many times faster a net is than another, in rounds in which both took their turn."""
    return paired(*(times(content, each, case, kind) for each in (other, name)))


def half_of(content: dict[str, Any], other: str) -> list[str]:
    """The candidates that take half another net's time or less, in every engine and batch."""
    return [
        name
        for name in content["nets"]
        if name not in RESNETS
        and all(faster(content, name, other, case).factor >= 2 for case in CASES)
    ]


def trained(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The finished runs of every net, ResNets first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in content["nets"]:
        runs = [
            run
            for key, run in sorted(content["runs"].items())
            if key.rpartition("/")[0] == name and run.get("finished")
        ]
        if runs:
            found[name] = runs
    return found


def accuracy(runs: list[dict[str, Any]], kind: str, engine: str) -> list[float]:
    """Test accuracies of a net's runs, in float or of its eight-bit files."""
    if kind == "float":
        return [run["accuracy"] for run in runs]
    return [run["int8"][engine]["accuracy"] for run in runs if "int8" in run]


def search_table(content: dict[str, Any]) -> str:
    """How many times faster every candidate is than ResNet-20, and how the short runs went."""
    fast = {other: half_of(content, other) for other in RESNETS}
    rows = []
    for name, counts in content["nets"].items():
        searched = content["runs"].get(f"search {name}/100", {})
        found = [faster(content, name, RESNETS[0], case).factor for case in CASES]
        within = [other for other in RESNETS if name in fast[other]]
        rows.append(
            (
                name,
                f"{counts['macs'] / 1e6:.1f}",
                f"{counts['parameters'] / 1e3:.0f}",
                *(f"{factor:.2f}" for factor in found),
                ", ".join(within) or "-",
                f"{100 * searched['accuracy']:.1f}" if searched.get("finished") else "-",
            )
        )
    header = (
        "deployed net", "M MACs", "k parameters", *(f"{ENGINES[e]}, {b}" for e, b in CASES),
        "half the time of", "held-out accuracy of the short run, %",
    )  # fmt: skip
    return markdown(header, rows)


def nets_table(content: dict[str, Any]) -> str:
    """Accuracy in float and in eight bits, and milliseconds, of every net that was trained."""
    rows = []
    for name, runs in trained(content).items():
        cells = [percent(spread(accuracy(runs, "float", "")))]
        for engine in ENGINES:
            judged = accuracy(runs, "int8", engine)
            cells.append(percent(spread(judged)) if judged else "-")
        cells += [
            f"{statistics.median(times(content, name, case, kind)):.3f}"
            for kind in ("float", "int8")
            for case in CASES
        ]
        rows.append((name, *cells))
    if not rows:
        return "No net was trained to the end yet: `python benchmarks/cifar_tradeoff.py` does it."
    header = (
        "deployed net", "test accuracy, %", *(f"{title}, int8, %" for title in ENGINES.values()),
        *(f"{ENGINES[e]}, {b}{kind}, ms" for kind in ("", ", int8") for e, b in CASES),
    )  # fmt: skip
    return markdown(header, rows)


def verdicts(content: dict[str, Any]) -> str:
    """For every ResNet, engine, batch and kind: the fastest net as accurate, and whether twice."""
    runs = trained(content)
    told, rows = [], []
    for other in (other for other in RESNETS if other in runs):
        for kind in ("float", "int8"):
            for case in CASES:
                found = fastest(content, runs, other, case, kind)
                if found is None:
                    continue
                rival, times_faster, gap, equal = found
                holds = equal and times_faster.low >= 2
                rows.append(
                    (
                        other,
                        _case(case, kind),
                        rival if equal else f"none; nearest {rival}",
                        gap,
                        f"{times_faster.factor:.2f}",
                        "yes" if holds else "no",
                    )
                )
                if holds:
                    told.append(f"{other}, {_case(case, kind)}")
    if not rows:
        return "No ResNet was trained to the end yet, so nothing is compared."
    header = ("ResNet", "case", "fastest net as accurate", "points", "times faster", "twice?")
    return f"{markdown(header, rows)}\n\nTwice as fast holds for: {'; '.join(told) or 'none'}."


def fastest(
    content: dict[str, Any],
    runs: dict[str, list[dict[str, Any]]],
    other: str,
    case: tuple[str, int],
    kind: str,
) -> tuple[str, Any, str, bool] | None:
    """The fastest net as accurate as a ResNet, or else the nearest of those in half its time.

    As accurate is what is at most one standard error of the difference less accurate; the flag says
    which of the two it is.
    """
    fast = half_of(content, other)
    its = accuracy(runs[other], kind, case[0])
    met = []
    for name in (name for name in runs if name not in RESNETS):
        mine = accuracy(runs[name], kind, case[0])
        if not its or len(mine) < len(its):  # one run beside several says too little
            continue
        gap = statistics.fmean(mine) - statistics.fmean(its)
        error = _standard_error(mine, its)
        told = f"{100 * gap:+.2f}" + (f" ± {100 * error:.2f}" if error else "")
        met.append((name, faster(content, name, other, case, kind), told, gap >= -error, gap))
    equal = [each for each in met if each[3]]
    if equal:
        return max(equal, key=lambda each: each[1].factor)[:4]
    near = [each for each in met if each[0] in fast]
    return max(near, key=lambda each: each[4])[:4] if near else None


def in_short(content: dict[str, Any]) -> str:
    """The same of both ResNets in float, in a sentence."""
    runs = trained(content)
    told = []
    for other in (other for other in RESNETS if other in runs):
        found = [fastest(content, runs, other, case, "float") for case in CASES]
        nets = [each for each in found if each is not None]
        factors = [each[1].factor for each in nets]
        names = " and ".join(dict.fromkeys(each[0] for each in nets))
        less = f"{nets[0][2].lstrip('-')} points less accurate than"
        equal = "as accurate as" if all(each[3] for each in nets) else less
        told.append(
            f"{names} is {equal} {other} and {min(factors):.1f} to {max(factors):.1f} times as fast"
        )
    return (
        "With both axes measured here, by one recipe on 10,000 images of CIFAR-10, in ONNX Runtime "
        f"and OpenVINO (`python benchmarks/cifar_tradeoff.py`): {'; '.join(told)} "
        "([the search](docs/training.md#accuracy-against-deployed-latency))."
    )


def against(content: dict[str, Any]) -> str:
    """Each ResNet beside the rival that was trained as often: points, and times faster."""
    runs = trained(content)
    rows = []
    for other in (other for other in RESNETS if other in runs):
        its = accuracy(runs[other], "float", "")
        for name in (name for name in half_of(content, other) if name in runs):
            mine = accuracy(runs[name], "float", "")
            if len(mine) < len(its):
                continue
            gap, error = statistics.fmean(mine) - statistics.fmean(its), _standard_error(mine, its)
            factors = [
                faster(content, name, other, case, kind).factor
                for kind in ("float", "int8")
                for case in CASES
            ]
            rows.append(
                (
                    f"{other} ({100 * statistics.fmean(its):.2f} %)",
                    name,
                    f"{100 * gap:+.2f} ± {100 * error:.2f}",
                    *(f"{factor:.2f}" for factor in factors),
                )
            )
    header = (
        "your net", "by", "points",
        *(f"{ENGINES[e]}, {b}{kind}" for kind in ("", ", int8") for e, b in CASES),
    )  # fmt: skip
    return markdown(header, rows)


def _standard_error(mine: list[float], its: list[float]) -> float:
    """Of the difference of two means; nothing where one of them has a single run."""
    if min(len(mine), len(its)) < 2:
        return 0.0
    return sum(statistics.variance(each) / len(each) for each in (mine, its)) ** 0.5


def _case(case: tuple[str, int], kind: str) -> str:
    engine, batch = case
    return f"{ENGINES[engine]}, batch {batch}" + (", int8" if kind == "int8" else "")


def draw(content: dict[str, Any], *, check: bool) -> bool:
    """Draw accuracy against latency, one panel an engine and batch."""
    runs = trained(content) if "latency" in content else {}
    groups = (("re-parameterized", COLOURS[0], False), ("ResNets", COLOURS[1], True))
    panels = [
        Panel(
            f"{ENGINES[engine]}, batch {batch}",
            "ms a call",
            "CIFAR-10 test accuracy, %",
            tuple(
                Series(label, colour, points, line=False)
                for label, colour, residual in groups
                if (points := _points(content, runs, (engine, batch), residual=residual))
            ),
        )
        for engine, batch in CASES
    ]
    panels = [panel for panel in panels if panel.series]
    told = "Accuracy against deployed latency of nets trained here, in ONNX Runtime and OpenVINO"
    return save(PICTURE, panels, told, check=check) if panels else True


def _points(
    content: dict[str, Any],
    runs: dict[str, list[dict[str, Any]]],
    case: tuple[str, int],
    *,
    residual: bool,
) -> tuple[Point, ...]:
    found = []
    for name in (name for name in runs if (name in RESNETS) == residual):
        shown = spread(accuracy(runs[name], "float", ""))
        mean, half = 100 * shown["mean"], 100 * (shown["deviation"] or 0.0)
        place = statistics.median(times(content, name, case, "float"))
        found.append(Point(place, mean, mean - half, mean + half, name=name))
    return tuple(found)
