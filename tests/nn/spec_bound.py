"""Small specs and traced nets for the tests of spec-bound layers, and layers as explicit matrices."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nfopt.nn.layout import WeightLayout, weight_layout
from nfopt.symmetry import Atom, PermutationSpec, TensorAxes, trace_permutation_spec
from nfopt.symmetry.axes import Sum
from tests.hand_specs import SPECS, X, Y, fix, linear, random_tensors, vector


def recurrent(hidden: int) -> PermutationSpec:
    """A recurrent net: its hidden neurons are on both axes of one matrix, so small ones lack orbits."""
    h = Atom("h", hidden)
    tensors = {
        "hh": TensorAxes((h, h), "recurrent", ("out", "in")),
        "bias": vector("bias", h),
        "out": linear(X, h, 1.0),
    }
    return fix(tensors, X)


def concatenated() -> PermutationSpec:
    """The same neurons twice in one axis."""
    h = Atom("h", 3)
    tensors = {"in": linear(h, X), "out": linear(Y, Sum((h, h)), 1.0), "bias": vector("bias", Y, 1.0)}
    return fix(tensors, X, Y)


def mlp(*widths: int) -> PermutationSpec:
    """An MLP of the given widths, inputs and outputs included."""
    last = len(widths) - 2
    atoms = [Atom(f"n{i}", width) for i, width in enumerate(widths)]
    tensors = {}
    for i in range(last + 1):
        depth = i / max(1, last)
        tensors[f"{i}.weight"] = linear(atoms[i + 1], atoms[i], depth)
        tensors[f"{i}.bias"] = vector("bias", atoms[i + 1], depth)
    return fix(tensors, atoms[0], atoms[-1])


SMALL = {
    "mlp": SPECS["mlp"],
    "two layers": mlp(2, 5, 3),
    "one layer": mlp(2, 3),
    "thin": mlp(2, 1, 3),
    "four layers": mlp(1, 3, 2, 5, 2),
    "recurrent 2": recurrent(2),
    "recurrent 3": recurrent(3),
    "recurrent 5": recurrent(5),
    "concatenated": concatenated(),
    "uncoupled": PermutationSpec.uncoupled({"a": (3, 5), "b": (5,), "c": ()}),
}


class ConvNet(nn.Module):
    """Convolutions with BatchNorm, a residual connection and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.inner, self.outer = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        inner = torch.relu(self.inner(x))
        both = torch.cat([x + self.outer(inner), inner], dim=1)
        return self.head(both.mean((2, 3)))


class Recurrent(nn.Module):
    """An Elman network written out."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.recur, self.write = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 5)
        for step in range(2):
            state = torch.tanh(self.read(x[:, step]) + self.recur(state))
        return self.write(state)


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(3, 7), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encode(x)) @ self.encode.weight + self.bias


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5)), (2, 3)),
    "convnet": (ConvNet, (2, 1, 4, 4)),
    "recurrent": (Recurrent, (2, 2, 3)),
    "tied": (Tied, (2, 3)),
}


@cache
def traced(name: str) -> PermutationSpec:
    factory, shape = NETS[name]
    return trace_permutation_spec(factory(), torch.zeros(shape))


LAWS = {**SPECS, **SMALL, **{f"traced {name}": None for name in NETS}}
"""Names of every spec on which the laws are tested; `law_spec` returns them."""


def law_spec(name: str) -> PermutationSpec:
    return LAWS[name] or traced(name.removeprefix("traced "))


def layouts(spec: PermutationSpec) -> list[WeightLayout]:
    return [weight_layout(spec), weight_layout(spec, permute_io=True)]


def on_tensors(layer, layout: WeightLayout):
    """The layer as a function of tensors by name."""
    return lambda tensors: layout.leave(layer(layout.enter(tensors)), channels=True)


def random_values(layout: WeightLayout, seed: int = 0, batch: tuple[int, ...] = (), channels: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*batch, *b.shape, b.multiplicity * channels, generator=generator, dtype=torch.float64)
        for b in layout.blocks
    ]


def nets_of(layout: WeightLayout, flat: Tensor) -> list[Tensor]:
    """Values of the nets whose elements are the rows of `flat`."""
    counts = [values.numel() for values in random_values(layout)]
    return [
        part.unflatten(-1, (*block.shape, block.multiplicity))
        for part, block in zip(flat.split(counts, -1), layout.blocks, strict=True)
    ]


def random_nets(layout: WeightLayout, nets: int) -> list[Tensor]:
    elements = sum(block.block.numel for block in layout.blocks)
    generator = torch.Generator().manual_seed(0)
    return nets_of(layout, torch.randn(nets, elements, generator=generator, dtype=torch.float64))


def unit_nets(layout: WeightLayout) -> list[Tensor]:
    """Zero and every unit vector of the weight space."""
    elements = sum(block.block.numel for block in layout.blocks)
    return nets_of(layout, torch.eye(elements + 1, dtype=torch.float64)[:, 1:])


def every_map(layer: nn.Module, nets: int | None = None) -> Tensor:
    """[parameters, everything that the layer does]: its outputs for each parameter at 1 and the others at 0.

    On zero and every unit vector of the weight space, which says all of an affine map; or on `nets` random
    ones, which can only hide dependence, never independence.
    """
    layout = layer.layout
    values = unit_nets(layout) if nets is None else random_nets(layout, nets)
    parameters = {name: p.detach().double() for name, p in layer.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def run(unit: Tensor) -> Tensor:
        parts = unit.split(sizes)
        chosen = {n: v.view(p.shape) for (n, p), v in zip(parameters.items(), parts, strict=True)}
        return torch.cat([out.flatten() for out in functional_call(layer, chosen, (values,))])

    units = torch.eye(sum(sizes), dtype=torch.float64)
    return torch.cat([vmap(run)(some) for some in units.split(64)])


def law_tensors(spec: PermutationSpec, seed: int = 0, batch: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return random_tensors(spec, seed, batch)
