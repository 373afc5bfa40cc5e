"""The page that a plan prints: summary first, alike places as one, two screens at the most."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
from reparam.fusing.grouping import common_name

SCREEN = (80, 40)


class Block(nn.Module):
    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.point = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.wide(x) + self.point(x)) + x


@pytest.fixture
def stages() -> nn.Module:
    widths = (4, 6)
    stages = [nn.Sequential(*(Block(c) for _ in range(3))) for c in widths]
    return nn.Sequential(stages[0], nn.Conv2d(4, 6, 1), stages[1]).eval()


def test_repeated_blocks_are_one_row(stages: nn.Module) -> None:
    text = str(reparam.plan(stages))
    assert "*.*  x6" in text
    assert "batch norm" in text
    assert text.count("->") == 2  # operations, and what becomes what
    assert "4->4" not in text


def test_every_row_on_request(stages: nn.Module) -> None:
    plan = reparam.plan(stages)
    lines = plan.text(100, every=True).splitlines()
    rows = [line.split()[0] for line in lines if line.endswith("%") and "-> 1" in line]
    assert rows == [region.where for region in plan.regions]


def test_what_is_saved_comes_first_and_adds_up(stages: nn.Module) -> None:
    x = torch.randn(2, 4, 5, 7)
    plan = reparam.plan(stages, x)
    work = [4 * 4 * 10 * 70] * 3 + [6 * 6 * 10 * 70] * 3
    assert [r.macs_before * r.positions for r in plan.regions] == work
    head = [line.split() for line in str(plan).splitlines()[3:6]]
    assert head[0][:4] == ["operations", "30", "6", "24"]
    assert head[1][:3] == ["multiply-adds", f"{sum(work) / 1e3:.0f}", "k"]
    stored = sum(r.stored_before for r in plan.regions) * 4
    assert head[2][1:3] == [f"{stored:,}", "B"]


def test_double_precision_is_twice_the_bytes(stages: nn.Module) -> None:
    assert {r.bytes_each for r in reparam.plan(stages).regions} == {4}
    assert {r.bytes_each for r in reparam.plan(stages.double()).regions} == {8}


def test_without_an_example_no_work_is_claimed(stages: nn.Module) -> None:
    plan = reparam.plan(stages)
    assert {r.positions for r in plan.regions} == {None}
    summary = str(plan).split("what folds\n")[0].split("what folds  ")
    assert "multiply-adds" not in summary[1]


def test_a_large_model_takes_two_screens() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number in range(26):
                setattr(self, "abcdefghijklmnopqrstuvwxyz"[number], Block(4, 2 * number + 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.children():
                x = block(x)
            return x

    plan = reparam.plan(Many().eval())
    width, height = SCREEN
    lines = str(plan).splitlines()
    assert len(lines) <= 2 * height - 2  # a command says what comes next
    assert max(map(len, lines)) <= width
    assert "more" in str(plan)
    assert "every=True" in str(plan)
    every = plan.text(every=True)
    assert all(f"  {region.where} " in every for region in plan.regions)


def test_reasons_are_grouped_and_hold_no_sizes() -> None:
    net = nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(8, 8, 7, groups=8), nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 8, 1)
            )
            for _ in range(2)
        )
    ).eval()
    plan = reparam.plan(net)
    assert len(plan.refusals) > 1
    first = plan.refusals[0].reason
    assert first.has_numbers
    assert str(first) not in str(plan)
    assert first.general in " ".join(str(plan).split())
    assert str(first) in " ".join(plan.text(every=True).split())


def test_nothing_folds_is_said_first_and_alone() -> None:
    lines = str(reparam.plan(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()).eval()))
    assert lines.startswith("Nothing folds")
    assert "multiply-adds" not in lines
    assert "ReLU" in lines
    assert len(str(reparam.plan(nn.ReLU().eval())).splitlines()) == 1


def test_a_common_name_keeps_what_is_common() -> None:
    assert common_name(["a.1.conv2d_3", "a.1.conv2d_30"]) == "a.1.conv2d_*"
    assert common_name(["node_conv2d", "node_conv2d_2"]) == "node_conv2d_*"


@pytest.mark.slow
def test_a_real_net_takes_one_screen() -> None:
    net = pytest.importorskip("timm").create_model("fastvit_t8").eval()
    lines = str(reparam.plan(net, torch.randn(1, 3, 256, 256))).splitlines()
    assert len(lines) <= SCREEN[1] - 2
    assert max(map(len, lines)) <= SCREEN[0]


def test_the_column_is_the_net_in_order_and_tells_every_place_once(stages: nn.Module) -> None:
    head = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    plan = reparam.plan(nn.Sequential(stages, nn.ReLU(), head).eval())
    column = plan.column()
    assert [(p.where, p.times, bool(p.into), bool(p.why)) for p in column] == [
        ("0.*.*", 6, True, False),
        ("*.*", 2, False, False),
        ("2.0", 1, False, True),
    ]
    assert column[0].operations == plan.regions[0].layers_before
    assert sum(p.times for p in column if p.into) == len(plan.regions)
    assert sum(p.times for p in column if p.why) == len(plan.refusals)


def test_a_file_and_a_program_have_columns_as_well(stages: nn.Module) -> None:
    pytest.importorskip("onnxscript")
    x = torch.randn(1, 4, 8, 8)
    made = torch.onnx.export(stages, (x,), dynamo=True, optimize=False, verbose=False)
    for model in (made.model_proto, torch.export.export(stages, (x,))):
        column = reparam.plan(model).column()
        assert sum(p.times for p in column if p.into) == 6
        (plain,) = (p for p in column if not p.into and not p.why)
        assert plain.what == "1x1 conv 4->6"
        folding = [k for k, p in enumerate(column) if p.into]
        assert column.index(plain) > folding[0]
