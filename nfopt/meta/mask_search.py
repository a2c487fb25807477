"""Search by trained loss: the mask network's gain and shares follow what masked nets really come to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.meta.mask_tasks import MaskTask
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.pruning import PruningMask, select
from nfopt.pruning.copies import MaskedCopies, score_copies, train_copies
from nfopt.pruning.neural import TENSOR_INPUTS, MaskNetwork, read_model, scores_of, weighed
from nfopt.seeds import derive_seed, generator

SEARCHED = 1 + len(TENSOR_INPUTS)
"""Numbers that are searched: the gain of the ranking, and the weights of the allocation."""


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Evolution strategies with antithetic pairs and common random numbers.

    Attributes:
        generations: steps.
        pairs: antithetic pairs in each.
        tasks_each: tasks on which a generation is tried, drawn anew for each.
        sigma: standard deviation of the perturbations.
        step: length of the first step, falling to zero along a line; of the order of sigma.
        densities: kept fractions at which every candidate is trained.
        seed: of everything random.
    """

    generations: int = 12
    pairs: int = 5
    tasks_each: int = 2
    sigma: float = 0.3
    step: float = 0.3
    densities: tuple[float, ...] = (0.08, 0.03)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.generations < 0 or min(self.pairs, self.tasks_each) < 1 or min(self.sigma, self.step) <= 0:
            raise NfoptError(
                f"a search needs generations >= 0, pairs and tasks_each >= 1, sigma and step > 0, not {self}."
            )
        if not self.densities or not all(0 < d <= 1 for d in self.densities):
            raise NfoptError(f"a search needs densities in (0, 1], not {self.densities}.")


def numbers_of(network: MaskNetwork) -> Float[Tensor, " numbers"]:
    """Return what is searched of a network: its gain, then its allocation."""
    return torch.cat([network.gain.detach().reshape(1), network.allocation.detach()]).clone()


def with_numbers(network: MaskNetwork, numbers: Float[Tensor, " numbers"]) -> MaskNetwork:
    """Put `numbers` into `network`, in place, and return it."""
    with torch.no_grad():
        network.gain.copy_(numbers[0])
        network.allocation.copy_(numbers[1:])
    return network


def trained_losses(
    network: MaskNetwork,
    task: MaskTask,
    seed: int,
    candidates: Sequence[Float[Tensor, " numbers"]],
    densities: Sequence[float],
    *,
    progress: ProgressCallback = silent,
) -> Float[Tensor, "candidates densities"]:
    """Return the log validation loss that the net of a seed comes to under each candidate's mask.

    All candidates and densities are trained side by side, from the same weights, on the same batches.
    """
    context = task.context(seed, task.spec())
    config = network.config
    inputs = read_model(context, look_ahead_steps=config.look_ahead_steps, look_ahead_lr=config.look_ahead_lr)
    with torch.no_grad():
        raw = network.raw_ranking(inputs)
    masks = []
    for numbers in candidates:
        proposal = weighed(inputs, raw, numbers[0], numbers[1:])
        for density in densities:
            worth = scores_of(replace(context, density=density), proposal, config.rounds)
            masks.append(PruningMask.for_model(context.model, select(worth, density)))
    training = replace(task.training, seed=derive_seed("mask", "search", seed) % 2**31)
    copies = MaskedCopies.of([context.model] * len(masks), masks)
    trained = train_copies(copies, task.data(), training, progress=progress, task=f"train {task.source}")
    losses = [score.loss for score in score_copies(trained, task.data().val)]
    return torch.tensor(losses).reshape(len(candidates), len(densities)).clamp(1e-6, 1e3).log()


def search(
    network: MaskNetwork,
    tasks: Mapping[str, MaskTask],
    config: SearchConfig,
    start: Mapping[str, object] | None = None,
    *,
    keep: Callable[[dict[str, object]], None] = lambda state: None,
    progress: ProgressCallback = silent,
) -> Float[Tensor, " numbers"]:
    """Return better numbers for `network`, which is not changed: the mean of the second half of the way.

    A generation draws tasks, a fresh net of each, and directions e; with L the log validation loss after
    training, the numbers take a step along -sum (L(x + sigma e) - L(x - sigma e)) e, each task's differences
    divided by their root mean square. Source: Salimans et al. 2017 (arXiv:1703.03864), section 2.1.

    Args:
        network: whose ranking head stays as it is.
        tasks: what is trained.
        config: generations, pairs and steps.
        start: a state that `keep` was given, to go on from.
        keep: is given the state after every generation.
        progress: hears of every generation.
    """
    x = numbers_of(network)
    done, total = 0, torch.zeros_like(x)
    if start is not None:
        x, total, done = (
            torch.as_tensor(start["x"]),
            torch.as_tensor(start["total"]),
            int(str(start["done"])),
        )
    half = config.generations // 2
    names = list(tasks)
    for number in range(done, config.generations):
        draw = generator("mask", "generation", config.seed, number)
        e = torch.randn(config.pairs, len(x), generator=draw)
        candidates = [*(x + config.sigma * e), *(x - config.sigma * e)]
        direction = torch.zeros_like(x)
        for place in torch.randperm(len(names), generator=draw)[: config.tasks_each].tolist():
            seed = derive_seed("mask", "net", config.seed, number) % 2**31
            losses = trained_losses(network, tasks[names[place]], seed, candidates, config.densities)
            plus, minus = losses.mean(1).chunk(2)
            slope = plus - minus
            direction -= (slope / slope.square().mean().sqrt().clamp(min=1e-12)) @ e / config.pairs
        length = config.step * (1 - number / config.generations)
        x = x + length * direction / direction.norm().clamp(min=1e-12)
        if number >= half:
            total = total + x
        keep({"x": x, "total": total, "done": number + 1})
        progress(
            Progress("search by trained loss", number + 1, config.generations, f"gain {float(x[0]):.2f}")
        )
    return total / (config.generations - half) if config.generations else x
