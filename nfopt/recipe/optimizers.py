"""Optimizers that a recipe can name: options with their schedule, and how each is built."""

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, JsonValue, SerializeAsAny, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError
from timm.optim.muon import Muon
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import nfopt
from nfopt.checkpoints import digest_of
from nfopt.errors import unknown_name
from nfopt.optim import NFOptimizer
from nfopt.optim.rule_checkpoint import read_rule
from nfopt.recipe.source import KeyPath
from nfopt.recipe.strict import Fraction, NonNegative, Positive, Strict, fault_at
from nfopt.registry import Registry
from nfopt.training import Optimization

Parameters = Any


class OptimizerOptions(Strict):
    """What every optimizer of a recipe has.

    Attributes:
        name: the optimizer's name in `OPTIMIZERS`.
        label: how tables and plots call it; None for its key in the recipe.
        tune: values to try by option; the combination with the best mean validation loss counts.
    """

    name: str
    label: str | None = None
    tune: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)]] = Field(default={})

    def build(self, model: nn.Module, example_inputs: tuple[Tensor, ...], total_steps: int) -> Optimization:
        """Return the optimizer over all parameters of `model` with its schedule over `total_steps`."""
        raise NotImplementedError

    def weight_hashes(self) -> dict[str, str]:
        """Return the hash of every file of learned weights that these options stand for, by name."""
        return {}

    def fingerprint(self) -> str:
        """Return what a training's numbers depend on beside the options and the installed libraries."""
        return ""

    def check_installed(self) -> None:
        """Raise RecipeError if the optimizer's library is not installed."""

    def varied(self, **values: JsonValue) -> Self:
        """Return these options with some values changed and nothing left to tune."""
        return type(self).model_validate(self.model_dump(mode="json") | {"tune": {}} | values)

    def candidates(self) -> list[Self]:
        """Return the options of every combination in `tune`; without `tune`, these options alone."""
        combinations = product(*self.tune.values())
        return [self.varied(**dict(zip(self.tune, values, strict=True))) for values in combinations]

    @model_validator(mode="after")
    def _every_candidate_is_valid(self) -> Self:
        faults: list[tuple[KeyPath, str]] = []
        for key in self.tune:
            if key not in _tunable(type(self)):
                faults.append((("tune", key), str(unknown_name("option to tune", key, _tunable(type(self))))))
        if not faults and self.tune:
            try:
                self.candidates()
            except ValidationError as error:
                faults = [(("tune", *details["loc"]), details["msg"]) for details in error.errors()]
        if faults:
            raise fault_at(type(self).__name__, self.tune, *faults)
        return self


def _tunable(options: type[OptimizerOptions]) -> list[str]:
    return [key for key in options.model_fields if key not in ("name", "label", "tune")]


OPTIMIZERS: Registry[type[OptimizerOptions]] = Registry("optimizer")


def _by_name(value: Any, _: Any) -> OptimizerOptions:
    if isinstance(value, OptimizerOptions):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise PydanticCustomError("fault", "must be a mapping with the name of an optimizer.")
    if value["name"] not in OPTIMIZERS:
        message = str(unknown_name("optimizer", value["name"], OPTIMIZERS))
        raise fault_at("optimizer", value, (("name",), message))
    return OPTIMIZERS[value["name"]].model_validate(value)


OptimizerChoice = Annotated[SerializeAsAny[OptimizerOptions], WrapValidator(_by_name)]


def schedule_factor(shape: str, warmup: float, total_steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate at each step.

    Args:
        shape: "constant", "linear" or "cosine": from 1 to 0 over what follows the warm-up.
        warmup: share of the steps over which the factor rises linearly to 1, in [0, 1].
        total_steps: steps in all.
    """
    rising = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = min((step - rising) / max(total_steps - rising, 1), 1.0)
        match shape:
            case "linear":
                return 1 - progress
            case "cosine":
                return (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    return factor


class Scheduled(OptimizerOptions):
    """An optimizer that needs a learning-rate schedule from outside."""

    lr: Positive
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0

    def optimizer(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return the optimizer without its schedule."""
        raise NotImplementedError

    def build(self, model: nn.Module, example_inputs: tuple[Tensor, ...], total_steps: int) -> Optimization:
        """Return the optimizer with a LambdaLR; both are restored from their state_dicts."""
        optimizer = self.optimizer(model.parameters())
        factor = schedule_factor(self.schedule, self.warmup, total_steps)
        return Optimization(optimizer, LambdaLR(optimizer, factor))


@OPTIMIZERS.register("nfopt")
class NFOptions(OptimizerOptions):
    """nfopt's own optimizer: no learning rate to tune, a schedule of its own."""

    lr: Positive = 1.0
    weight_decay: NonNegative | None = None
    checkpoint: str = "default"
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_dtype: Literal["float32", "bfloat16"] = "float32"
    fused: bool = False

    def weight_hashes(self) -> dict[str, str]:
        """Return the hash of the rule's weights; a rule without weights has none."""
        _, theta, _ = read_rule(self.checkpoint)
        return {f"checkpoint {self.checkpoint}": digest_of(theta)} if theta else {}

    def fingerprint(self) -> str:
        """Return a hash of the rule's weights and of the code that computes its steps."""
        return f"{self.weight_hashes()} {_code_of_the_rule()}"

    def build(self, model: nn.Module, example_inputs: tuple[Tensor, ...], total_steps: int) -> Optimization:
        """Return an NFOptimizer whose symmetry is traced with the example inputs."""
        return Optimization(
            NFOptimizer(
                model,
                total_steps,
                lr=self.lr,
                weight_decay=self.weight_decay,
                checkpoint=self.checkpoint,
                example_inputs=example_inputs,
                state_dtype=_half(self.state_dtype),
                matmul_dtype=_half(self.matmul_dtype),
                fused=self.fused,
            )
        )


def _half(name: str) -> torch.dtype | None:
    return torch.bfloat16 if name == "bfloat16" else None


@lru_cache(maxsize=1)
def _code_of_the_rule() -> str:
    package = Path(nfopt.__file__).parent
    digest = hashlib.sha256()
    for folder in ("optim", "nn", "weightspace", "symmetry"):
        for file in sorted((package / folder).rglob("*.py")):
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@OPTIMIZERS.register("adamw")
class AdamWOptions(Scheduled):
    """torch.optim.AdamW; `foreach` null is torch's own choice of loop."""

    lr: Positive = 1e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.01
    foreach: bool | None = None

    def optimizer(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return an AdamW."""
        return torch.optim.AdamW(
            parameters,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            foreach=self.foreach,
        )


@OPTIMIZERS.register("sgd")
class SGDOptions(Scheduled):
    """torch.optim.SGD with Nesterov momentum."""

    lr: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 0.0

    def optimizer(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return an SGD."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )


@OPTIMIZERS.register("muon")
class MuonOptions(Scheduled):
    """timm's Muon: orthogonalised momentum for matrices and flattened convolutions, AdamW for the rest.

    Its five Newton-Schulz steps are computed in bfloat16 with timm's "quintic" coefficients.
    """

    lr: Positive = 1e-3
    momentum: Fraction = 0.95
    weight_decay: NonNegative = 0.0

    def optimizer(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return a timm Muon."""
        return Muon(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True
        )
