"""Plan: what a step will do to every tensor, in a few numbers each; and the step, a few tensors at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.controls import Controls
from nfopt.optim.directions import lookahead_weights, spread
from nfopt.optim.holding import Holding
from nfopt.optim.moments import FAST, SECOND, SLOW, StepNumbers
from nfopt.weightspace.incidence import Incidence, Side


@dataclass(frozen=True)
class Part:
    """One step of some of the tensors.

    Attributes:
        updates: to be added to the parameters, by name.
        state: their new momenta, by "<tensor name>/<quantity>".
    """

    updates: dict[str, Tensor]
    state: dict[str, Tensor]


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
        state: the new state but for the momenta, by "<tensor name>/<quantity>".
        holding: what this process has of the tensors.
    """

    incidence: Incidence
    matrices: tuple[int, ...]
    numbers: StepNumbers
    controls: Controls
    sizes: Float[Tensor, "*batch tensors"]
    shrink: Float[Tensor, "*batch tensors"]
    state: dict[str, Tensor]
    holding: Holding

    def parts(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> Iterator[Part]:
        """Take the step, a part after the other, so that only one part's tensors are in memory at a time.

        Args:
            params: the parameters that the plan was made for.
            grads: their gradients.
            state: the state before the step; what a part has been yielded of may have been replaced.
        """
        numbers, rates, names = self.numbers, self.numbers.rates, self.incidence.names
        weights = lookahead_weights(self.controls.fast_share, numbers.step, rates)
        slow_share, fast_share, grad_share = (w.unbind(-1) for w in weights)
        matrices = set(self.matrices)
        work = self.sizes.dtype
        for group in self.holding.groups(self.matrices):
            kept: dict[str, Tensor] = {}
            found: list[Tensor] = []
            second: list[Tensor] = []
            for i in group:
                name, k = names[i], len(self.incidence.layouts[i].shape)
                grad = numbers.clean(grads[name].to(work), i, k)
                slow = numbers.fold(state[f"{name}/{SLOW}"].to(work), grad, rates.slow, k)
                fast = numbers.fold(state[f"{name}/{FAST}"].to(work), grad, rates.fast, k)
                kept |= {f"{name}/{SLOW}": slow, f"{name}/{FAST}": fast}
                if i not in matrices:
                    before = state[f"{name}/{SECOND}"].to(work)
                    second.append(numbers.fold(before, grad.square(), rates.second, k))
                    kept[f"{name}/{SECOND}"] = second[-1]
                mixed = torch.addcmul(spread(slow_share[i], k) * slow, fast, spread(fast_share[i], k))
                found.append(torch.addcmul(mixed, grad, spread(grad_share[i], k)))
            if group[0] in matrices:
                moves = self.holding.orthogonal(found, group)
            else:
                moves = self.holding.adam(found, second, group)
            updates = {
                names[i]: self._scaled(move, params[names[i]], i, decayed=i in matrices)
                for i, move in zip(group, moves, strict=True)
            }
            yield Part(updates, kept)

    def _scaled(
        self, move: Float[Tensor, "..."], param: Float[Tensor, "..."], position: int, *, decayed: bool
    ) -> Float[Tensor, "..."]:
        """Return a tensor's update: its direction with step size, gains and weight decay."""
        k = len(self.incidence.layouts[position].shape)
        cut = self.holding.cut
        update = move * (-spread(self.sizes[..., position], k) * cut(self._gain("out", position), position))
        columns = cut(self._gain("in", position), position) if self._has_columns(position) else None
        if not decayed:
            return (update if columns is None else update * columns).to(param.dtype)
        decay = param.to(update.dtype) * -spread(self.shrink[..., position], k)
        return (decay + update if columns is None else torch.addcmul(decay, update, columns)).to(param.dtype)

    def _has_columns(self, position: int) -> bool:
        return bool(self.incidence.layouts[position].in_dims)

    def _gain(self, side: Side, position: int) -> Tensor:
        """Return the gains of a tensor's rows or columns, shaped to multiply it."""
        gain, layout = self.controls.gain, self.incidence.layouts[position]
        dims = layout.out_dims if side == "out" else layout.in_dims
        values = gain[..., self.incidence.slices[self.incidence.names[position], side]]
        shape = [n if d in dims else 1 for d, n in enumerate(layout.shape)]
        table = values.reshape((*gain.shape[:-1], *shape))
        # Repeated over the kernel positions, where a product runs over contiguous elements.
        repeated = (
            [n if d > min(dims) else 1 for d, n in enumerate(layout.shape)] if dims and min(dims) else []
        )
        return table.expand(*gain.shape[:-1], *map(max, shape, repeated)).contiguous() if repeated else table
