"""Observations: what the learned rule sees of each row, column and tensor, free of scale where it can be."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.directions import TINY, MomentumRates
from nfopt.symmetry import Axis, PermutationSpec
from nfopt.symmetry.axes import atoms_of
from nfopt.weightspace.incidence import Incidence, MatrixLayout

ENTRY_FEATURES = ("weight", "momentum", "second", "signal")
TENSOR_FEATURES = (
    "weight_scale",
    "signal",
    "agreement",
    "row_evenness",
    "column_evenness",
    "age",
    "progress",
    "early",
    "late",
    "depth",
    "fan_in",
    "fan_out",
    "matrix",
    "kernel",
    "first",
    "last",
    "one",
)


@dataclass(frozen=True)
class Pooled:
    """Mean squares of one tensor quantity: over the whole tensor, per row and per column (None without)."""

    total: Float[Tensor, ""]
    rows: Float[Tensor, "..."]
    cols: Float[Tensor, "..."] | None


def pool(squares: Float[Tensor, "..."], layout: MatrixLayout) -> Pooled:
    """Average `squares` over everything, over all but the output, and over all but the input dimensions.

    The averaged dimensions stay, with size 1.
    """
    every = range(squares.dim())
    row_dims = [d for d in every if d not in layout.out_dims]
    rows = squares.mean(dim=row_dims, keepdim=True) if row_dims else squares
    cols = (
        squares.mean(dim=[d for d in every if d not in layout.in_dims], keepdim=True)
        if layout.in_dims
        else None
    )
    return Pooled(rows.mean(), rows, cols)


def static_features(
    spec: PermutationSpec, incidence: Incidence, matrices: frozenset[str]
) -> Float[Tensor, "tensors 8"]:
    """Return the tensor features that never change: from "depth" to "one" in TENSOR_FEATURES."""
    table = []
    for name, layout in zip(incidence.names, incidence.layouts, strict=True):
        entry = spec.tensors[spec.aliases.get(name, name)]
        fixed_in = [spec.fixed.get(atom) for atom in _atom_names(entry.axes, layout.in_dims)]
        fixed_out = [spec.fixed.get(atom) for atom in _atom_names(entry.axes, layout.out_dims)]
        table.append(
            [
                2 * entry.depth - 1,
                log(max(layout.in_size * layout.rest_size, 1)) / 4 - 1,
                log(max(layout.out_size, 1)) / 4 - 1,
                float(name in matrices),
                float(layout.rest_size > 1),
                float(name in matrices and "model input" in fixed_in),
                float("model output" in fixed_out),
                1.0,
            ]
        )
    return torch.tensor(table, dtype=torch.float64).reshape(len(incidence.names), 8)


def entry_features(
    weight: list[Pooled],
    momentum: list[Pooled],
    second: list[Pooled],
    correction: Float[Tensor, " tensors"],
    alive: Float[Tensor, " tensors"],
) -> Float[Tensor, "entries 4"]:
    """Return log-ratios per row and column: of W, m and v to their tensor's mean, and of m to v.

    Args:
        weight: pooled squares of the weights, one per tensor.
        momentum: pooled squares of the slow momentum.
        second: pooled second moment.
        correction: log of the factor that corrects both biases in m^2 / v.
        alive: from `directions.liveness`; what is read off a gradient of rounding noise counts as 0.
    """
    columns = []
    for w, m, v, c, a in zip(weight, momentum, second, correction.unbind(0), alive.unbind(0), strict=True):
        for side in ("rows", "cols"):
            w_side, m_side, v_side = getattr(w, side), getattr(m, side), getattr(v, side)
            if w_side is not None:
                signal = _log_ratio(m_side.flatten(), v_side.flatten()) + 0.5 * c
                columns.append(
                    torch.stack(
                        [
                            _bounded(_log_ratio(w_side.flatten(), w.total)),
                            a * _bounded(_log_ratio(m_side.flatten(), m.total)),
                            a * _bounded(_log_ratio(v_side.flatten(), v.total)),
                            a * _bounded(signal),
                        ],
                        dim=-1,
                    )
                )
    return torch.cat(columns)


def tensor_features(
    weight: list[Pooled],
    momentum: list[Pooled],
    second: list[Pooled],
    agreement: list[Float[Tensor, ""]],
    correction: Float[Tensor, " tensors"],
    alive: Float[Tensor, " tensors"],
    step: Float[Tensor, " tensors"],
    progress: Float[Tensor, ""],
    weight_unit: Float[Tensor, " tensors"],
    static: Float[Tensor, "tensors 8"],
) -> Float[Tensor, "tensors 17"]:
    """Return the features named in TENSOR_FEATURES.

    Args:
        weight: pooled squares of the weights, one per tensor.
        momentum: pooled squares of the slow momentum.
        second: pooled second moment.
        agreement: cosine between the fast and the slow momentum.
        correction: log of the factor that corrects both biases in m^2 / v.
        alive: from `directions.liveness`; what is read off a gradient of rounding noise counts as 0.
        step: steps taken, this one included.
        progress: share of the training done, in (0, 1].
        weight_unit: the weights' usual RMS: 1 / sqrt(fan-in) for matrices and kernels, 1 for the rest.
        static: from `static_features`.
    """
    w = torch.stack([p.total for p in weight])
    m = torch.stack([p.total for p in momentum])
    v = torch.stack([p.total for p in second])
    row_evenness = torch.stack([_evenness(p.rows) for p in momentum])
    column_evenness = torch.stack([_evenness(p.rows if p.cols is None else p.cols) for p in momentum])
    wide = torch.ones_like(w)
    dynamic = torch.stack(
        [
            _bounded(_log_ratio(w, weight_unit.square())),
            alive * _bounded(_log_ratio(m, v) + 0.5 * correction),
            alive * torch.stack(agreement),
            alive * row_evenness,
            alive * column_evenness,
            torch.log1p(step) / 4 - 1,
            (2 * progress - 1) * wide,
            torch.exp(-progress / 0.05) * wide,
            torch.exp((progress - 1) / 0.1) * wide,
        ],
        dim=-1,
    )
    return torch.cat([dynamic, static], dim=-1)


def bias_correction(step: Float[Tensor, " tensors"], rates: MomentumRates) -> Float[Tensor, " tensors"]:
    """Return log of the factor that turns slow^2 / second into the ratio of the unbiased averages."""
    return torch.log1p(-(rates.second**step)) - 2 * torch.log1p(-(rates.slow**step))


def cosine(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return the cosine between two tensors, 0 when either is zero."""
    first_norm, second_norm = first.square().mean().sqrt(), second.square().mean().sqrt()
    return (first * second).mean() / (first_norm * second_norm).clamp(min=TINY)


def _log_ratio(square: Float[Tensor, "..."], unit: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half the log of a ratio of mean squares; 0 where both vanish."""
    return 0.5 * ((square + TINY).log() - (unit + TINY).log())


def _bounded(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return value.clamp(-4.0, 4.0) / 2


def _evenness(squares: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Share of the entries that carry the squares: 1 when all are equal, 1/n when one has everything."""
    relative = squares / squares.mean().clamp(min=TINY)
    return 1.0 / relative.square().mean().clamp(min=1.0)


def _atom_names(axes: tuple[Axis, ...], dims: tuple[int, ...]) -> list[str]:
    return [atom.name for d in dims for atom in atoms_of(axes[d])]
