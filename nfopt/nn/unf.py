"""UNFLinear: the orbit basis of any spec, one basis map after the other, as the textbook has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.nn.layout import LayoutBlock, WeightLayout, check_channels
from nfopt.nn.orbits import Group, set_partitions


@dataclass(frozen=True)
class BasisMap:
    """One basis map from a block to a block, or to a block from nothing (a constant).

    Attributes:
        source: position of the block read, or -1.
        target: position of the block written.
        parts: the partition: positions 0 .. q - 1 are the target's, q .. q + p - 1 the source's.
    """

    source: int
    target: int
    parts: tuple[Group, ...]


class UNFLinear(nn.Module):
    """Every affine map that follows the permutations of any spec (arXiv 2402.05232).

        Y_l = sum_m sum_P E_P(X_m) Theta_P + sum_Q E_Q(1) b_Q

    over the partitions P of the positions of l and m together, and Q of those of l: the letters of einsum.
    Repeated groups (recurrent matrices) and atoms with few indices included. It materialises every E_P(X_m)
    at the full size of Y_l: right before fast. `DWSLinear` (inputs and outputs folded) and `NPLinear`
    (permuted) span the same maps quickly. The released UNF makes its basis anew in every call, and has
    neither pooling nor encodings.

    Args:
        layout: the architecture; its fixed axes that are folded count as channels.
        in_channels: channels per element read.
        out_channels: channels per element written.
        bias: whether to add the constants.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number of channels is not positive.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_channels(layout, in_channels=in_channels, out_channels=out_channels)
        self.layout, self.in_channels, self.out_channels = layout, in_channels, out_channels
        self.basis = [element for element in orbit_basis(layout) if bias or element.source >= 0]
        terms = [sum(e.source >= 0 and e.target == b for e in self.basis) for b in range(len(layout.blocks))]
        self.weights = nn.ParameterList()
        for element in self.basis:
            columns = layout.blocks[element.target].multiplicity * out_channels
            if element.source < 0:
                self.weights.append(nn.Parameter(torch.zeros(1, columns)))
                continue
            rows = layout.blocks[element.source].multiplicity * in_channels
            std = (rows * terms[element.target]) ** -0.5
            self.weights.append(nn.Parameter(torch.randn(rows, columns, generator=generator) * std))

    @property
    def free_parameters(self) -> int:
        """Number of parameters, all of them free."""
        return sum(weight.numel() for weight in self.weights)

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Apply the layer to the values of a layout.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.in_channels)
        blocks = self.layout.blocks
        outputs = [
            given.new_zeros(*given.shape[:-1], block.multiplicity * self.out_channels)
            for given, block in zip(values, blocks, strict=True)
        ]
        for element, weight in zip(self.basis, self.weights, strict=True):
            source = blocks[element.source] if element.source >= 0 else None
            given = values[element.source] if element.source >= 0 else weight.new_ones(1)
            expanded = apply_basis_map(given, element.parts, blocks[element.target], source)
            outputs[element.target] = outputs[element.target] + expanded @ weight
        return outputs


def orbit_basis(layout: WeightLayout) -> Iterator[BasisMap]:
    """Yield the orbit basis of a layout: for each pair of blocks the linear maps, and the constants."""
    for target, written in enumerate(layout.blocks):
        for source, read in enumerate(layout.blocks):
            for parts in _partitions(written.atoms + read.atoms, written.shape + read.shape):
                yield BasisMap(source, target, parts)
        for parts in _partitions(written.atoms, written.shape):
            yield BasisMap(-1, target, parts)


def _partitions(atoms: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[Group, ...]]:
    choices = []
    for atom in dict.fromkeys(atoms):
        positions = [i for i, name in enumerate(atoms) if name == atom]
        # More parts than the atom has indices: no index pair is of that kind.
        size = sizes[positions[0]]
        choices.append([parts for parts in set_partitions(positions) if len(parts) <= size])
    for choice in product(*choices):
        yield tuple(part for parts in choice for part in parts)


def apply_basis_map(
    values: Float[Tensor, "..."],
    parts: Sequence[Group],
    target: LayoutBlock,
    source: LayoutBlock | None,
) -> Float[Tensor, "..."]:
    """Return E_P(values): [*batch, *source sizes, c] to [*batch, *target sizes, c].

    With one letter per part: letters of the source alone are averaged over, those of the target alone are
    expanded, and where a part holds several positions of the target the result is zero off their diagonal.
    """
    outside = len(target.shape)
    sizes = target.shape + (source.shape if source else ())
    letters = {}
    for i, part in enumerate(parts):
        for position in part:
            letters[position] = chr(ord("a") + i)
    inputs = [f"...{''.join(letters[p] for p in range(outside, len(sizes)))}Z"]
    operands = [values]
    written = [chr(ord("A") + position) for position in range(outside)]
    count = 1
    for part in parts:
        letter = letters[part[0]]
        inside = [p for p in part if p >= outside]
        copies = [p for p in part if p < outside]
        if not copies:
            count *= sizes[part[0]]
        if copies and not inside:
            inputs.append(letter)
            operands.append(values.new_ones(sizes[part[0]]))
        for position in copies:
            inputs.append(letter + written[position])
            operands.append(torch.eye(sizes[position], dtype=values.dtype, device=values.device))
    return torch.einsum(f"{','.join(inputs)}->...{''.join(written)}Z", *operands) / count
