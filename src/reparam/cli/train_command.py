"""``reparam train``: train wide, and end with the straight net, compared and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.cli.options import (
    MOST_PROCESSES,
    JsonOption,
    KeyOption,
    NumClassesOption,
    StrictOption,
    WeightsOption,
    target_from,
)
from reparam.cli.terminal import Terminal
from reparam.cli.training import TrainRequest, as_dict, overrides, run, tell

__all__ = ["train"]

_MOST_SEED = (1 << 63) - 1
"""What PyTorch's generators take."""

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="DATA",
        help="digits, an ImageFolder directory or zip, torchvision:NAME, or shards (*.tar).",
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option("--validation", metavar="DATA", help="A second source of the same kind."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Any MODEL; if left out the recipe's own, or a small RepVGG.",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--input-size", "--size", metavar="PIXELS", min=1, help="Side of the images MODEL sees."
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", metavar="NAME", help="A recipe by its name, as digits, or a TOML file."
    ),
]
BranchOption = Annotated[
    str | None,
    typer.Option("--branch", metavar="KIND", help="Widen MODEL by a kind of branching, as repvgg."),
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the run.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", metavar="N", min=1, help="Instead of the recipe's.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", min=1, help="Images a step, over all processes."),
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", metavar="P", help="auto, fp32, bf16 or fp16.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Replace any value of the recipe."),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", metavar="N", min=0, max=_MOST_SEED, help="Decides all that is random."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in FOLDER, if there is one.")
]
SaveOption = Annotated[
    int | None,
    typer.Option("--save-every-steps", metavar="N", min=1, help="Checkpoint within an epoch too."),
]
TensorBoardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard events beside the CSV table.")
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", min=0, max=MOST_PROCESSES, help="Processes that decode images."
    ),
]
AcceleratorOption = Annotated[
    str, typer.Option("--accelerator", metavar="A", help="auto, cpu, cuda or mps.")
]
DevicesOption = Annotated[
    int,
    typer.Option(
        "--devices", metavar="N", min=1, max=MOST_PROCESSES, help="Processes on each machine."
    ),
]
NodesOption = Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines.")]
SyncOption = Annotated[
    bool, typer.Option("--sync-batchnorm", help="Batch statistics over all processes (GPUs).")
]
OnlineOption = Annotated[
    bool | None,
    typer.Option(
        "--online/--no-online",
        help="Merge branches while training, exactly; if left out, where that is faster.",
    ),
]
ExportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--export", metavar="FILE", help="Export to FOLDER/FILE; deploy.onnx if left out."
    ),
]
DeployOption = Annotated[
    str,
    typer.Option("--deploy", metavar="W", help="Fuse the best epoch on validation, or the last."),
]


def train(  # noqa: PLR0913 - one argument for each option
    *,
    data: DataOption,
    model: ModelOption = None,
    recipe: RecipeOption = None,
    branch: BranchOption = None,
    out: OutOption = Path("reparam-run"),
    weights: WeightsOption = None,
    key: KeyOption = None,
    strict: StrictOption = True,
    num_classes: NumClassesOption = None,
    validation: ValidationOption = None,
    input_size: ImageSizeOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    precision: PrecisionOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    save_every_steps: SaveOption = None,
    tensorboard: TensorBoardOption = False,
    workers: WorkersOption = 0,
    accelerator: AcceleratorOption = "auto",
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    sync_batchnorm: SyncOption = False,
    online: OnlineOption = None,
    exports: ExportOption = None,
    deploy: DeployOption = "best",
    as_json: JsonOption = False,
) -> None:
    """Train MODEL on DATA, fuse it, show that nothing changed, and export it.

    Several processes: torchrun or SLURM start them; give --devices and --nodes as they do.
    """
    terminal = Terminal()
    request = TrainRequest(
        data=data,
        out=out,
        model=model,
        recipe=recipe,
        branch=branch,
        checkpoint=target_from("", weights, key, strict).checkpoint,
        num_classes=num_classes,
        validation=validation,
        size=input_size,
        changes=overrides(settings or (), epochs, batch_size, precision),
        seed=seed,
        resume=resume,
        save_every_steps=save_every_steps,
        tensorboard=tensorboard,
        workers=workers,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        sync_batchnorm=sync_batchnorm,
        online=online,
        exports=tuple(exports) if exports else None,
        deploy=deploy,
    )
    finished = run(request, terminal)
    if finished is None:
        return
    if as_json:
        terminal.json(as_dict(finished))
    else:
        tell(terminal, request, finished)
