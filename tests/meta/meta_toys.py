"""Toy rules and inner problems whose meta-gradients are known."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nfopt.meta.estimator import PES
from nfopt.meta.family import TaskFamily
from nfopt.meta.objective import Objective
from nfopt.meta.outer import OuterConfig
from nfopt.meta.slot import SlotSettings
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.trainer import MetaTrainer, TrainerConfig
from nfopt.meta.unroll import InnerState, Unrolled, Vmapped
from nfopt.meta.workers import Workers


class MomentumRule:
    """SGD with momentum; theta is (log step, logit of the decay rate, an output that starts at zero)."""

    def init_theta(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {
            "log_step": torch.tensor(-1.0, dtype=dtype),
            "decay": torch.tensor([1.5], dtype=dtype),
            "output": torch.zeros(2, dtype=dtype),
        }

    def init_state(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in params.items()} | {"count": torch.zeros(())}

    def __call__(self, theta, params, grads, state, progress, step):
        rate = torch.sigmoid(theta["decay"][0])
        size = torch.exp(theta["log_step"] + theta["output"][0] + progress * theta["output"][1])
        momenta = {name: rate * state[name] + (1 - rate) * g for name, g in grads.items()}
        updates = {name: -(1.05 - progress) * size * m for name, m in momenta.items()}
        return updates, momenta | {"count": state["count"] + 1}


def momentum_theta(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ThetaLayout]:
    theta = MomentumRule().init_theta(dtype)
    layout = ThetaLayout.of(theta)
    return layout.flatten(theta), layout


@dataclass
class DescentOnQuadratic:
    """x <- x - theta x from x = 1, losses x^2 / 2 after every step: all meta-gradients by hand.

    `even` makes the loss symmetric about theta = 0; `broken` copies report a non-finite loss.
    """

    horizon: int = 6
    instance_count: int = 4
    kind: str = "descent"

    def start(self) -> InnerState:
        return InnerState({"x": torch.ones(self.instance_count, dtype=torch.float64)}, {}, 0)

    def run(self, theta: Tensor, state: InnerState, steps: int, *, differentiable: bool = False) -> Unrolled:
        x = state.params["x"]
        losses = torch.zeros_like(x)
        with torch.set_grad_enabled(differentiable):
            for _ in range(steps):
                if self.kind == "even":
                    losses = losses + theta[:, 0].square()
                else:
                    x = x - theta[:, 0] * x
                    losses = losses + x.square() / 2
        failed = torch.zeros(len(x), dtype=torch.bool)
        return Unrolled(losses, failed, InnerState({"x": x}, {}, state.step + steps), losses[None])

    def full_gradient(self, theta: float) -> float:
        """d/dtheta of sum_t (1 - theta)^(2t) / 2."""
        return -sum(t * (1 - theta) ** (2 * t - 1) for t in range(1, self.horizon + 1))


def tiny_trainer(folder: Path, workers: Workers) -> MetaTrainer:
    """A meta-training of four outer steps of three slots, with the momentum rule."""
    family = TaskFamily(
        sources=("digits",),
        kinds=(("mlp", 1.0),),
        widths=(5, 7),
        depths=(1, 1),
        batch_images=(8, 8),
        horizon=(7, 9),
    )
    nominal, layout = momentum_theta()
    rule = Vmapped(MomentumRule())
    settings = SlotSettings(
        family, lambda task: rule, layout, PES(truncation=5), Objective(every=5), nominal, 4, 0.5, 0
    )
    return MetaTrainer(settings, TrainerConfig(OuterConfig(4), 3, 2, 9), folder, workers=workers)
