"""Weight-space augmentation: random transforms of many nets at once, composable, each net with its own draws.

    first, second = views(Compose((Permute(spec), Noise(0.2), Mask(0.5))), zoo.tensors, generator)

`Permute`, `ScaleNeurons`, `FlipSigns` and `ShiftPhases` leave every net's function unchanged; `Noise` and
`Mask` do not. Every call draws anew from the generator, for every net by itself: no two nets, and no two
views of one, share a draw. Equal generators give equal results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.symmetry import PermutationSpec
from nfopt.zoo.neuron_axes import check_scalable, order_along, scaled
from nfopt.zoo.zoo import ZooError

Nets: TypeAlias = Mapping[str, Float[Tensor, "nets ..."]]
Transform: TypeAlias = Callable[[Nets, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Compose:
    """One transform after the other.

    Attributes:
        transforms: what is applied, in this order.
    """

    transforms: Sequence[Transform]

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the transformed nets."""
        result = dict(nets)
        for transform in self.transforms:
            result = transform(result, generator)
        return result


def views(
    transform: Transform, nets: Nets, generator: torch.Generator, count: int = 2
) -> list[dict[str, Tensor]]:
    """Return `count` independently transformed views of every net.

    Args:
        transform: what makes a view.
        nets: tensors by name, each [nets, *shape]; not changed.
        generator: of all draws; its state moves on.
        count: number of views.
    """
    return [transform(nets, generator) for _ in range(count)]


@dataclass(frozen=True)
class Permute:
    """A random permutation of every group of neurons; the function of a net is unchanged.

    Attributes:
        spec: the symmetry of the nets' architecture.
    """

    spec: PermutationSpec

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the nets with their neurons renumbered, each net's in its own way."""
        count = _count(self.spec, nets)
        orders = {
            name: torch.rand(count, atom.size, generator=generator, device=generator.device).argsort(1)
            for name, atom in self.spec.groups.items()
        }
        return {name: self._permuted(name, tensor, orders) for name, tensor in nets.items()}

    def _permuted(self, name: str, tensor: Tensor, orders: Mapping[str, Tensor]) -> Tensor:
        for dim, axis in enumerate(self.spec.axes_of(name), start=1):
            order = order_along(axis, orders)
            if order is not None:
                shape = [1] * tensor.ndim
                shape[0], shape[dim] = order.shape
                tensor = tensor.gather(dim, order.to(tensor.device).view(shape).expand_as(tensor))
        return tensor


@dataclass(frozen=True)
class ScaleNeurons:
    """Every neuron's inputs times exp(z), its outputs times exp(-z), z from N(0, log_std^2).

    The function is unchanged where every hidden activation f is positively homogeneous, f(c x) = c f(x) for
    c > 0: ReLU, leaky ReLU, mean and max pooling.

    Attributes:
        spec: the symmetry of the nets' architecture; of linear layers, convolutions and biases only.
        log_std: standard deviation of z.

    Raises:
        ZooError: the architecture has other parameters, such as those of a normalisation.
    """

    spec: PermutationSpec
    log_std: float = 0.5

    def __post_init__(self) -> None:
        check_scalable(self.spec)

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the nets with their neurons scaled."""
        count = _count(self.spec, nets)
        factors = {
            name: (self.log_std * _normal((count, atom.size), nets, generator)).exp()
            for name, atom in self.spec.groups.items()
        }
        return scaled(self.spec, nets, factors)


@dataclass(frozen=True)
class FlipSigns:
    """Every neuron's inputs and outputs times -1, or not, at even odds.

    The function is unchanged where every hidden activation f is odd, f(-x) = -f(x): sine, tanh, none.

    Attributes:
        spec: the symmetry of the nets' architecture; of linear layers, convolutions and biases only.

    Raises:
        ZooError: the architecture has other parameters, such as those of a normalisation.
    """

    spec: PermutationSpec

    def __post_init__(self) -> None:
        check_scalable(self.spec)

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the nets with signs flipped."""
        count = _count(self.spec, nets)
        signs = {
            name: _uniform((count, atom.size), nets, generator).sub(0.5).sign()
            for name, atom in self.spec.groups.items()
        }
        # The sign of an exact zero would erase a neuron.
        signs = {name: torch.where(sign == 0, 1.0, sign) for name, sign in signs.items()}
        return scaled(self.spec, nets, signs)


@dataclass(frozen=True)
class ShiftPhases:
    """Every neuron's bias plus k pi / omega_0, its outputs times (-1)^k, with k from -1, 0, 1.

    The function of a SIREN is unchanged, for sin(omega_0 z + k pi) = (-1)^k sin(omega_0 z).

    Attributes:
        spec: the symmetry of the nets' architecture: linear layers with biases, sines between them.
        omega_0: factor inside every sine.

    Raises:
        ZooError: the architecture has other parameters, or a group of neurons without a bias.
    """

    spec: PermutationSpec
    omega_0: float = 30.0

    def __post_init__(self) -> None:
        check_scalable(self.spec)
        for name in self.spec.groups:
            if self._bias(name) is None:
                raise ZooError(f"the neurons {name!r} have no bias that could shift their phase.")

    def _bias(self, group: str) -> str | None:
        for tensor, _ in self.spec.occurrences[group]:
            if self.spec.tensors[tensor].role == "bias":
                return tensor
        return None

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the nets with phases shifted."""
        count = _count(self.spec, nets)
        turns = {
            name: (3 * _uniform((count, atom.size), nets, generator)).floor().clamp(max=2) - 1
            for name, atom in self.spec.groups.items()
        }
        result = scaled(self.spec, nets, {name: 1 - 2 * turn.abs() for name, turn in turns.items()}, ("in",))
        for name, turn in turns.items():
            bias = self._bias(name)
            assert bias is not None
            result[bias] = result[bias] + turn * pi / self.omega_0
        return result


@dataclass(frozen=True)
class Noise:
    """Gaussian noise relative to the spread of what it is added to.

    Attributes:
        relative_std: standard deviation of the noise as a multiple of that of a net's tensor over its
            elements; for a tensor of one element, of that element's magnitude.
    """

    relative_std: float = 0.2

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the nets with noise added."""
        result = {}
        for name, tensor in nets.items():
            flat = tensor.flatten(1)
            spread = flat.abs() if flat.shape[1] == 1 else flat.std(1, unbiased=False, keepdim=True)
            noise = _normal(flat.shape, nets, generator)
            result[name] = (flat + self.relative_std * spread * noise).view_as(tensor)
        return result


@dataclass(frozen=True)
class Mask:
    """Elements set to zero at random.

    Attributes:
        zeroed: probability in [0, 1] that an element is zeroed.

    Raises:
        ZooError: it is no probability.
    """

    zeroed: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.zeroed <= 1:
            raise ZooError(f"the share of elements to zero is between 0 and 1, not {self.zeroed}.")

    def __call__(self, nets: Nets, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the nets with elements zeroed."""
        return {
            name: tensor * (_uniform(tensor.shape, nets, generator) >= self.zeroed)
            for name, tensor in nets.items()
        }


def _count(spec: PermutationSpec, nets: Nets) -> int:
    """Return the number of nets, or raise ZooError if the tensors are not those of nets of this spec."""
    missing = [name for name in spec.tensors if name not in nets]
    if missing:
        # A group of which one tensor is left out cannot be transformed as a whole.
        raise ZooError(f"the nets lack the tensors {missing[:5]} of the spec; transform whole nets.")
    counts = {}
    for name, tensor in nets.items():
        shape = tuple(axis.size for axis in spec.axes_of(name))
        if tuple(tensor.shape[1:]) != shape:
            raise ZooError(f"{name} has shape {tuple(tensor.shape)}; nets of the spec have [nets, *{shape}].")
        counts[len(tensor)] = name
    if len(counts) != 1:
        raise ZooError(f"the tensors are of different numbers of nets: {sorted(counts)}.")
    return next(iter(counts))


def _like(nets: Nets) -> Tensor:
    return next(iter(nets.values()))


def _normal(shape: Sequence[int], nets: Nets, generator: torch.Generator) -> Tensor:
    like = _like(nets)
    return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype).to(
        like.device
    )


def _uniform(shape: Sequence[int], nets: Nets, generator: torch.Generator) -> Tensor:
    like = _like(nets)
    return torch.rand(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype).to(
        like.device
    )
