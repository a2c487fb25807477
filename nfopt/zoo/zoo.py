"""Zoo: many nets of one architecture, stacked tensor by tensor, with what is known of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfopt.checkpoints import digest_of
from nfopt.errors import NfoptError, unknown_name
from nfopt.symmetry import PermutationSpec

SIDES = ("train", "val", "test")


class ZooError(NfoptError):
    """A zoo is inconsistent, cannot be read, or cannot be made from what was given."""


@dataclass(frozen=True, eq=False)
class Zoo:
    """Nets of one architecture; net i is row i of every tensor.

    Attributes:
        spec: the permutation symmetry of the architecture.
        tensors: parameters and statistics by the spec's names, each [nets, *shape], real and finite.
        facts: what is known of each net by name ("label", "image", "test_accuracy"), each [nets, ...].
        side: for each net the index into `SIDES`. Nets of different sides were fitted to different things (an
            image, a run): two views of one thing never lie on two sides.
        card: where the nets come from, as JSON values: kind, options, seed, architecture, versions.

    Raises:
        ZooError: a tensor, a fact or a side does not fit the spec or the number of nets, or is not finite.
    """

    spec: PermutationSpec
    tensors: Mapping[str, Float[Tensor, "nets ..."]]
    facts: Mapping[str, Tensor]
    side: Int[Tensor, " nets"]
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.side.ndim != 1 or self.side.is_floating_point():
            raise ZooError(f"side must hold one whole number per net, not {_described(self.side)}.")
        if self.side.numel() and not 0 <= int(self.side.min()) <= int(self.side.max()) < len(SIDES):
            raise ZooError(
                f"sides are 0 to {len(SIDES) - 1} ({', '.join(SIDES)}), but there are "
                f"{self.side.unique().tolist()[:5]}."
            )
        self._check_names()
        for name, tensor in self.tensors.items():
            expected = (len(self), *self.spec.tensors[name].shape)
            if tuple(tensor.shape) != expected or not tensor.is_floating_point():
                raise ZooError(
                    f"the tensor {name!r} is {_described(tensor)}; the spec and {len(self)} nets make it "
                    f"real of shape {expected}. Nets of one architecture only make a zoo."
                )
        for name, fact in self.facts.items():
            if fact.ndim == 0 or len(fact) != len(self):
                raise ZooError(f"the fact {name!r} is {_described(fact)}, but there are {len(self)} nets.")
        _check_finite({**_keyed("tensor", self.tensors), **_keyed("fact", self.facts)})

    def _check_names(self) -> None:
        missing = [name for name in self.spec.tensors if name not in self.tensors]
        unknown = [name for name in self.tensors if name not in self.spec.tensors]
        if missing or unknown:
            raise ZooError(
                f"the tensors are not those of the spec: missing {missing[:5]}, unknown {unknown[:5]}. "
                "Nets of one architecture only make a zoo."
            )

    def __len__(self) -> int:
        return len(self.side)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of tensors, facts and sides: names, types, shapes and values."""
        return digest_of(
            {**_keyed("tensors", self.tensors), **_keyed("facts", self.facts), "side": self.side}
        )

    def subset(self, index: Tensor | slice | Sequence[int]) -> "Zoo":
        """Return the nets at `index` (whole numbers, a slice, or one boolean per net), in its order."""
        where: Any = index if isinstance(index, Tensor | slice) else torch.as_tensor(index, dtype=torch.long)
        if isinstance(where, Tensor):
            where = where.to(self.side.device)
        return Zoo(
            self.spec,
            {name: tensor[where] for name, tensor in self.tensors.items()},
            {name: fact[where] for name, fact in self.facts.items()},
            self.side[where],
            self.card,
        )

    def of(self, side: str) -> "Zoo":
        """Return the nets of one side; raises UnknownNameError for a name that is not in `SIDES`."""
        if side not in SIDES:
            raise unknown_name("side of a zoo", side, SIDES)
        return self.subset(self.side == SIDES.index(side))

    def net(self, index: int) -> dict[str, Tensor]:
        """Return one net's tensors by name, each of the spec's shape; views, not copies."""
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def fact(self, name: str) -> Tensor:
        """Return a fact, [nets, ...]; raises UnknownNameError, with the known ones, if it is not there."""
        if name not in self.facts:
            raise unknown_name("fact", name, self.facts, where="this zoo")
        return self.facts[name]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Zoo":
        """Return the zoo on `device`, its nets' tensors (not its facts) of `dtype`; None changes nothing."""
        return Zoo(
            self.spec,
            {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors.items()},
            {name: fact.to(device=device) for name, fact in self.facts.items()},
            self.side.to(device=device),
            self.card,
        )


def stack_nets(nets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of single nets, as from `Module.state_dict`, into those of a zoo.

    Args:
        nets: at least one; every net's tensors by the same names, each of the same shape.

    Raises:
        ZooError: there is no net, or one has other names or shapes than the first.
    """
    if not nets:
        raise ZooError("there is no net to stack; a zoo is made of at least one.")
    first = {name: tuple(tensor.shape) for name, tensor in nets[0].items()}
    for i, net in enumerate(nets):
        here = {name: tuple(tensor.shape) for name, tensor in net.items()}
        if here != first:
            differing = sorted(n for n in first.keys() | here.keys() if first.get(n) != here.get(n))
            name = differing[0]
            raise ZooError(
                f"net {i} is of another architecture than net 0: {name!r} has shape {here.get(name)}, not "
                f"{first.get(name)}. A zoo holds nets of one architecture; make one zoo of each."
            )
    return {name: torch.stack([net[name].detach() for net in nets]) for name in first}


def join_zoos(zoos: Sequence[Zoo]) -> Zoo:
    """Return the nets of several zoos, in order, with the first one's card.

    Raises:
        ZooError: there is none, or two differ in their spec or in their facts' names or shapes.
    """
    if not zoos:
        raise ZooError("there is no zoo to join; give at least one.")
    first = zoos[0]
    for i, zoo in enumerate(zoos):
        if zoo.spec != first.spec:
            raise ZooError(f"zoo {i} has another spec than zoo 0: their nets are of two architectures.")
        shapes = {name: fact.shape[1:] for name, fact in zoo.facts.items()}
        expected = {name: fact.shape[1:] for name, fact in first.facts.items()}
        if shapes != expected:
            raise ZooError(f"zoo {i} knows {shapes} of its nets, but zoo 0 {expected}.")
    return Zoo(
        first.spec,
        {name: torch.cat([zoo.tensors[name] for zoo in zoos]) for name in first.tensors},
        {name: torch.cat([zoo.facts[name] for zoo in zoos]) for name in first.facts},
        torch.cat([zoo.side for zoo in zoos]),
        first.card,
    )


def _keyed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix} {name}": tensor for name, tensor in tensors.items()}


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = ~tensor.flatten(1).isfinite().all(1) if tensor.ndim > 1 else ~tensor.isfinite()
            if bool(bad.any()):
                nets = bad.nonzero().flatten().tolist()
                raise ZooError(
                    f"the {name} is NaN or infinite for {len(nets)} of {len(tensor)} nets, the first "
                    f"{nets[:5]}. Leave those nets out; they are not replaced."
                )
