"""What recipes say about masks, and how a mask is made from it; shared by the jobs that prune weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional

from nfopt.data import ImageData
from nfopt.errors import NfoptError
from nfopt.progress import Progress, ProgressCallback
from nfopt.pruning import SCORES, PruningMask, Score, find_targets, keep_masked, prune
from nfopt.pruning.select import check_scope, scope_density
from nfopt.recipe.inputs import DataOptions, ModelOptions
from nfopt.recipe.optimizers import OptimizerOptions
from nfopt.recipe.strict import Count, Strict
from nfopt.training import TrainingConfig, batch_indices, train


class MaskOptions(Strict):
    """How one mask is made: the arguments of `nfopt.pruning.prune`.

    Attributes:
        score: a name in `nfopt.pruning.SCORES`.
        scope: "global", "layer", "erk" or "N:M" (then the density is N / M).
        rounds: rounds of scoring and pruning; null for the score's own number.
        include: patterns of parameters to prune; null for all linear and convolution weights.
        exclude: patterns of parameters that stay whole.
        label: how tables call it; null for its key.
    """

    score: str = "magnitude"
    scope: str = "global"
    rounds: Count | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    label: str | None = None

    @field_validator("score")
    @classmethod
    def _is_a_score(cls, score: str) -> str:
        return _or_fault(lambda: (SCORES[score], score)[1])

    @field_validator("scope", mode="before")
    @classmethod
    def _is_quoted(cls, scope: Any) -> Any:
        if isinstance(scope, int):
            raise ValueError('without quotes YAML reads 2:4 as a number of seconds; write scope: "2:4".')
        return scope

    @field_validator("scope")
    @classmethod
    def _is_a_scope(cls, scope: str) -> str:
        return _or_fault(lambda: (check_scope(scope), scope)[1])

    @property
    def fixed_density(self) -> float | None:
        """The density that the scope fixes; None for one that leaves it open."""
        return scope_density(self.scope)

    def make(
        self,
        model: nn.Module,
        density: float,
        data: ImageData,
        *,
        batch_size: int,
        score_batches: int,
        seed: int,
        train: Callable[[nn.Module, Mapping[str, Tensor]], None] | None,
        progress: ProgressCallback,
        score: str | Score | None = None,
    ) -> PruningMask:
        """Return the mask of a model; nothing is said about empty layers, which the tables show.

        `score` stands in for the score's name where a Score was made from it.
        """
        device = next(model.parameters()).device
        batches = []
        for step in range(score_batches):
            index = batch_indices(step, images=len(data.train), batch_size=batch_size, seed=seed)
            split = data.train[index].to(device)
            batches.append((split.images, split.labels))
        return prune(
            model,
            None if self.fixed_density is not None else density,
            score or self.score,
            self.scope,
            include=self.include,
            exclude=self.exclude,
            batches=batches,
            loss=functional.cross_entropy,
            train=train,
            rounds=self.rounds,
            seed=seed,
            on_empty_layer="allow",
            progress=progress,
        )


def pattern_notes(masks: Mapping[str, MaskOptions], model: nn.Module) -> tuple[str, ...]:
    """Return for each way to make masks what its patterns match in a model; none for those without patterns.

    Raises:
        PruningError: a pattern matches nothing, said before any work is done.
    """
    found = {
        options.label or key: find_targets(model, include=options.include, exclude=options.exclude)
        for key, options in masks.items()
        if options.include is not None or options.exclude
    }
    return tuple(f"{label}: {' '.join(str(targets).split())}" for label, targets in found.items())


def _or_fault(check: Callable[[], str]) -> str:
    try:
        return check()
    except NfoptError as error:
        raise ValueError(str(error)) from error


def masked_training(
    optimizer: OptimizerOptions,
    data: ImageData,
    config: TrainingConfig,
    progress: ProgressCallback,
    task: str,
) -> Callable[[nn.Module, Mapping[str, Tensor]], None]:
    """Return the function that trains a model in place under a mask, for scores of trained weights."""

    def run(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        device = next(model.parameters()).device
        optimization = optimizer.build(model, (data.train.images[:2].to(device),), config.total_steps)
        keep_masked(optimization.optimizer, model, PruningMask.for_model(model, kept))
        train(model, data, optimization, config, progress=progress, task=task)

    return run


def build(options: ModelOptions, data: ImageData, seed: int, device: torch.device) -> nn.Module:
    """Return the model of a seed on its device, in training mode."""
    return options.build(data, seed).to(device).train()


def digest(*parts: Any) -> str:
    """Return a short hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def data_key(options: DataOptions) -> dict[str, Any]:
    """Return what of the data options the numbers depend on."""
    return options.model_dump(mode="json", exclude={"data_dir", "download"})


def report_into(
    progress: ProgressCallback, task: str, done: int, total: int, kind: Literal["masks", "trainings"]
) -> None:
    """Report how many parts of a job are done."""
    progress(Progress(task, done, total, f"{done} of {total} {kind}"))


def mask_file(folder: Path, key: str, density: float, seed: int) -> Path:
    """Return where a mask is saved."""
    return folder / "masks" / f"{key}-{density:g}-seed{seed}.safetensors"
