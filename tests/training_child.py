"""A training run in a process of its own, so that a test can kill it or start two of it.

Usage: child.py OUT '{"recipe overrides": ..., "kill_at": [epoch, step]}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from reparam.lab.data import open_data
from reparam.lab.training import Hardware, load_recipe, train

if TYPE_CHECKING:
    from reparam.lab.training import Progress


def net(*, normalised: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8) if normalised else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2) if normalised else nn.Identity(),
        nn.Linear(8 * 16, 10),
    )


def main(out: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    kill_at = options.get("kill_at")

    def hook(progress: Progress) -> None:
        here = [progress.epoch, "end" if progress.record else progress.step]
        if here == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    result = train(
        net(normalised=options.get("normalised", True)),
        open_data("digits"),
        recipe=load_recipe("digits").override(**options.get("recipe", {})),
        out=out,
        seed=3,
        on_progress=hook,
        resume=options.get("resume", False),
        save_every_steps=options.get("save_every_steps"),
        hardware=Hardware(
            accelerator="cpu",
            devices=options.get("devices", 1),
            strategy="ddp" if options.get("devices", 1) > 1 else "auto",
        ),
    )
    if int(os.environ.get("RANK", "0")) == 0:
        records = [{**vars(record), "train_seconds": 0, "seconds": 0} for record in result.history]
        Path(out, "records.json").write_text(json.dumps(records))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
    if distributed.is_initialized():
        # All is written. DDP's reducers may still hold gloo's threads, and a shutdown of the
        # interpreter that meets one running aborts the process.
        distributed.barrier()
        distributed.destroy_process_group()
        os._exit(0)
