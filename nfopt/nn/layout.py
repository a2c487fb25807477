"""WeightLayout: the blocks of one architecture as arrays over interchangeable neurons, the rest as channels.

A layer that belongs to one spec needs no equivariance over fixed indices. So every fixed dimension of a block
(input pixels, classes, kernel positions, gates) is folded into its channels, as "Permutation Equivariant
Neural Functionals" (Zhou et al. 2023) does with the positions of a convolution's kernel:
[*batch, n_1, ..., n_d, c] becomes [*batch, sizes that are permuted, positions x c].
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from jaxtyping import Float
from torch import Tensor

from nfopt.errors import NfoptError, unknown_name
from nfopt.symmetry.spec import PermutationSpec
from nfopt.weightspace import Block, BlockPlan, block_plan


class LayoutError(NfoptError):
    """Values, nets or options do not fit the architecture that a layer was made for."""


@dataclass(frozen=True, slots=True)
class LayoutBlock:
    """One block, its dimensions split into those that are permuted and those that are channels.

    Attributes:
        block: the block.
        kept: positions of the dimensions that are permuted, ascending.
        folded: positions of the others, ascending.
        atoms: names of the atoms of the kept dimensions.
        shape: sizes of the kept dimensions.
        multiplicity: number of folded positions: how many channels one channel becomes.
    """

    block: Block
    kept: tuple[int, ...]
    folded: tuple[int, ...]
    atoms: tuple[str, ...]
    shape: tuple[int, ...]
    multiplicity: int


@dataclass(frozen=True)
class WeightLayout:
    """How a plan's blocks are held by the layers of one architecture; `weight_layout` makes it.

    Values of a layout are one tensor per block, [*batch, *kept sizes, multiplicity x channels], the channels
    of one folded position next to each other. Leading batch dimensions run over nets.

    Attributes:
        plan: the blocks.
        permuted: names of the atoms whose dimensions are kept.
        blocks: the layout of each block of the plan.
    """

    plan: BlockPlan
    permuted: frozenset[str]
    blocks: tuple[LayoutBlock, ...]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of every kept atom by name, in the order of first occurrence."""
        return {a: n for block in self.blocks for a, n in zip(block.atoms, block.shape, strict=True)}

    def enter(
        self, tensors: Mapping[str, Float[Tensor, "..."]], *, channels: bool = False
    ) -> list[Float[Tensor, "..."]]:
        """Return the values of the nets whose tensors are given.

        Args:
            tensors: by name, [*batch, *shape] or with `channels` [*batch, *shape, channels].
            channels: whether the tensors have a trailing channel dimension.

        Raises:
            PermutationSpecError: a name or shape is not the spec's, or batch dimensions differ.
            LayoutError: numbers of channels differ.
        """
        blocks = self.plan.to_blocks(tensors, channels=channels)
        counts = {values.shape[-1] for values in blocks}
        if len(counts) > 1:
            raise LayoutError(f"the tensors have different numbers of channels, {sorted(counts)}.")
        return [fold(values, block) for values, block in zip(blocks, self.blocks, strict=True)]

    def leave(
        self, values: Sequence[Float[Tensor, "..."]], *, channels: bool = False
    ) -> dict[str, Float[Tensor, "..."]]:
        """Return the tensors of values by name: the exact inverse of `enter`.

        Args:
            values: as from `enter`.
            channels: whether to keep the channel dimension; without it there must be one channel.

        Raises:
            LayoutError: the values do not fit the layout.
            PermutationSpecError: there is more than one channel, and no `channels`.
        """
        self.check(values)
        blocks = [unfold(each, block) for each, block in zip(values, self.blocks, strict=True)]
        return self.plan.from_blocks(blocks, channels=channels)

    def check(self, values: Sequence[Tensor], channels: int | None = None) -> None:
        """Check that values have the layout's shapes and, if given, so many channels.

        Raises:
            LayoutError: they do not; the message names the first block that does not fit.
        """
        if len(values) != len(self.blocks):
            raise LayoutError(
                f"this layer is made for the {len(self.blocks)} blocks of its spec, but {len(values)} were "
                "given. Were they made by the layout of another spec, or of other tensors?"
            )
        batch: tuple[int, ...] | None = None
        for given, block in zip(values, self.blocks, strict=True):
            leading = given.ndim - 1 - len(block.kept)
            width = given.shape[-1] if given.ndim else 0
            fits = leading >= 0 and tuple(given.shape[leading:-1]) == block.shape
            fits = fits and width % block.multiplicity == 0
            if fits and channels is not None:
                fits = width == channels * block.multiplicity
            if not fits:
                count = "channels" if channels is None else channels
                expected = ["*batch", *map(str, block.shape), f"{block.multiplicity} x {count}"]
                raise LayoutError(
                    f"values of shape {tuple(given.shape)} do not fit block {block.block}: expected "
                    f"[{', '.join(expected)}]. Make them with the `enter` of this layer's layout."
                )
            here = tuple(given.shape[:leading])
            batch = here if batch is None else batch
            if here != batch:
                raise LayoutError(f"block {block.block} has the batch dimensions {here}, others {batch}.")


def weight_layout(
    spec: PermutationSpec,
    names: Iterable[str] | None = None,
    *,
    permute_io: bool = False,
    also_permuted: Iterable[str] = (),
) -> WeightLayout:
    """Return the layout of the tensors `names` of a spec (default: all).

    Args:
        spec: the permutation spec.
        names: tensors that the layers read and write.
        permute_io: whether inputs and outputs of the model count as interchangeable too (`io_atoms`), which
            ties the weights of a layer over them; position encodings tell them apart again (NFN's NP).
        also_permuted: names of further fixed atoms to treat so.

    Raises:
        PermutationSpecError: the spec has no tensor of one of the names.
        UnknownNameError: the tensors have no atom of one of `also_permuted`.
    """
    plan = block_plan(spec, names)
    more = tuple(also_permuted)
    for name in more:
        if name not in plan.atoms:
            raise unknown_name("atom", name, plan.atoms)
    permuted = {name for name in plan.atoms if name not in plan.fixed} | set(more)
    chosen = frozenset(permuted | (io_atoms(plan) if permute_io else set()))
    return WeightLayout(plan, chosen, tuple(_split(block, chosen) for block in plan.blocks))


def _split(block: Block, permuted: frozenset[str]) -> LayoutBlock:
    kept = tuple(i for i, dim in enumerate(block.dims) if dim.atom in permuted and dim.size != 1)
    folded = tuple(i for i in range(len(block.dims)) if i not in kept)
    return LayoutBlock(
        block,
        kept,
        folded,
        atoms=tuple(block.dims[i].atom for i in kept),
        shape=tuple(block.dims[i].size for i in kept),
        multiplicity=prod(block.dims[i].size for i in folded),
    )


def check_channels(layout: WeightLayout, **counts: int) -> None:
    """Check that there is something to read and that numbers of channels are positive; raises LayoutError."""
    if not layout.blocks:
        raise LayoutError("the layout has no block: there is nothing to read.")
    for name, count in counts.items():
        if not count >= 1:
            raise LayoutError(f"{name} is {count!r}; it must be 1 or more.")


def io_atoms(plan: BlockPlan) -> set[str]:
    """Return the fixed atoms of inputs and outputs: alone on their tensor dimension, never a kernel's."""
    candidates, excluded = set(), set()
    for block in plan.blocks:
        shared = [dim.tensor_dim for dim in block.dims]
        for dim in block.dims:
            if dim.atom not in plan.fixed:
                continue
            alone = shared.count(dim.tensor_dim) == 1
            (candidates if alone and dim.role in ("in", "out") else excluded).add(dim.atom)
    return candidates - excluded


def fold(values: Float[Tensor, "..."], block: LayoutBlock) -> Float[Tensor, "..."]:
    """Move the folded dimensions of [*batch, n_1, ..., n_d, channels] into the channels."""
    if not block.folded:
        return values
    batch = values.ndim - 1 - len(block.block.dims)
    order = [*range(batch), *(batch + p for p in block.kept + block.folded), values.ndim - 1]
    return values.permute(order).flatten(batch + len(block.kept))


def unfold(values: Float[Tensor, "..."], block: LayoutBlock) -> Float[Tensor, "..."]:
    """Undo `fold`."""
    if not block.folded:
        return values
    batch = values.ndim - 1 - len(block.kept)
    sizes = [block.block.dims[p].size for p in block.folded]
    opened = values.unflatten(-1, [*sizes, values.shape[-1] // block.multiplicity])
    place = {p: batch + i for i, p in enumerate(block.kept + block.folded)}
    order = [*range(batch), *(place[p] for p in range(len(place))), opened.ndim - 1]
    return opened.permute(order)
