"""Write docs/coverage.md's tables and picture from the results of `benchmarks/coverage.py`.

python benchmarks/coverage_report.py --runs runs/coverage   # take results in, then write
python benchmarks/coverage_report.py                        # write from the committed results
python benchmarks/coverage_report.py --check                # are page and picture up to date?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tables import ROOT, fill, markdown

from reparam._support.files import write_text

RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
LATENCY = ROOT / "benchmarks" / "results" / "coverage_latency.json"
BLOCKS = ROOT / "benchmarks" / "results" / "coverage_blocks.json"
PAGE = ROOT / "docs" / "coverage.md"
PICTURE = ROOT / "docs" / "images" / "coverage.svg"
KEPT = (
    "image_px", "dtype", "before", "after", "own", "left", "float64", "float64_other",
    "other_shapes", "blocks", "float32", "refusals", "same_class", "ok", "error", "not_built",
)  # fmt: skip
"""What is kept of a model's result; times of a shared machine are not."""

LIBRARIES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "ultralytics": "ultralytics",
    "huggingface": "Hugging Face transformers",
    "smp": "segmentation-models-pytorch",
    "monai": "MONAI",
    "kornia": "kornia",
    "torchaudio": "torchaudio",
    "speechbrain": "speechbrain",
    "torchreid": "torchreid",
    "spandrel": "spandrel",
    "open_clip": "open_clip",
}
FOREIGN = list(LIBRARIES)[3:]
"""Those without a conversion of their own, whose models have one table."""

Result = dict[str, Any]
Results = dict[str, Result]


def take_in(runs: Path) -> None:
    """Add the results of a run to the committed ones."""
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for path in sorted(runs.glob("*.json")):
        found = json.loads(path.read_text())
        results[found["model"]] = {key: found[key] for key in KEPT if key in found}
    text = json.dumps(dict(sorted(results.items())), indent=1)
    write_text(RESULTS, text + "\n")


def of_library(results: Results, library: str) -> Results:
    """The results of one library's models."""
    return {n.partition(":")[2]: r for n, r in results.items() if n.startswith(f"{library}:")}


def total(results: Results, which: str, what: str) -> int | None:
    """Sum of a count over models; None where the library converts none of them."""
    counts = [r.get(which, {}).get(what) for r in results.values()]
    known = [c for c in counts if c is not None]
    return sum(known) if len(known) == len(counts) else None


def summary(results: Results) -> str:
    """One line a library."""
    rows = []
    for library, name in LIBRARIES.items():
        every = of_library(results, library)
        models = {n: r for n, r in every.items() if "after" in r}
        if models:
            rows.append((
                name, len(models), *_totals(models, "convs"), *_totals(models, "norms"),
                sum("error" in r for r in every.values()),
                sum(not r["ok"] for r in models.values()),
                f"{max(_worst(r) for r in models.values()):.0e}",
            ))  # fmt: skip
    header = (
        "models of", "", "convs", "its own", "reparam", "norms", "its own", "reparam", "raise",
        "wrong", "float64, worst block",
    )  # fmt: skip
    return markdown(header, rows)


def foreign_table(results: Results) -> str:
    """One line a model of the libraries without a conversion of their own."""
    rows = [
        (
            f"{LIBRARIES[library]}: {name}",
            *(f"{r['before'][what]} -> {r['after'][what]}" for what in ("convs", "norms")),
            f"{r['after']['macs'] / max(1, r['before']['macs']):.1%}",
            f"{r['blocks']['worst']:.0e}",
            f"{r['float64']['fused']:.0e} / {r['float64']['control']:.0e}",
        )
        for library in FOREIGN
        for name, r in of_library(results, library).items()
        if "after" in r
    ]
    header = ("model", "convs", "norms", "multiply-adds", "worst block", "model / control")
    return markdown(header, rows)


def unbuilt(results: Results) -> str:
    """Models that could not be built or that raised, with what they said."""
    found = [
        f"- {name}: {r.get('not_built') or r.get('error')}"
        for name, r in results.items()
        if "after" not in r
    ]
    return "\n".join(found) or "None."


def _totals(models: Results, what: str) -> tuple[object, ...]:
    own = total(models, "own", what)
    return (
        _number(total(models, "before", what)),
        "-" if own is None else _number(own),
        _number(total(models, "after", what)),
    )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _worst(result: Result) -> float:
    exact = result.get("dtype", "float64") == "float64"
    return float(result["blocks"]["worst"]) if exact else 0.0


def models_table(models: Results) -> str:
    """One line a model: executed layers before, after the library's conversion, and after ours."""
    rows = [
        (
            name,
            *_counts(result, "convs"),
            *_counts(result, "norms"),
            f"{result['after']['macs'] / result['before']['macs']:.1%}",
            f"{result['blocks']['worst']:.0e}",
            f"{result['float64']['fused']:.0e} / {result['float64']['control']:.0e}",
        )
        for name, result in models.items()
        if "after" in result
    ]
    header = (
        "model", "convs", "its own", "reparam", "norms", "its own", "reparam", "multiply-adds",
        "worst block", "model / control",
    )  # fmt: skip
    return markdown(header, rows)


def _counts(result: Result, what: str) -> tuple[object, ...]:
    own = result.get("own", {}).get(what, "-")
    return result["before"][what], own, result["after"][what]


def reasons(results: Results) -> str:
    """Why norms stay, most frequent first."""
    counted: dict[str, list[str]] = {}
    for name, result in results.items():
        if result.get("after", {}).get("norms"):
            for why in result.get("left", result.get("refusals", ())):
                counted.setdefault(why, []).append(name.partition(":")[2])
    ranked = sorted(counted.items(), key=lambda item: -len(item[1]))
    lines = [f"- {why}: {', '.join(_first(models))}" for why, models in ranked if _is_norm(why)]
    return "\n".join(lines)


def _is_norm(why: str) -> bool:
    return not why.startswith("one layer would")


def _first(models: list[str], most: int = 6) -> list[str]:
    rest = len(models) - most
    return models if rest <= 0 else [*models[:most], f"{rest} more"]


def latency_table(measured: dict[str, Any]) -> str:
    """How many times faster the fused model is."""
    rows = [
        (name, *(_ratio(row, engine) for engine in ("eager", "onnxruntime")))
        for name, row in measured["models"].items()
    ]
    return f"{measured['machine']}.\n\n" + markdown(("model", "eager", "ONNX Runtime"), rows)


def blocks_table(blocks: dict[str, Any]) -> str:
    """One line a block."""
    rows = [
        (
            name,
            *(f"{b['before'][what]} -> {b['after'][what]}" for what in ("operators", "convs")),
            *(f"{error:.0e}" for error in b["errors"].values()),
        )
        for name, b in blocks.items()
    ]
    types = next(iter(blocks.values()))["errors"]
    return markdown(("block", "operators", "convs and linears", *types), rows)


def _ratio(row: dict[str, Any], engine: str) -> str:
    found = row.get(engine)
    if not found:
        return "-"
    return f"{found['before_ms']:.3g} -> {found['after_ms']:.3g} ms, {found['ratio']:.2f}x"


# ------------------------------------------------------------------------------- the picture

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2933}.title{font-size:14px;font-weight:600}"
    ".before{fill:#cbd5e1}.own{fill:#93c5fd}.after{fill:#1d4ed8}.quiet{fill:#52606d}"
)
WIDTH, LEFT, ROW, BAR = 860, 190, 34, 9
NAMES = {
    "before": "as trained",
    "own": "after timm's own conversion",
    "after": "after reparam.fuse",
}


def picture(models: Results, most: int = 14) -> str:
    """Layers executed by timm's models: all norms, and the convs of those that lose most."""
    shrunk = sorted(
        (r["after"]["convs"] / r["before"]["convs"], name)
        for name, r in models.items()
        if r["after"]["convs"] < r["before"]["convs"]
    )[:most]
    rows = [(f"all {len(models)} models", _sums(models, "norms"))]
    rows += [(name, _convs(models[name])) for _, name in shrunk]
    parts = [_legend()]
    for k, (name, counts) in enumerate(rows):
        parts.append(_bars(60 + k * ROW + (30 if k else 0), name, counts))
    parts.append(f'<text class="title" x="16" y="{60 + ROW + 22}">Convolutions executed</text>')
    height = 60 + len(rows) * ROW + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Layers executed before and after fusing"><style>'
        f'{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _sums(models: Results, what: str) -> dict[str, int]:
    return {which: total(models, which, what) or 0 for which in NAMES}


def _convs(result: Result) -> dict[str, int]:
    return {which: int(result[which]["convs"]) for which in NAMES if "convs" in result[which]}


def _legend() -> str:
    marks = []
    for k, (kind, name) in enumerate(NAMES.items()):
        x = LEFT + k * 200
        marks.append(f'<rect class="{kind}" x="{x}" y="24" width="12" height="12"/>')
        marks.append(f'<text x="{x + 18}" y="34">{name}</text>')
    return '<text class="title" x="16" y="34">Norms executed</text>' + "".join(marks)


def _bars(top: int, name: str, counts: dict[str, int]) -> str:
    widest = max(counts.values())
    parts = [f'<text x="{LEFT - 10}" y="{top + 17}" text-anchor="end">{name}</text>']
    for k, (kind, value) in enumerate(counts.items()):
        length = max(1, round(value / widest * (WIDTH - LEFT - 90)))
        y = top + k * BAR
        parts.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length}" height="{BAR - 1}"/>'
            f'<text class="quiet" x="{LEFT + length + 6}" y="{y + 8}" style="font-size:9px">'
            f"{value:,}</text>"
        )
    return "".join(parts)


# ------------------------------------------------------------------------------- all of it


def tables(results: Results) -> Iterable[tuple[str, str]]:
    """The tables of the page by their names."""
    yield "summary", summary(results)
    yield "reasons", reasons(results)
    yield "foreign", foreign_table(results)
    yield "unbuilt", unbuilt(results)
    for library in ("timm", "torchvision", "ultralytics"):
        yield library, models_table(of_library(results, library))
    if BLOCKS.exists():
        yield "blocks", blocks_table(json.loads(BLOCKS.read_text()))
    if LATENCY.exists():
        yield "latency", latency_table(json.loads(LATENCY.read_text()))


def main() -> None:
    """Write, or check, the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="take in the results of this folder first")
    parser.add_argument("--check", action="store_true", help="only say whether all is up to date")
    options = parser.parse_args()
    if options.runs is not None:
        take_in(options.runs)
    results: Results = json.loads(RESULTS.read_text())
    fresh = [fill(PAGE, name, text, check=options.check) for name, text in tables(results)]
    drawn = picture(of_library(results, "timm"))
    fresh.append(PICTURE.exists() and PICTURE.read_text() == drawn)
    if not options.check:
        write_text(PICTURE, drawn)
    elif not all(fresh):
        sys.exit("docs/coverage.md is not up to date: run benchmarks/coverage_report.py")


if __name__ == "__main__":
    main()
