"""Squared error and gradient of many SIRENs side by side, in closed form and without new memory.

An autograd graph over thousands of nets writes every intermediate value to fresh memory, and waiting for that
memory takes longer than the arithmetic. Here the values live in a few buffers that fit into the cache, and on
a grid the first layer's sines come from one sine per row and one per column:

    sin(a_i + c_j) = sin a_i cos c_j + cos a_i sin c_j
"""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.zoo.siren import SirenConfig


def aligned(nets: int, count: int, like: Tensor) -> Float[Tensor, "nets count"]:
    """Return zeros, those of each net beginning at a multiple of 64 bytes.

    The last digits of a product depend on how its factors lie in memory; so they do not depend on the lane.
    """
    return like.new_zeros(nets, -(-count // 16) * 16)[:, :count]


class SirenGradient:
    """Mean squared errors of `nets` SIRENs, and their gradients, with memory for nothing else.

    Args:
        config: the architecture, of one output.
        coordinates: the points, the same for every net.
        nets: number of nets side by side.
        grid_shape: height and width, where the points are those of `grid(height, width)`; else None.
    """

    def __init__(
        self,
        config: SirenConfig,
        coordinates: Float[Tensor, "points inputs"],
        nets: int,
        grid_shape: tuple[int, int] | None = None,
    ) -> None:
        if config.outputs != 1:
            raise ValueError("closed-form gradients are written for one output")
        self.config, self.nets = config, nets
        self.grid_shape = grid_shape
        self.coordinates = coordinates
        # A column of ones gives the bias's gradient in the same product as the weight's.
        ones = torch.ones_like(coordinates[:, :1])
        self._inputs = torch.cat([coordinates, ones], 1).expand(nets, -1, -1)
        points = len(coordinates)

        def make(*shape: int) -> Tensor:
            return aligned(nets, prod(shape), coordinates).unflatten(1, shape)

        self._sines = [make(points, width) for width in config.hidden]
        self._cosines = [make(points, width) for width in config.hidden]
        self._back = [make(points, width) for width in config.hidden[:-1]]
        self._into = [make(*config.shapes[f"{2 * i}.weight"]) for i in range(1, len(config.hidden))]
        self._both = make(config.inputs + 1, config.hidden[0])
        self._output = make(points, 1)
        self._angles = [make(sum(grid_shape or (0,)), config.hidden[0]) for _ in range(3)]
        self._flat = aligned(nets, config.parameter_count, coordinates)
        self._one = coordinates.new_ones(nets, 1, 1)
        omegas = [
            coordinates.new_full(
                (prod(shape),), 1 if name.startswith(f"{2 * len(config.hidden)}.") else config.omega_0
            )
            for name, shape in config.shapes.items()
        ]
        self._omegas = torch.cat(omegas)

    def __call__(
        self,
        flat: Float[Tensor, "nets parameters"],
        targets: Float[Tensor, "nets points"],
        gradient: Float[Tensor, "nets parameters"],
    ) -> Float[Tensor, " nets"]:
        """Return each net's mean squared error, and write its gradient.

        Args:
            flat: parameters, in the order of `SirenConfig.shapes`.
            targets: the value wanted at each point.
            gradient: is overwritten.
        """
        torch.mul(flat, self._omegas, out=self._flat)
        named, grad = self.config.named(self._flat), self.config.named(gradient)
        depth = len(self.config.hidden)
        last = f"{2 * depth}"
        self._first_layer(named["0.weight"], named["0.bias"])
        for i in range(1, depth):
            weight, bias = named[f"{2 * i}.weight"], named[f"{2 * i}.bias"].unsqueeze(1)
            phase = torch.baddbmm(bias, self._sines[i - 1], weight.mT, out=self._cosines[i])
            torch.sin(phase, out=self._sines[i])
            phase.cos_()
        torch.baddbmm(named[f"{last}.bias"].unsqueeze(1), self._sines[-1], named[f"{last}.weight"].mT,
                      out=self._output)  # fmt: skip
        error = self._output.sub_(targets.unsqueeze(2))
        points = error.shape[1]
        loss = torch.bmm(error.mT, error).flatten() / points
        error.mul_(2 / points)
        grad[f"{last}.weight"].copy_(torch.bmm(error.mT, self._sines[-1]))
        grad[f"{last}.bias"].copy_(error.sum(1))
        # The last weights belong into `back`; they wait as `factor`: to scale what is small is cheaper.
        back = self._cosines[-1].mul_(error)
        factor = named[f"{last}.weight"].mT
        for i in reversed(range(1, depth)):
            product = torch.bmm(back.mT, self._sines[i - 1], out=self._into[i - 1])
            torch.mul(product, factor, out=grad[f"{2 * i}.weight"])
            torch.mul(back.sum(1), factor.squeeze(2), out=grad[f"{2 * i}.bias"])
            into = torch.mul(named[f"{2 * i}.weight"], factor, out=self._into[i - 1])
            back = torch.bmm(back, into, out=self._back[i - 1]).mul_(self._cosines[i - 1])
            factor = self._one
        # This way round: a product with a narrow right side takes six times as long.
        both = torch.bmm(self._inputs.mT, back, out=self._both).mul_(factor.mT)
        grad["0.weight"].copy_(both[:, :-1].mT)
        grad["0.bias"].copy_(both[:, -1])
        gradient.mul_(self._omegas)
        return loss

    def _first_layer(self, weight: Tensor, bias: Tensor) -> None:
        """Fill the sines and cosines of the first layer, whose parameters are given times omega_0."""
        sines, cosines = self._sines[0], self._cosines[0]
        if self.grid_shape is None:
            phase = torch.baddbmm(
                bias.unsqueeze(1), self._inputs[..., :-1], weight.mT.contiguous(), out=cosines
            )
            torch.sin(phase, out=sines)
            phase.cos_()
            return
        height, width = self.grid_shape
        angles, sin, cos = self._angles
        torch.mul(self.coordinates[::width, :1], weight[:, None, :, 0], out=angles[:, :height])
        torch.mul(self.coordinates[:width, 1:], weight[:, None, :, 1], out=angles[:, height:])
        angles[:, height:].add_(bias.unsqueeze(1))
        torch.sin(angles, out=sin)
        torch.cos(angles, out=cos)
        sin_rows, sin_columns = sin[:, :height].unsqueeze(2), sin[:, height:].unsqueeze(1)
        cos_rows, cos_columns = cos[:, :height].unsqueeze(2), cos[:, height:].unsqueeze(1)
        for out, rows, other_rows, sign in (
            (sines, sin_rows, cos_rows, 1),
            (cosines, cos_rows, sin_rows, -1),
        ):
            on_grid = out.unflatten(1, (height, width))
            torch.mul(rows, cos_columns, out=on_grid).addcmul_(other_rows, sin_columns, value=sign)
