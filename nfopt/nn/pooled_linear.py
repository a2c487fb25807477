"""PooledLinear: every affine map that follows a layout's permutations, mixed at pooled resolutions.

    Y_l = sum over resolutions K of write_l( [read_K of every block] Theta_K + b )

Each block is read once per resolution, everything read at a resolution is mixed by one matrix Theta_K, and
the results are added by broadcasting. In place of a loop over pairs of tensors and over basis elements there
is one matrix product per resolution: for an MLP of L layers 2 L - 2 of them, with O(parameters x c^2) work.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.errors import unknown_name
from nfopt.nn.layout import WeightLayout, check_channels
from nfopt.nn.orbits import Reading, Resolution, Writing, parts_fit, resolutions
from nfopt.nn.resolution import Reduction, add_up, compile_reader, write

Pairs = Callable[[int, int], bool]


class PooledLinear(nn.Module):
    """Base of the linear layers of one spec; `DWSLinear`, `HNPLinear` and `NPLinear` are what to use.

    Weights are drawn so that inputs of unit variance give outputs of about unit variance, whatever the
    widths: means have the smaller a variance the more is averaged, so what is read without averaging gets
    half of the output's variance, and all means together the other half. Biases begin at zero.

    Args:
        layout: the architecture.
        in_channels: channels c per element read.
        out_channels: channels c' per element written.
        reduction: "mean", or "max" in its place: still equivariant, no longer linear.
        bias: whether to add the constant maps.
        pairs: whether block number l may hear of block number m, as pairs(m, l); all may by default.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number of channels is not positive, or there is no block.
        UnknownNameError: there is no such reduction.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        reduction: Reduction = "mean",
        bias: bool = True,
        pairs: Pairs | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_channels(layout, in_channels=in_channels, out_channels=out_channels)
        if reduction not in get_args(Reduction):
            raise unknown_name("reduction", reduction, get_args(Reduction))
        self.layout = layout
        self.reduction: Reduction = reduction
        self.in_channels, self.out_channels = in_channels, out_channels
        self._resolutions = [r for r in (_selected(r, pairs) for r in resolutions(layout)) if r is not None]
        by_block: list[list[tuple[int, int]]] = [[] for _ in layout.blocks]
        for k, resolution in enumerate(self._resolutions):
            for i, reading in enumerate(resolution.readings):
                by_block[reading.block].append((k, i))
        self._places = by_block
        self._readers = [
            compile_reader(block, [self._resolutions[k].readings[i] for k, i in places])
            for block, places in zip(layout.blocks, by_block, strict=True)
        ]
        shares = _variance_shares(self._resolutions)
        self.weights = nn.ParameterList()
        self._masked: list[str | None] = []
        for k, resolution in enumerate(self._resolutions):
            self.weights.append(nn.Parameter(self._draw(resolution, shares[k], generator)))
            self._masked.append(self._register_mask(k, resolution))
        self._writings = constant_writings(layout) if bias else []
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(layout.blocks[writing.block].multiplicity * out_channels))
            for writing in self._writings
        )

    @property
    def free_parameters(self) -> int:
        """Number of parameters that are free: all but the entries of `weights` that small atoms mask out."""
        weights = sum(
            weight.numel() if name is None else int(getattr(self, name).count_nonzero())
            for weight, name in zip(self.weights, self._masked, strict=True)
        )
        return weights + sum(bias.numel() for bias in self.biases)

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Apply the layer.

        Args:
            values: per block [*batch, *kept sizes, multiplicity x in_channels], as from `layout.enter`.

        Returns:
            Per block [*batch, *kept sizes, multiplicity x out_channels].

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.in_channels)
        blocks = self.layout.blocks
        terms: list[list[Tensor]] = [[] for _ in blocks]
        for resolution, table, weight, name in zip(
            self._resolutions, self._read(values), self.weights, self._masked, strict=True
        ):
            mixed = table @ (weight if name is None else weight * getattr(self, name))
            widths = [blocks[w.block].multiplicity * self.out_channels for w in resolution.writings]
            for writing, part in zip(resolution.writings, mixed.split(widths, dim=-1), strict=True):
                terms[writing.block].append(write(part, blocks[writing.block], writing))
        for writing, bias in zip(self._writings, self.biases, strict=True):
            terms[writing.block].append(write(bias, blocks[writing.block], writing))
        outputs = []
        for given, block, parts in zip(values, blocks, terms, strict=True):
            shape = (*given.shape[:-1], block.multiplicity * self.out_channels)
            outputs.append(add_up(parts, shape) if parts else given.new_zeros(shape))
        return outputs

    def _read(self, values: Sequence[Tensor]) -> Iterator[Tensor]:
        """Return for each resolution everything that is read there, side by side in the channels."""
        tables: list[list[Tensor | None]] = [[None] * len(r.readings) for r in self._resolutions]
        for given, reader, places in zip(values, self._readers, self._places, strict=True):
            for (k, i), table in zip(places, reader(given, self.reduction), strict=True):
                tables[k][i] = table
        for row in tables:
            found = [table for table in row if table is not None]
            yield found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _widths(self, terms: Sequence[Reading] | Sequence[Writing], channels: int) -> torch.Tensor:
        return torch.tensor([self.layout.blocks[t.block].multiplicity * channels for t in terms])

    def _draw(self, resolution: Resolution, share: Tensor, generator: torch.Generator | None) -> Tensor:
        rows = self._widths(resolution.readings, self.in_channels)
        columns = self._widths(resolution.writings, self.out_channels)
        std = (share / rows[:, None]).sqrt()
        std = std.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return torch.randn(std.shape, generator=generator) * std.to(torch.get_default_dtype())

    def _register_mask(self, k: int, resolution: Resolution) -> str | None:
        allowed = torch.tensor(resolution.allowed)
        if bool(allowed.all()):
            return None
        mask = allowed.repeat_interleave(self._widths(resolution.readings, self.in_channels), 0)
        mask = mask.repeat_interleave(self._widths(resolution.writings, self.out_channels), 1)
        self.register_buffer(f"_mask{k}", mask, persistent=False)
        return f"_mask{k}"

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return (
            f"{len(self.layout.blocks)} blocks, {self.in_channels} -> {self.out_channels} channels, "
            f"{len(self._resolutions)} resolutions, {self.free_parameters} free parameters"
        )


def constant_writings(layout: WeightLayout) -> list[Writing]:
    """Return the constant maps of a layout: the ways to write one number into each block."""
    coarsest = resolutions(layout)[0]
    found = []
    for writing in coarsest.writings:
        atoms = layout.blocks[writing.block].atoms
        if parts_fit(layout, [atoms[group[0]] for group in writing.constant]):
            found.append(writing)
    return found


def _selected(resolution: Resolution, pairs: Pairs | None) -> Resolution | None:
    """Return the part of a resolution whose basis elements exist and whose pairs of blocks are wanted."""
    allowed = [
        [
            fits and (pairs is None or pairs(reading.block, writing.block))
            for fits, writing in zip(row, resolution.writings, strict=True)
        ]
        for row, reading in zip(resolution.allowed, resolution.readings, strict=True)
    ]
    rows = [i for i, row in enumerate(allowed) if any(row)]
    columns = [j for j in range(len(resolution.writings)) if any(row[j] for row in allowed)]
    if not rows:
        return None
    return Resolution(
        resolution.atoms,
        tuple(resolution.readings[i] for i in rows),
        tuple(resolution.writings[j] for j in columns),
        tuple(tuple(allowed[i][j] for j in columns) for i in rows),
    )


def _variance_shares(chosen: Sequence[Resolution]) -> list[Tensor]:
    """Return for each resolution [readings, writings] the share of the output's variance of each element."""
    whole: dict[int, int] = {}
    pooled: dict[int, int] = {}
    for resolution in chosen:
        for reading, row in zip(resolution.readings, resolution.allowed, strict=True):
            for writing, allowed in zip(resolution.writings, row, strict=True):
                counts = pooled if reading.averaged else whole
                counts[writing.block] = counts.get(writing.block, 0) + int(allowed)
    found = []
    for resolution in chosen:
        share = torch.zeros(len(resolution.readings), len(resolution.writings), dtype=torch.float64)
        for i, reading in enumerate(resolution.readings):
            for j, writing in enumerate(resolution.writings):
                mine, other = (pooled, whole) if reading.averaged else (whole, pooled)
                half = 0.5 if other.get(writing.block) else 1.0
                if resolution.allowed[i][j]:
                    share[i, j] = half / mine[writing.block]
        found.append(share)
    return found
