"""Plan: what a step will do to every tensor, in a few numbers each; and the step, a few tensors at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.controls import Controls
from nfopt.optim.directions import lookahead_weights, spread
from nfopt.optim.elementwise import Fold, Mix, fold
from nfopt.optim.holding import Group, Holding
from nfopt.optim.moments import FAST, MOMENTA, SECOND, SLOW, TENSOR_STATE, StepNumbers
from nfopt.optim.strips import Strip
from nfopt.weightspace.incidence import Incidence, Side

Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One step of some of the tensors.

    Attributes:
        updates: to be added to the parameters, by name.
        state: their new momenta, by "<tensor name>/<quantity>".
        shared: whether the momenta lie in one another's memory, and have to be copied out of it.
    """

    updates: dict[str, Tensor]
    state: dict[str, Tensor]
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """One step, decided but not taken.

    Attributes:
        incidence: the tensors, and where their rows and columns are among all.
        matrices: positions of the tensors that are orthogonalised.
        numbers: what the gradients do to the running averages.
        controls: what is done.
        sizes: RMS change per element of each tensor.
        shrink: share of its weights that each tensor loses.
        decisions: fresh ones, as the state holds them, by "<tensor name>/<quantity>"; none if the last go on.
        holding: what this process has of the tensors.
        fold: what takes the gradients of larger tensors into their momenta.
    """

    incidence: Incidence
    matrices: frozenset[int]
    numbers: StepNumbers
    controls: Controls
    sizes: Float[Tensor, "*batch tensors"]
    shrink: Float[Tensor, "*batch tensors"]
    decisions: dict[str, Tensor]
    holding: Holding
    fold: Fold = fold

    @property
    def state(self) -> dict[str, Tensor]:
        """The new state but for the momenta, by "<tensor name>/<quantity>"."""
        return {**self.numbers.state(self.incidence.names), **self.decisions}

    def parts(self, params: Tensors, grads: Tensors, state: Tensors) -> Iterator[Part]:
        """Take the step, a part after the other, so that only one part's tensors are in memory at a time.

        Args:
            params: the parameters that the plan was made for.
            grads: their gradients.
            state: the state before the step; what a part has been yielded of may have been replaced.
        """
        for group in self.holding.groups():
            if group.strip is None:
                yield self._of_tensors(group, params, grads, state)
            else:
                yield self._of_strip(group, group.strip, params, grads, state)

    def _of_tensors(self, group: Group, params: Tensors, grads: Tensors, state: Tensors) -> Part:
        """Take the step of tensors in their own shapes."""
        names, work = self.incidence.names, self.sizes.dtype
        kept: dict[str, Tensor] = {}
        mixed: list[Tensor] = []
        second: list[Tensor] = []
        for i in group.positions:
            name, dims = names[i], len(self.incidence.layouts[i].shape)
            slow, fast = (state[f"{name}/{key}"] for key in MOMENTA)
            found = self.fold(grads[name], slow, fast, self._mix(i, dims))
            kept |= {f"{name}/{SLOW}": found.slow, f"{name}/{FAST}": found.fast}
            mixed.append(found.mixed)
            if i not in self.matrices:
                before = state[f"{name}/{SECOND}"].to(work)
                second.append(self.numbers.fold(before, found.grad.square(), SECOND, dims))
                kept[f"{name}/{SECOND}"] = second[-1]
        if group.positions[0] in self.matrices:
            moves = self.holding.orthogonal(mixed, group.positions)
        else:
            moves = self.holding.adam(mixed, second, group)
        moved = zip(group.positions, moves, strict=True)
        return Part({names[i]: self._scaled(move, params[names[i]], i) for i, move in moved}, kept)

    def _of_strip(self, group: Group, strip: Strip, params: Tensors, grads: Tensors, state: Tensors) -> Part:
        """Take the step of all tensors of a strip at once."""
        names, work = [self.incidence.names[i] for i in strip.positions], self.sizes.dtype
        slow, fast, second = (strip.join([state[f"{name}/{key}"] for name in names]) for key in TENSOR_STATE)
        shares = self._table[..., :-1, :].index_select(-1, strip.tensor).unbind(-2)
        weights = [spread(self.numbers.weights[key], 1) for key in MOMENTA]
        found = fold(strip.join([grads[name] for name in names]), slow, fast, Mix(*shares, *weights))
        second = self.numbers.fold(second.to(work), found.grad.square(), SECOND, 1)
        move = self.holding.adam([found.mixed], [second], group)[0]
        update = strip.split(move * self._factors.index_select(-1, strip.row))
        new = {SLOW: found.slow, FAST: found.fast, SECOND: second}
        kept = {
            f"{name}/{key}": value
            for key, laid in new.items()
            for name, value in zip(names, strip.split(laid), strict=True)
        }
        updates = {n: u.to(params[n].dtype) for n, u in zip(names, update, strict=True)}
        return Part(updates, kept, shared=True)

    @cached_property
    def _table(self) -> Float[Tensor, "*batch 5 tensors"]:
        """The first four of a `Mix`, and minus the share of its weights that each tensor loses."""
        weights = lookahead_weights(self.controls.fast_share, self.numbers.step, self.numbers.rates)
        return torch.stack([self.numbers.factor, *weights, -self.shrink], dim=-2)

    @cached_property
    def _numbers_of(self) -> list[tuple[Tensor, ...]]:
        """The columns of `_table`, each as one number per copy."""
        numbers, count = self._table.flatten(-2).unbind(-1), len(self.incidence.names)
        return [numbers[i::count] for i in range(count)]

    def _mix(self, position: int, dims: int) -> Mix:
        """Return what multiplies the elements of one tensor."""
        weights = [self.numbers.weights[key] for key in MOMENTA]
        numbers = (*self._numbers_of[position][:-1], *weights)
        return Mix(*(spread(number, dims) for number in numbers))

    @cached_property
    def _factors(self) -> Float[Tensor, "*batch entries"]:
        """What multiplies the directions: minus the step size and the gain for rows, the gain for columns."""
        signed = torch.stack([-self.sizes, torch.ones_like(self.sizes)], dim=-1).flatten(-2)
        return self.controls.gain * signed.index_select(-1, self.incidence.entry_pool)

    @cached_property
    def _factors_of(self) -> tuple[Tensor, ...]:
        """`_factors`, cut into those of the rows and those of the columns of each tensor in turn."""
        return self._factors.split([s.stop - s.start for s in self.incidence.slices.values()], dim=-1)

    def _scaled(
        self, move: Float[Tensor, "..."], param: Float[Tensor, "..."], position: int
    ) -> Float[Tensor, "..."]:
        """Return a tensor's update: its direction with step size, gains and weight decay."""
        layout = self.incidence.layouts[position]
        update = move * self._factor("out", position)
        columns = self._factor("in", position) if layout.in_dims else None
        if position not in self.matrices:
            return (update if columns is None else update * columns).to(param.dtype)
        shrink = spread(self._numbers_of[position][-1], len(layout.shape))
        decay = param.to(update.dtype) * shrink
        return (decay + update if columns is None else torch.addcmul(decay, update, columns)).to(param.dtype)

    def _factor(self, side: Side, position: int) -> Tensor:
        """Return the factors of the rows or columns that are here of a tensor, shaped to multiply it."""
        values, layout = self._factors_of[2 * position + (side == "in")], self.incidence.layouts[position]
        dims = layout.out_dims if side == "out" else layout.in_dims
        shape = [n if d in dims else 1 for d, n in enumerate(layout.shape)]
        table = values.reshape((*values.shape[:-1], *shape))
        # Repeated over the kernel positions, where a product runs over contiguous elements.
        if dims and 0 < min(dims) < len(shape) - 1:
            behind = [n if d > min(dims) else 1 for d, n in enumerate(layout.shape)]
            table = table.expand(*values.shape[:-1], *map(max, shape, behind)).contiguous()
        return self.holding.cut(table, position)
