"""Hand-made optimizers as pure update rules, whose hyper-parameters take theta's place.

So a whole grid of settings trains side by side, on the same batches as the learned rule.
"""

from dataclasses import dataclass
from itertools import product
from math import pi, prod

import torch
from torch import Tensor

from nfopt.meta.task import Tensors
from nfopt.meta.theta import ThetaLayout

WARMUP = 0.02
# Coefficients of the five quintic steps, by their inventor's optimisation of each step (You Jiacheng 2025).
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
LAYOUT = ThetaLayout(tuple((name, ()) for name in ("learning_rate", "weight_decay", "momentum", "cosine")))


def settings(
    learning_rates: tuple[float, ...],
    weight_decays: tuple[float, ...],
    momenta: tuple[float, ...],
    schedules: tuple[str, ...] = ("linear", "cosine"),
) -> list[dict[str, float]]:
    """Return the grid of settings as theta's entries; `cosine` is 1 for cosine decay, 0 for linear."""
    return [
        {"learning_rate": lr, "weight_decay": decay, "momentum": momentum, "cosine": float(s == "cosine")}
        for lr, decay, momentum, s in product(learning_rates, weight_decays, momenta, schedules)
    ]


def decayed(theta: Tensors, progress: Tensor) -> Tensor:
    """Return the learning rate at `progress`: 2 % linear warm-up, then linear or cosine decay to 0.

    The rate of a step is taken at the step's end, so the last step of a training moves nothing.
    """
    cosine = 0.5 + 0.5 * torch.cos(pi * progress)
    decay = theta["cosine"] * cosine + (1 - theta["cosine"]) * (1 - progress)
    return theta["learning_rate"] * (progress / WARMUP).clamp(max=1.0) * decay


def _adam_state(params: Tensors) -> Tensors:
    state = {f"{name}/mean": torch.zeros_like(p) for name, p in params.items()}
    state |= {f"{name}/square": torch.zeros_like(p) for name, p in params.items()}
    return state | {"step": torch.zeros((), dtype=next(iter(params.values())).dtype)}


@dataclass(frozen=True, slots=True)
class AdamWRule:
    """AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW: decay on every tensor; momentum is beta 1.

    Attributes:
        second: beta 2.
        epsilon: added to the root of the second moment.
    """

    second: float = 0.999
    epsilon: float = 1e-8

    def init_state(self, params: Tensors) -> Tensors:
        """Return the moments before the first step."""
        return _adam_state(params)

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor, step: int
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state)."""
        rate = decayed(theta, progress)
        taken = state["step"] + 1
        updates, after = {}, {"step": taken}
        for name, g in grads.items():
            mean = torch.lerp(g, state[f"{name}/mean"], theta["momentum"])
            square = torch.lerp(g.square(), state[f"{name}/square"], self.second)
            root = (square / (1 - self.second**taken)).sqrt() + self.epsilon
            direction = mean / (1 - theta["momentum"] ** taken) / root
            updates[name] = -rate * (direction + theta["weight_decay"] * params[name])
            after |= {f"{name}/mean": mean, f"{name}/square": square}
        return updates, after


@dataclass(frozen=True, slots=True)
class MuonRule:
    """Muon (Jordan et al. 2024) as timm's with nesterov=True and its other defaults; momentum is Muon's.

    Every tensor that `orthogonalises` holds for, flattened to rows, moves by the orthogonalised Nesterov
    momentum times 0.2 sqrt(max(rows, columns)) (Liu et al. 2025); the others by AdamW with betas .9 and .95.
    Unlike timm's, the Newton-Schulz iteration runs in the tensors' own precision, not in bfloat16, and the
    others stay with AdamW beside Nesterov momentum, where timm turns to NAdamW.

    Attributes:
        first: beta 1 of the other tensors.
        second: beta 2 of the other tensors.
    """

    first: float = 0.9
    second: float = 0.95

    def init_state(self, params: Tensors) -> Tensors:
        """Return the moments before the first step."""
        return _adam_state(params)

    def __call__(
        self, theta: Tensors, params: Tensors, grads: Tensors, state: Tensors, progress: Tensor, step: int
    ) -> tuple[Tensors, Tensors]:
        """Return (updates, state)."""
        others = {name: g for name, g in grads.items() if not orthogonalises(tuple(g.shape))}
        updates, after = AdamWRule(self.second)(
            theta | {"momentum": torch.full_like(theta["momentum"], self.first)},
            params,
            others,
            state,
            progress,
            step,
        )
        rate = decayed(theta, progress)
        for name, g in grads.items():
            if name in others:
                continue
            mean = torch.lerp(g, state[f"{name}/mean"], theta["momentum"])
            ahead = torch.lerp(g, mean, theta["momentum"]).flatten(1)
            scale = 0.2 * max(ahead.shape) ** 0.5
            direction = scale * newton_schulz(ahead).reshape(g.shape)
            updates[name] = -rate * (direction + theta["weight_decay"] * params[name])
            after |= {f"{name}/mean": mean, f"{name}/square": state[f"{name}/square"]}
        return updates, after


def orthogonalises(shape: tuple[int, ...]) -> bool:
    """Return whether Muon moves a tensor of `shape`, by timm's rule: no vector, depthwise or thin one."""
    if len(shape) < 2 or 1 in shape[:2]:
        return False
    short, long = sorted((shape[0], prod(shape[1:])))
    return short >= 4 and long <= 128 * short


def newton_schulz(matrix: Tensor) -> Tensor:
    """Return the matrix (rows, columns) with its singular values pushed towards 1 by five quintic steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.vector_norm(x).clamp(min=1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
