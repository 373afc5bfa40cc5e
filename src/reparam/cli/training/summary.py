"""What a run came to, for a person and for a program."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reparam._support.optional import available
from reparam.cli.targets import Checkpoint, command
from reparam.report.numbers import count

if TYPE_CHECKING:
    from reparam.cli.terminal import Terminal
    from reparam.cli.training.request import TrainRequest
    from reparam.cli.training.running import Finished

__all__ = ["as_dict", "tell"]


def tell(terminal: Terminal, request: TrainRequest, finished: Finished) -> None:
    """Print accuracy, what fusing did, the files, and what can be done next."""
    result, deployed = finished.result, finished.deployment
    data, epochs = finished.data, len(result.history)
    branch = f" with {finished.branch} branches" if finished.branch else ""
    title = f"Trained {finished.model.name}{branch} on {data.name}"
    terminal.table(title, ("", *_columns(finished)), _accuracies(finished))
    precision = result.recipe.precision
    told = "" if precision == "fp32" else " (the accuracies of the epochs too; those above in fp32)"
    terminal.text(
        f"  recipe {finished.recipe} in {precision}{told}, {epochs} epochs in "
        f"{result.seconds:.0f} s"
    )
    if result.online is not None:
        took = result.online.compile_seconds
        compiled = "" if took is None else f", with passes compiled in {took:.0f} s"
        terminal.text(f"  {result.online.blocks} blocks trained as one convolution each{compiled}")
    terminal.text()
    same = deployed.images - deployed.different
    terminal.done(
        f"Fused: {len(deployed.plan.regions)} regions, {count(deployed.parameters_before)} "
        f"parameters became {count(deployed.parameters_after)}; the same class on {same:,} of "
        f"{deployed.images:,} validation images, largest difference {deployed.verdict.max_abs:.1e}"
    )
    if deployed.plan.refusals:
        terminal.hint("Note:", f"{len(deployed.plan.refusals)} places were left as found")
    for written in deployed.exports:
        terminal.done(
            f"Wrote {written.path} ({written.size_bytes / 1e6:.1f} MB), read back in "
            f"{written.engine}: largest difference {written.parity.max_abs:.1e}"
        )
    terminal.done(
        f"Weights in {request.out}: {deployed.weights.name} (fused), {result.best.name} and "
        f"{result.last.name} (train form)"
    )
    for words in _next(request, finished):
        terminal.hint("Next:", command(*words))


def _columns(finished: Finished) -> list[str]:
    last = len(finished.result.history)
    if finished.deployment.epoch == last:
        return [f"epoch {last}, deployed"]
    return [f"epoch {finished.deployment.epoch}, deployed", f"epoch {last}, the last"]


def _accuracies(finished: Finished) -> list[list[str]]:
    """Of what is deployed, and beside it of the last epoch where that is another."""
    result, deployed, data = finished.result, finished.deployment, finished.data
    rows = [("validation accuracy", deployed.accuracy, result.validation_accuracy, data.validation)]
    if data.test is not None:
        test = (deployed.test_accuracy or 0.0, result.test_accuracy or 0.0)
        rows.append(("test accuracy", *test, data.test))
    width = len(_columns(finished))
    return [
        [what, *(_percent(share, len(split)) for share in (mine, last)[:width])]
        for what, mine, last, split in rows
    ]


def _percent(share: float, images: int) -> str:
    return f"{100 * share:.2f} % of {images:,}"


def _next(request: TrainRequest, finished: Finished) -> list[list[str]]:
    """Commands that work as they stand: eight bits, fewer channels, times, a page."""
    deployed, out = finished.deployment, request.out
    size = ["--input-size", str(finished.data.image_shape[-1])]
    target = replace(finished.model, checkpoint=Checkpoint(deployed.weights))
    data = ["--data", request.data, *size]
    if request.validation is not None:
        data += ["--validation", request.validation]
    commands = [
        ["prune", *target.words(), *data, "--macs", "0.5", "-o", str(out / "pruned.safetensors")],
        ["report", str(out / "result.json")],
    ]
    if all(map(available, ("onnx", "onnxruntime"))):
        int8 = str(out / "deploy-int8.onnx")
        page = ["--report", str(out / "deploy-int8.html")] if available("jinja2") else []
        commands.insert(0, ["quantize", *target.words(), *data, "-o", int8, *page])
    timed = [export for export in deployed.exports if export.path.suffix != ".safetensors"]
    timed_as = [str(timed[0].path), "--engines", timed[0].engine] if timed else target.words()
    return [*commands, ["bench", *timed_as, *size]]


def as_dict(finished: Finished) -> dict[str, Any]:
    """The outcome for a program."""
    return {
        "model": finished.model.name,
        "branch": finished.branch,
        "data": finished.data.name,
        "training": finished.result.to_dict(),
        "deployment": finished.deployment.to_dict(),
    }
