"""Observations: what the learned rule sees of each row, column and tensor, free of scale where it can be.

Tensors may have leading dimensions, in which copies of the model lie side by side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.nn.tokens import mean_into
from nfopt.optim.directions import TINY, MomentumRates, total_mean
from nfopt.optim.moments import StepNumbers
from nfopt.symmetry import Axis, PermutationSpec
from nfopt.symmetry.axes import atoms_of
from nfopt.weightspace.incidence import Incidence, MatrixLayout

MOST_STEPS = 2000.0
SMALLEST_SQUARE = 1e-37  # keeps a root's derivative finite
ENTRY_FEATURES = ("weight", "momentum", "signal")
TENSOR_FEATURES = (
    "weight_scale",
    "signal",
    "agreement",
    "decline",
    "row_evenness",
    "column_evenness",
    "age",
    "horizon",
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
    """Mean squares of one quantity of every tensor.

    Attributes:
        entries: rows and columns of all tensors in the incidence's order, averaged over the rest.
        totals: averaged over each whole tensor.
    """

    entries: Float[Tensor, "*batch entries"]
    totals: Float[Tensor, "*batch tensors"]


def pool(tensors: Iterable[Float[Tensor, "..."]], layouts: tuple[MatrixLayout, ...]) -> Pooled:
    """Average the squares of every tensor over rows, columns and everything."""
    pieces: list[Tensor] = []
    totals: list[Tensor] = []
    for tensor, layout in zip(tensors, layouts, strict=True):
        dims, square = len(layout.shape), tensor.square()
        batch = square.shape[: square.dim() - dims]
        rows = _mean_but(square, layout.out_dims, dims)
        totals.append(total_mean(rows, dims))
        pieces.append(rows.reshape(*batch, layout.out_size))
        if layout.in_dims:
            pieces.append(_mean_but(square, layout.in_dims, dims).reshape(*batch, layout.in_size))
    return Pooled(torch.cat(pieces, dim=-1), torch.stack(totals, dim=-1))


def joined(parts: Sequence[Pooled]) -> Pooled:
    """Return the statistics of several sets of tensors as those of one."""
    return Pooled(
        torch.cat([part.entries for part in parts], dim=-1),
        torch.cat([part.totals for part in parts], dim=-1),
    )


def _mean_but(tensor: Float[Tensor, "..."], kept: tuple[int, ...], dims: int) -> Float[Tensor, "..."]:
    """Average over all dimensions but the kept; first over those before them, which is contiguous work."""
    averaged = [d for d in range(dims) if d not in kept]
    before = [d - dims for d in averaged if d < min(kept, default=0)]
    after = [d - dims for d in averaged if d - dims not in before]
    for group in (before, after):
        tensor = tensor.mean(dim=group, keepdim=True) if group else tensor
    return tensor


def static_features(
    spec: PermutationSpec, incidence: Incidence, matrices: frozenset[str]
) -> Float[Tensor, "tensors 8"]:
    """Return the tensor features that never change: from "depth" to "one" in TENSOR_FEATURES."""
    table = []
    for name, layout in zip(incidence.names, incidence.layouts, strict=True):
        entry = spec.tensors[spec.aliases.get(name, name)]
        fixed_in = [spec.fixed.get(atom, "") for atom in _atom_names(entry.axes, layout.in_dims)]
        fixed_out = [spec.fixed.get(atom, "") for atom in _atom_names(entry.axes, layout.out_dims)]
        table.append(
            [
                2 * entry.depth - 1,
                log(max(layout.in_size * layout.rest_size, 1)) / 4 - 1,
                log(max(layout.out_size, 1)) / 4 - 1,
                float(name in matrices),
                float(layout.rest_size > 1),
                float(name in matrices and _says(fixed_in, "model input")),
                float(_says(fixed_out, "model output")),
                1.0,
            ]
        )
    return torch.tensor(table, dtype=torch.float64).reshape(len(incidence.names), 8)


@dataclass(frozen=True)
class Pools:
    """Statistics of whole tensors, as the rule observes them.

    Attributes:
        weight: mean squares of the weights.
        slow: mean squares of the slow momentum.
        fast: mean squares of the fast momentum.
        agreement: cosine between the fast and the slow momentum.
    """

    weight: Pooled
    slow: Pooled
    fast: Pooled
    agreement: Float[Tensor, "*batch tensors"]


@dataclass(frozen=True)
class Observed:
    """What a step has measured, from which the features are made.

    Attributes:
        pools: statistics of the weights and of the momenta.
        alive: from `directions.liveness`; what is read off a gradient of rounding noise counts as 0.
        numbers: the step's, per tensor.
        progress: share of the training done, in (0, 1].
    """

    pools: Pools
    alive: Float[Tensor, "*batch tensors"]
    numbers: StepNumbers
    progress: Float[Tensor, ""]

    @property
    def step(self) -> Float[Tensor, "*batch tensors"]:
        """Steps taken, this one included."""
        return self.numbers.step

    @property
    def decline(self) -> Float[Tensor, "*batch tensors"]:
        """Power of the gradient as a share of its largest so far."""
        return self.numbers.power / self.numbers.peak.clamp(min=TINY)


def features(
    seen: Observed,
    incidence: Incidence,
    rates: MomentumRates,
    weight_unit: Float[Tensor, " tensors"],
    static: Float[Tensor, "tensors 8"],
) -> tuple[Float[Tensor, "*batch entries 3"], Float[Tensor, "*batch tensors 19"]]:
    """Return the features named in ENTRY_FEATURES and TENSOR_FEATURES.

    Args:
        seen: the step's measurements.
        incidence: entries, tokens and tensors.
        rates: the momenta's decay rates.
        weight_unit: the weights' usual RMS: 1 / sqrt(fan-in) for matrices and kernels, 1 for the rest.
        static: from `static_features`.
    """
    # What turns slow / fast into the ratio of the unbiased averages, as a log. Where gradients are all signal
    # the momenta are equal; where they are all noise the slower one averages it away.
    correction = torch.log1p(-(rates.fast**seen.step)) - torch.log1p(-(rates.slow**seen.step))
    of = incidence.entry_tensor

    def relative(pooled: Pooled) -> Tensor:
        return _bounded(_log_ratio(pooled.entries, pooled.totals.index_select(-1, of)))

    alive = seen.alive.index_select(-1, of)
    signal = _log_ratio(seen.pools.slow.entries, seen.pools.fast.entries) + correction.index_select(-1, of)
    entries = torch.stack(
        [relative(seen.pools.weight), alive * relative(seen.pools.slow), alive * _bounded(signal)], dim=-1
    )
    evenness = _evenness(seen.pools.slow, incidence)
    wide = torch.ones_like(seen.alive)
    dynamic = torch.stack(
        [
            _bounded(_log_ratio(seen.pools.weight.totals, weight_unit.square())),
            seen.alive * _bounded(_log_ratio(seen.pools.slow.totals, seen.pools.fast.totals) + correction),
            seen.alive * seen.pools.agreement,
            seen.alive * _bounded(_log_ratio(seen.decline, wide)),
            seen.alive * evenness[..., 0],
            seen.alive * evenness[..., 1],
            _log_steps(seen.step),
            _log_steps(seen.step / seen.progress),
            (2 * seen.progress - 1) * wide,
            torch.exp(-seen.progress / 0.05) * wide,
            torch.exp((seen.progress - 1) / 0.1) * wide,
        ],
        dim=-1,
    )
    return entries, torch.cat([dynamic, static.expand(*dynamic.shape[:-1], -1)], dim=-1)


def mean_products(
    first: Iterable[Tensor], second: Iterable[Tensor], layouts: tuple[MatrixLayout, ...]
) -> Float[Tensor, "*batch tensors"]:
    """Return the mean of the products of the elements of two lists of tensors, pair by pair."""
    found = []
    for a, b, layout in zip(first, second, layouts, strict=True):
        dims = len(layout.shape)
        a, b = (a.flatten(-dims), b.flatten(-dims)) if dims else (a[..., None], b[..., None])
        found.append(torch.linalg.vecdot(a, b) / a.shape[-1])
    return torch.stack(found, dim=-1)


def mean_squares(
    tensors: Iterable[Tensor], layouts: tuple[MatrixLayout, ...], work: torch.dtype
) -> Float[Tensor, "*batch tensors"]:
    """Return the mean of the squares of the elements of each tensor, summed in the dtype `work`."""
    found = []
    for tensor, layout in zip(tensors, layouts, strict=True):
        dims = len(layout.shape)
        flat = tensor if dims == 1 else tensor.flatten(-dims) if dims else tensor[..., None]
        if tensor.dtype == work:
            square = torch.dot(flat, flat) if flat.dim() == 1 else torch.linalg.vecdot(flat, flat)
        else:  # cast on the way: no copy is kept
            square = torch.linalg.vector_norm(flat, dim=-1, dtype=work).square()
        found.append(square / flat.shape[-1])
    return torch.stack(found, dim=-1)


def cosines(
    product: Float[Tensor, "*batch tensors"], first: Float[Tensor, "..."], second: Float[Tensor, "..."]
) -> Float[Tensor, "*batch tensors"]:
    """Return the cosine of two tensors from the means of their product and of their squares; 0 for zeros."""
    norms = [square.clamp(min=SMALLEST_SQUARE).sqrt() for square in (first, second)]
    return product / (norms[0] * norms[1]).clamp(min=TINY)


def _log_ratio(square: Float[Tensor, "..."], unit: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half the log of a ratio of mean squares; 0 where both vanish."""
    return 0.5 * ((square + TINY).log() - (unit + TINY).log())


def _log_steps(steps: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log of a number of steps, cut where meta-training no longer reaches."""
    return torch.log1p(steps.clamp(max=MOST_STEPS)) / 4 - 1


def _bounded(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return value.clamp(-4.0, 4.0) / 2


def _evenness(pooled: Pooled, incidence: Incidence) -> Float[Tensor, "*batch tensors 2"]:
    """Share of the rows, and of the columns, that carry the squares: 1 when all are equal, 1/n for one."""
    unit = pooled.totals.index_select(-1, incidence.entry_tensor).clamp(min=TINY)
    relative = (pooled.entries / unit).square()[..., None]
    spread = mean_into(relative, incidence.entry_pool, incidence.pool_degree)
    return 1.0 / spread.clamp(min=1.0).unflatten(-2, (len(incidence.names), 2))[..., 0]


def _says(reasons: Sequence[str], what: str) -> bool:
    """Whether one of the reasons why atoms are fixed is `what`, with or without a name behind it."""
    return any(reason.startswith(what) for reason in reasons)


def _atom_names(axes: tuple[Axis, ...], dims: tuple[int, ...]) -> list[str]:
    return [atom.name for d in dims for atom in atoms_of(axes[d])]
