"""A model that writes to its buffers as it runs is stored as the user has it, and stays so."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn

import reparam

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("runs", torch.ones(1))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.runs.add_(1)
        y = self.conv(x)
        self.last = y.mean().reshape(1)
        return y


def stored(path):
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    program = torch.export.load(path)
    return {**program.state_dict, **program.constants}


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt2"])
def test_what_is_stored_are_the_buffers_of_the_user(suffix, certify, tmp_path):
    model, path = Counting().eval(), tmp_path / f"net{suffix}"
    reparam.export(model, path, X, certify=certify)
    for held in (stored(path), dict(model.named_buffers())):
        assert (held["runs"].item(), held["last"].item()) == (1.0, 0.0)


def test_comparing_a_program_leaves_its_buffers_as_they_are():
    model = Counting().eval()
    program = torch.export.export(model, (X,))
    assert reparam.diff(model, program, X).outcome == "equal"
    assert program.state_dict["runs"].item() == 1.0
