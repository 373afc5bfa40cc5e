"""What a run came to, for a person and for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    rows = [
        ("recipe", finished.recipe),
        ("precision", result.recipe.precision),
        ("epochs, seconds", f"{epochs}, {result.seconds:.0f}"),
        ("validation accuracy", _percent(result.validation_accuracy, len(data.validation))),
        ("best epoch", str(result.best_epoch)),
    ]
    if result.test_accuracy is not None and data.test is not None:
        rows.insert(4, ("test accuracy", _percent(result.test_accuracy, len(data.test))))
    terminal.table(f"Trained {finished.model}{branch} on {data.name}", ("", ""), rows)
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
    for command in _next(request, finished):
        terminal.hint("Next:", command)


def _percent(share: float, images: int) -> str:
    return f"{100 * share:.2f} % of {images:,}"


def _next(request: TrainRequest, finished: Finished) -> list[str]:
    side = finished.data.image_shape[-1]
    options = f"--num-classes {finished.data.num_classes} --input-size {side}"
    commands = []
    if finished.branch is None:
        weights = f"--weights {finished.result.best}"
        out = request.out / "best.onnx"
        commands.append(f"reparam fuse {finished.model} {weights} {options} -o {out}")
    if finished.deployment.exports:
        file = finished.deployment.exports[0].path
        engine = finished.deployment.exports[0].engine
        commands.append(f"reparam bench {file} --engines {engine} --input-size {side}")
    return commands


def as_dict(finished: Finished) -> dict[str, Any]:
    """The outcome for a program."""
    return {
        "model": finished.model,
        "branch": finished.branch,
        "data": finished.data.name,
        "training": finished.result.to_dict(),
        "deployment": finished.deployment.to_dict(),
    }
