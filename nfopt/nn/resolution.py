"""Reading blocks at a resolution and writing them from it: compiled once, run without repeats.

A block is reduced step by step, each table from the smallest one that still has its dimensions; what is
written comes back with size 1 wherever it is constant, to be added by broadcasting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.nn.layout import LayoutBlock
from nfopt.nn.orbits import Group, Reading, Writing

Reduction: TypeAlias = Literal["mean", "max"]


@dataclass(frozen=True, slots=True)
class Step:
    """One table of a block, made of an earlier one (-1: the block itself).

    Attributes:
        source: position of the earlier table.
        equation: the einsum that takes diagonals, or nothing.
        dims: dimensions, counted from the end, that are reduced.
        count: number of elements that become one.
    """

    source: int
    equation: str
    dims: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Reader:
    """The readings of one block: tables to make, and each reading's table and order of dimensions."""

    steps: tuple[Step, ...]
    tables: tuple[int, ...]
    orders: tuple[tuple[int, ...] | None, ...]

    def __call__(self, values: Float[Tensor, "..."], reduction: Reduction) -> list[Float[Tensor, "..."]]:
        """Return one table [*batch, *resolution, channels] per reading."""
        made: list[Tensor] = []
        for step in self.steps:
            table = values if step.source < 0 else made[step.source]
            if step.equation:
                table = torch.einsum(step.equation, table)
            if step.dims:
                # A sum, divided: the gradient of mean is written out at the full size of the block.
                table = table.sum(step.dims) / step.count if reduction == "mean" else table.amax(step.dims)
            made.append(table)
        found = []
        for position, order in zip(self.tables, self.orders, strict=True):
            table = values if position < 0 else made[position]
            if order is not None:
                batch = table.ndim - 1 - len(order)
                table = table.permute(*range(batch), *(batch + i for i in order), table.ndim - 1)
            found.append(table)
        return found


def compile_reader(block: LayoutBlock, readings: Sequence[Reading]) -> Reader:
    """Return the reader of a block's readings, in their order."""
    sizes = block.shape
    steps: list[Step] = []
    known: dict[tuple[Group, ...], dict[tuple[Group, ...], int]] = {}
    for reading in sorted(readings, key=lambda r: -len(r.kept)):
        whole = tuple(sorted(reading.kept + reading.averaged))
        tables = known.setdefault(whole, {})
        if not tables:
            tables[whole] = -1
            if any(len(group) > 1 for group in whole):
                steps.append(Step(-1, _diagonal_equation(len(sizes), whole), (), 1))
                tables[whole] = len(steps) - 1
        kept = tuple(sorted(reading.kept))
        if kept not in tables:
            source = min(
                (table for table in tables if set(kept) <= set(table)),
                key=lambda table: prod(sizes[group[0]] for group in table),
            )
            dims = tuple(i - len(source) - 1 for i, group in enumerate(source) if group not in kept)
            count = prod(sizes[group[0]] for group in source if group not in kept)
            steps.append(Step(tables[source], "", dims, count))
            tables[kept] = len(steps) - 1
    places, orders = [], []
    for reading in readings:
        whole, kept = tuple(sorted(reading.kept + reading.averaged)), tuple(sorted(reading.kept))
        places.append(known[whole][kept])
        order = tuple(kept.index(group) for group in reading.kept)
        orders.append(None if order == tuple(range(len(order))) else order)
    return Reader(tuple(steps), tuple(places), tuple(orders))


def write(values: Float[Tensor, "..."], block: LayoutBlock, writing: Writing) -> Float[Tensor, "..."]:
    """Return values [*batch, *resolution, channels] in a form that broadcasts over the block.

    Dimensions along which the result is constant have size 1, but for diagonals, which are written into
    zeros.
    """
    batch = values.ndim - 1 - len(writing.kept)
    firsts = [group[0] for group in writing.kept]
    order = sorted(range(len(firsts)), key=firsts.__getitem__)
    if order != list(range(len(order))):
        values = values.permute(*range(batch), *(batch + i for i in order), values.ndim - 1)
    for position in range(len(block.kept)):
        if position not in firsts:
            values = values.unsqueeze(batch + position)
    for group in writing.kept + writing.constant:
        for position in group[1:]:
            size = block.shape[position]
            eye = torch.eye(size, dtype=torch.bool, device=values.device)
            shape = [1] * (len(block.kept) + 1)
            shape[group[0]] = shape[position] = size
            # where, not a product: a NaN of one neuron must not spread over its row.
            values = torch.where(eye.view(shape), values, values.new_zeros(()))
    return values


def add_up(terms: Sequence[Float[Tensor, "..."]], shape: Sequence[int]) -> Float[Tensor, "..."]:
    """Return the sum of terms that broadcast to `shape`, the small ones added among each other first."""
    total, *rest = sorted(terms, key=Tensor.numel)
    for term in rest:
        total = total + term
    return total.expand(*shape) if tuple(total.shape) != tuple(shape) else total


def _diagonal_equation(dims: int, groups: Sequence[Group]) -> str:
    letters = [chr(ord("a") + i) for i in range(dims)]
    for group in groups:
        for position in group:
            letters[position] = letters[group[0]]
    return f"...{''.join(letters)}Z->...{''.join(letters[group[0]] for group in groups)}Z"
