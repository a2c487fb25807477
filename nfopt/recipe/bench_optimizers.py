"""Optimizers of pytorch-optimizer that a recipe can name: SOAP and Schedule-Free AdamW."""

import importlib
from types import ModuleType
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from nfopt.errors import RecipeError
from nfopt.recipe.averaged import averaged_weights
from nfopt.recipe.optimizers import OPTIMIZERS, OptimizerOptions, Parameters, Scheduled
from nfopt.recipe.strict import Count, Fraction, NonNegative, Positive
from nfopt.training import Optimization


def _pytorch_optimizer() -> ModuleType:
    """Import pytorch-optimizer, which is slow and needed by few.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        return importlib.import_module("pytorch_optimizer")
    except ModuleNotFoundError as error:
        raise RecipeError(
            "soap and schedule_free come from pytorch-optimizer, which is not installed: "
            "pip install 'nfopt[bench]'"
        ) from error


@OPTIMIZERS.register("soap")
class SOAPOptions(Scheduled):
    """pytorch-optimizer's SOAP: Adam in the eigenbasis of Shampoo; pip install 'nfopt[bench]'.

    The defaults are the library's: a convolution has an eigenbasis for each of its four axes.
    """

    lr: Positive = 3e-3
    beta1: Fraction = 0.95
    beta2: Fraction = 0.95
    weight_decay: NonNegative = 0.01
    precondition_every: Count = 10

    def check_installed(self) -> None:
        """Raise RecipeError if pytorch-optimizer is not installed."""
        _pytorch_optimizer()

    def optimizer(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return a SOAP."""
        return _pytorch_optimizer().SOAP(
            parameters,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            precondition_frequency=self.precondition_every,
        )


@OPTIMIZERS.register("schedule_free")
class ScheduleFreeOptions(OptimizerOptions):
    """pytorch-optimizer's Schedule-Free AdamW, which takes no decay; pip install 'nfopt[bench]'."""

    lr: Positive = 2.5e-3
    beta1: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.9
    beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.0
    warmup: Fraction = 0.0

    def check_installed(self) -> None:
        """Raise RecipeError if pytorch-optimizer is not installed."""
        _pytorch_optimizer()

    def build(self, model: nn.Module, example_inputs: tuple[Tensor, ...], total_steps: int) -> Optimization:
        """Return the optimizer; losses are looked at in its average."""
        optimizer = _pytorch_optimizer().ScheduleFreeAdamW(
            model.parameters(),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            warmup_steps=round(self.warmup * total_steps),
        )
        return Optimization(optimizer, evaluating=averaged_weights(optimizer))
