"""SIREN: small nets with sine activations that hold an image or a wave; one as a module, many as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.symmetry import PermutationSpec, trace_permutation_spec
from nfopt.zoo.zoo import ZooError


class Sine(nn.Module):
    """The activation sin(omega_0 z)."""

    def __init__(self, omega_0: float) -> None:
        super().__init__()
        self.omega_0 = omega_0

    def forward(self, values: Tensor) -> Tensor:
        """Return the sine of every element times omega_0."""
        return torch.sin(self.omega_0 * values)


@dataclass(frozen=True)
class SirenConfig:
    """The architecture of a SIREN: y = W_L h_L + b_L with h_l+1 = sin(omega_0 (W_l h_l + b_l)).

    Source: "Implicit Neural Representations with Periodic Activation Functions", Sitzmann et al. 2020.

    Attributes:
        inputs: number of coordinates.
        hidden: widths of the hidden layers, at least one.
        outputs: number of values at a coordinate.
        omega_0: factor inside every sine.
    """

    inputs: int = 2
    hidden: tuple[int, ...] = (32, 32)
    outputs: int = 1
    omega_0: float = 30.0

    def __post_init__(self) -> None:
        if not self.hidden or min(self.inputs, self.outputs, *self.hidden) < 1 or self.omega_0 <= 0:
            raise ZooError(
                f"a SIREN needs at least one hidden layer, widths of at least 1 and a positive omega_0, not "
                f"{self}."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths from the inputs to the outputs."""
        return (self.inputs, *self.hidden, self.outputs)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by its name in `Siren`, in the module's order."""
        found: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            found[f"{2 * i}.weight"], found[f"{2 * i}.bias"] = (fan_out, fan_in), (fan_out,)
        return found

    @property
    def parameter_count(self) -> int:
        """Number of parameters of one net."""
        return sum(prod(shape) for shape in self.shapes.values())

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Half-width of the uniform distribution that each parameter starts from (section 3.2).

        Weights: 1 / fan_in in the first layer, sqrt(6 / fan_in) / omega_0 after it; biases 1 / sqrt(fan_in).
        """
        found: dict[str, float] = {}
        for i, fan_in in enumerate(self.widths[:-1]):
            found[f"{2 * i}.weight"] = 1 / fan_in if i == 0 else sqrt(6 / fan_in) / self.omega_0
            found[f"{2 * i}.bias"] = 1 / sqrt(fan_in)
        return found

    def spec(self) -> PermutationSpec:
        """Return the permutation symmetry, derived from the module."""
        return trace_permutation_spec(Siren(self), torch.zeros(2, self.inputs))

    def start(self, generator: torch.Generator) -> Float[Tensor, " parameters"]:
        """Return the initial parameters of one net, one after another in the order of `shapes`."""
        uniform = 2 * torch.rand(self.parameter_count, generator=generator) - 1
        return uniform * torch.cat([torch.full((prod(s),), self.bounds[n]) for n, s in self.shapes.items()])

    def named(self, flat: Float[Tensor, "nets parameters"]) -> dict[str, Float[Tensor, "nets ..."]]:
        """Return the tensors of nets whose parameters lie one after another; views of `flat`."""
        parts = flat.split([prod(shape) for shape in self.shapes.values()], dim=-1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in named}


class Siren(nn.Sequential):
    """A SIREN as an ordinary module: [points, inputs] to [points, outputs].

    Args:
        config: the architecture.
        seed: seed of the initial parameters.
    """

    def __init__(self, config: SirenConfig | None = None, *, seed: int = 0) -> None:
        self.config = config = config or SirenConfig()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(config.widths):
            layers += [nn.Linear(fan_in, fan_out), Sine(config.omega_0)]
        super().__init__(*layers[:-1])
        start = config.start(torch.Generator().manual_seed(seed))
        self.load_state_dict({n: t[0] for n, t in config.named(start[None]).items()})


def siren(
    tensors: Mapping[str, Float[Tensor, "nets ..."]],
    coordinates: Float[Tensor, "points inputs"],
    *,
    omega_0: float = 30.0,
) -> Float[Tensor, "nets points outputs"]:
    """Return the values of many SIRENs at the same coordinates; differentiable in `tensors`.

    Args:
        tensors: parameters by the names of `Siren`, each [nets, *shape].
        coordinates: where to ask, usually within [-1, 1].
        omega_0: factor inside every sine.

    Raises:
        ZooError: the tensors are not those of SIRENs with as many inputs as there are coordinates.
    """
    depth, odd = divmod(len(tensors), 2)
    names = [f"{2 * i}.{kind}" for i in range(depth) for kind in ("weight", "bias")]
    if odd or not depth or set(names) != set(tensors):
        raise ZooError(f"a SIREN has weights and biases 0, 2, 4 and so on; these are {list(tensors)[:8]}.")
    first = tensors["0.weight"]
    if first.ndim != 3 or first.shape[-1] != coordinates.shape[-1]:
        raise ZooError(
            f"the first weight has shape {tuple(first.shape)}; it must be [nets, neurons, coordinates] with "
            f"{coordinates.shape[-1]} coordinates."
        )
    values = coordinates.to(first).expand(len(first), -1, -1)
    for i in range(depth):
        bias = tensors[f"{2 * i}.bias"].unsqueeze(-2)
        values = torch.baddbmm(bias, values, tensors[f"{2 * i}.weight"].mT)
        if i < depth - 1:
            values = torch.sin(omega_0 * values)
    return values


def grid(height: int, width: int) -> Float[Tensor, "pixels 2"]:
    """Return the coordinates (row, column) of the pixels of an image, each from -1 to 1, row by row."""
    rows, columns = (
        torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1) for count in (height, width)
    )
    return torch.cartesian_prod(rows, columns)


def render(
    tensors: Mapping[str, Float[Tensor, "nets ..."]],
    size: int | tuple[int, int] = 28,
    *,
    omega_0: float = 30.0,
) -> Float[Tensor, "nets outputs height width"]:
    """Return the images that many SIRENs hold; differentiable in `tensors`.

    Args:
        tensors: parameters by the names of `Siren`, each [nets, *shape], of two coordinates.
        size: height and width in pixels, any resolution.
        omega_0: factor inside every sine.

    Raises:
        ZooError: the tensors are not those of SIRENs of two coordinates.
    """
    height, width = (size, size) if isinstance(size, int) else size
    values = siren(tensors, grid(height, width), omega_0=omega_0)
    return values.mT.unflatten(-1, (height, width))
