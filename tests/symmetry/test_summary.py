"""Rows for people: what they count."""

import torch
from torch import nn

from nfopt.symmetry import FixedRow, GroupRow, fixed_rows, group_rows, trace_permutation_spec


def spec() -> object:
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 1), nn.Conv2d(7, 2, 3)
    )
    module.register_parameter("spare", nn.Parameter(torch.zeros(11)))
    return trace_permutation_spec(module, torch.zeros(2, 3, 8, 8))


def test_a_group_row_counts_tensors_and_axes() -> None:
    rows = group_rows(spec(), examples=2)  # pyright: ignore[reportArgumentType]
    assert rows == [
        GroupRow("0", 5, 7, 7, ("0.weight[0]", "0.bias[0]")),
        GroupRow("3", 7, 3, 3, ("3.weight[0]", "3.bias[0]")),
    ]


def test_fixed_rows_are_grouped_by_reason_with_what_they_leave_uncovered() -> None:
    rows = fixed_rows(spec(), examples=1)  # pyright: ignore[reportArgumentType]
    assert rows == [
        FixedRow("kernel positions", 4, 0, ("0.weight[2]",)),
        FixedRow("model output", 2, 2, ("4.weight[0]",)),
        FixedRow("model input", 1, 0, ("0.weight[1]",)),
        FixedRow("the traced forward pass never reads this tensor", 1, 11, ("spare[0]",)),
    ]
