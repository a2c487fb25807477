"""RoleTiedLayer: one exchange between tensors' elements, neurons' tokens and tensors' tokens."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.nn.roles import DIM_ROLES, ROLES, GatedMLP, RoleLinear, dim_index, gate, normalise, role_index
from nfopt.weightspace import Block, BlockPlan, broadcast_back, pool, pooled_moments

_ORDINALS = 4  # dimensions of one role that are told apart: kernel height from kernel width
_CHUNK = 2**15  # elements at a time: temporaries stay in the processor's cache

Context: TypeAlias = tuple[tuple[int, ...], int]
"""Positions of a block that are pooled together for its own elements, and the kind of their weights."""
_FILTER = len(DIM_ROLES)  # the kind of the context of all but the kernel positions


class RoleTiedLayer(nn.Module):
    """Pool elements onto tokens, update the tokens, and broadcast them back, with weights shared by role.

    With elements h of a block of role r, tokens t of its atoms a and a token u of the block, M mean and root
    mean square over the other dimensions:

        m_a = mean over the occurrences of a in the model:  M_d(h) P_{r,d} + u Q_d + o_d  (+ diagonal)
        t  <- t + MLP [t, m],   u <- u + MLP [u, M(h) R_r, mean over blocks of u]
        h  <- h + gate(h A_r + u B_r + sum over dimensions d of (t_d * n_d) C_{r,d} + M_context(h) D_r) E_r

    Means, not sums, and every map scaled by its fan-in: the scale does not depend on width. The contexts are
    the joint tables that tokens cannot hold: each dimension flattened from several atoms, the kernel (its
    positions jointly), and the filters (all dimensions but the kernel's). Repeated atoms have their
    diagonal pooled apart and marked among the elements. o_d and n_d tell dimensions of one role apart
    (kernel height from width).

    Args:
        channels: channels c of a token.
        element_channels: channels e of an element.
        update_elements: False for a last layer whose elements nobody reads.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        channels: int,
        element_channels: int,
        *,
        update_elements: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        c, e, pairs = channels, element_channels, len(ROLES) * len(DIM_ROLES)
        self.dim_message = RoleLinear(pairs, 2 * e, c, generator)
        self.diagonal_message = RoleLinear(len(ROLES), 2 * e, c, generator)
        self.tensor_message = RoleLinear(len(ROLES), 2 * e, c, generator)
        self.tensor_to_token = RoleLinear(len(DIM_ROLES), c, c, generator)
        self.ordinal = nn.Parameter(torch.randn(len(DIM_ROLES), _ORDINALS, c, generator=generator))
        self.token_update = GatedMLP(2 * c, 2 * c, c, generator)
        self.tensor_update = GatedMLP(3 * c, 2 * c, c, generator)
        self.update_elements = update_elements
        if update_elements:
            self.from_element = RoleLinear(len(ROLES), e, 2 * e, generator)
            self.from_tensor = RoleLinear(len(ROLES), c, 2 * e, generator)
            self.from_token = RoleLinear(pairs, c, 2 * e, generator)
            self.from_context = RoleLinear(len(ROLES) * (_FILTER + 1), 2 * e, 2 * e, generator)
            # A gain, not an offset: else (i, j) and (j, i) of one atom under one role would stay alike.
            spread = torch.randn(len(DIM_ROLES), _ORDINALS, c, generator=generator)
            self.ordinal_gain = nn.Parameter(1 + spread / 2)
            self.from_diagonal = nn.Parameter(torch.randn(len(ROLES), 2 * e, generator=generator))
            self.to_element = RoleLinear(len(ROLES), e, e, generator)

    def forward(
        self,
        plan: BlockPlan,
        elements: Sequence[Float[Tensor, "..."]],
        tokens: Float[Tensor, "*batch tokens channels"],
        tensors: Float[Tensor, "*batch blocks channels"],
    ) -> tuple[
        list[Float[Tensor, "..."]],
        Float[Tensor, "*batch tokens channels"],
        Float[Tensor, "*batch blocks channels"],
    ]:
        """Return the updated elements (one tensor per block), tokens and tensor tokens."""
        read = normalise(tensors)
        moments: list[list[Tensor]] = []
        joint = [contexts(block) for block in plan.blocks]
        for block, values, wide in zip(plan.blocks, elements, joint, strict=True):
            keeps = [(d,) for d in range(len(block.dims))] + [()] + [keep for keep, _ in wide]
            moments.append([torch.cat(pair, dim=-1) for pair in pooled_moments(values, block, keeps)])
        message = self._token_messages(plan, elements, moments, read)
        tokens = tokens + self.token_update(torch.cat([normalise(tokens), message], dim=-1))
        summaries = [
            self.tensor_message(pooled[len(block.dims)], role_index(block.role))
            for block, pooled in zip(plan.blocks, moments, strict=True)
        ]
        everywhere = read.mean(-2, keepdim=True).expand_as(read)
        heard = torch.cat([read, normalise(torch.stack(summaries, dim=-2)), everywhere], dim=-1)
        tensors = tensors + self.tensor_update(heard)
        if not self.update_elements:
            return list(elements), tokens, tensors
        read_tokens, read_tensors = normalise(tokens), normalise(tensors)
        updated = [
            self._update_block(
                plan, b, elements[b], read_tokens, read_tensors[..., b, :], moments[b], joint[b]
            )
            for b in range(len(plan.blocks))
        ]
        return updated, tokens, tensors

    def _token_messages(
        self, plan: BlockPlan, elements: Sequence[Tensor], moments: Sequence[Sequence[Tensor]], read: Tensor
    ) -> Tensor:
        """Return what each neuron hears of all tensors that it touches: [*batch, tokens, channels]."""
        inbox: dict[str, list[Tensor]] = {name: [] for name in plan.atoms}
        spoken = [self.tensor_to_token(read, kind) for kind in range(len(DIM_ROLES))]
        for b, block in enumerate(plan.blocks):
            for d, dim in enumerate(block.dims):
                kind = DIM_ROLES.index(dim.role)
                heard = self.dim_message(moments[b][d], dim_index(block.role, dim.role))
                heard = heard + spoken[kind][..., b, None, :]
                inbox[dim.atom].append(heard + self.ordinal[kind, min(dim.ordinal, _ORDINALS - 1)])
            for pair in block.repeats:
                diagonal = pool(elements[b], block, (pair,))
                both = torch.cat([diagonal, diagonal.abs()], dim=-1)
                inbox[block.dims[pair[0]].atom].append(self.diagonal_message(both, role_index(block.role)))
        means = [torch.stack(messages).mean(0) for messages in inbox.values()]
        if not means:
            return read.new_zeros(*read.shape[:-2], 0, read.shape[-1])
        return normalise(torch.cat(means, dim=-2))

    def _update_block(
        self,
        plan: BlockPlan,
        b: int,
        values: Tensor,
        tokens: Tensor,
        tensor: Tensor,
        moments: Sequence[Tensor],
        joint: Sequence[Context],
    ) -> Tensor:
        block = plan.blocks[b]
        ndim, role = len(block.dims), role_index(block.role)
        terms = [broadcast_back(self.from_tensor(tensor, role), block, ())]
        for d, dim in enumerate(block.dims):
            ordinal = min(dim.ordinal, _ORDINALS - 1)
            rows = tokens.narrow(-2, plan.offsets[dim.atom], dim.size)
            rows = rows * self.ordinal_gain[DIM_ROLES.index(dim.role), ordinal]
            terms.append(broadcast_back(self.from_token(rows, dim_index(block.role, dim.role)), block, (d,)))
        for pooled, (keep, kind) in zip(moments[ndim + 1 :], joint, strict=True):
            added = self.from_context(pooled, role * (_FILTER + 1) + kind)
            terms.append(broadcast_back(added, block, keep))
        scale = (1 + len(terms)) ** -0.5
        for pair in block.repeats:
            mark = self.from_diagonal[role].expand(block.dims[pair[0]].size, -1)
            terms.append(broadcast_back(mark, block, (pair,)))

        def update(part: Tensor, part_terms: Sequence[Tensor]) -> Tensor:
            mixed = self.from_element(part, role)
            for term in part_terms:
                mixed = mixed + term
            return part + self.to_element(gate(mixed * scale), role)

        return _in_chunks(update, values, _added(terms, values), ndim)


def contexts(block: Block) -> tuple[Context, ...]:
    """Return the joint tables of a block that its own elements read."""
    found: dict[tuple[int, ...], int] = {}
    for tensor_dim in {dim.tensor_dim: None for dim in block.dims}:
        positions = tuple(i for i, dim in enumerate(block.dims) if dim.tensor_dim == tensor_dim)
        found.setdefault(positions, DIM_ROLES.index(block.dims[positions[0]].role))
    kernel = tuple(i for i, dim in enumerate(block.dims) if dim.role == "kernel")
    others = tuple(i for i, dim in enumerate(block.dims) if dim.role != "kernel")
    if kernel:
        found.setdefault(kernel, DIM_ROLES.index("kernel"))
        found.setdefault(others, _FILTER)
    return tuple((keep, kind) for keep, kind in found.items() if 1 < len(keep) < len(block.dims))


def _added(terms: Sequence[Tensor], values: Tensor) -> list[Tensor]:
    """Add up broadcast terms among each other as far as the sums stay smaller than the block itself."""
    count = values.numel() // max(1, values.shape[-1])
    sums: list[Tensor] = []
    for term in sorted(terms, key=Tensor.numel):
        for i, other in enumerate(sums):
            shape = torch.broadcast_shapes(term.shape, other.shape)
            if 2 * shape.numel() <= count * shape[-1]:
                sums[i] = other + term
                break
        else:
            sums.append(term)
    return sums


def _in_chunks(update, values: Tensor, terms: Sequence[Tensor], ndim: int) -> Tensor:
    """Apply an elementwise `update` of values and broadcast terms to a slice of a block at a time."""
    count = values.numel() // max(1, values.shape[-1])
    if count <= _CHUNK or ndim == 0:
        return update(values, terms)
    dim = max(range(-ndim - 1, -1), key=lambda d: values.shape[d])
    rows = max(1, _CHUNK * values.shape[dim] // count)
    parts = []
    for start in range(0, values.shape[dim], rows):
        size = min(rows, values.shape[dim] - start)
        cut = [t if t.shape[dim] == 1 else t.narrow(dim, start, size) for t in terms]
        parts.append(update(values.narrow(dim, start, size), cut))
    return torch.cat(parts, dim=dim)
