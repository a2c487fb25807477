"""Zoos of image classifiers: one architecture, every net with its own hyper-parameters, data and length."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from math import exp, log

import torch
from torch import Tensor, nn

from nfopt.data import ImageData, Split
from nfopt.seeds import generator
from nfopt.symmetry import trace_permutation_spec
from nfopt.zoo.machine import Machine
from nfopt.zoo.members import Members
from nfopt.zoo.runs import Kept, Run, train_runs
from nfopt.zoo.zoo import Zoo, ZooError, stack_nets

MEASURED_IMAGES = 256
Range = tuple[float, float]


@dataclass(frozen=True)
class HyperRanges:
    """What the runs of a zoo draw, each log-uniformly from [least, largest].

    Attributes:
        learning_rate: of AdamW.
        init_scale: factor on the initial weights of torch's own initialisation.
        weight_decay: of AdamW, decoupled.
        train_share: share of the training images that a run sees.
        steps: length of a run in optimizer steps.
    """

    learning_rate: Range = (3e-4, 3e-2)
    init_scale: Range = (0.3, 3.0)
    weight_decay: Range = (1e-4, 1.0)
    train_share: Range = (0.03, 1.0)
    steps: tuple[int, int] = (60, 400)

    def __post_init__(self) -> None:
        for name, (low, high) in vars(self).items():
            if not 0 < low <= high:
                raise ZooError(f"{name} is a range [least, largest] of positive numbers, not {[low, high]}.")
        if self.train_share[1] > 1:
            raise ZooError(f"train_share is a share of at most 1, not {self.train_share[1]}.")

    def draw(self, generator: torch.Generator) -> dict[str, float]:
        """Return one value of each."""
        uniform = torch.rand(len(vars(self)), generator=generator, dtype=torch.float64).tolist()
        drawn = {}
        for u, (name, (low, high)) in zip(uniform, vars(self).items(), strict=True):
            drawn[name] = exp(log(low) + u * (log(high) - log(low)))
        return drawn | {"steps": round(drawn["steps"])}


def classifiers(
    data: ImageData,
    members: Members,
    model: Callable[[], nn.Module],
    *,
    seed: int,
    ranges: HyperRanges | None = None,
    checkpoints: tuple[float, ...] = (0.1, 0.4, 1.0),
    batch_images: int = 64,
    test_images: int = 2000,
    machine: Machine | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Zoo:
    """Train classifiers of all classes of a data set and keep each at several points of its run.

    As the Small CNN Zoo of "Predicting Neural Network Accuracy from Weights" (Unterthiner et al. 2020), but
    without dropout and with one optimizer.

    Args:
        data: images; all runs are tested on the same ones of the test split.
        members: the runs. All nets of a run lie on its side.
        model: makes the architecture, initialised from torch's global generator, which is seeded for it.
        seed: seed of everything that the runs draw.
        ranges: what they draw from.
        checkpoints: shares of a run's length at which it is kept, ascending, in [0, 1].
        batch_images: images per batch, drawn with replacement.
        test_images: number of test images, or all if there are fewer.
        machine: where to train.
        report: hears how many runs are done.

    Returns:
        A zoo of len(members) x len(checkpoints) nets, those of a run next to each other, with the facts run
        (its number on its side), learning_rate, init_scale, weight_decay, train_share, run_steps, steps,
        train_loss, test_accuracy and diverged (0 or 1).

    Raises:
        ZooError: the checkpoints or the numbers of images make no sense, or the model has buffers.
    """
    ranges, prototype = ranges or HyperRanges(), _made(model, generator(seed, "prototype"))
    _check_checkpoints(checkpoints)
    tested = _first(data.test, test_images, generator(seed, "test images"))
    runs, drawn = [], []
    for side, number in members.names:
        values = ranges.draw(generator(seed, side, number, "hyper-parameters"))
        draws = generator(seed, side, number, "images")
        count = max(1, round(values["train_share"] * len(data.train)))
        pool = torch.randperm(len(data.train), generator=draws)[:count]
        runs.append(
            Run(
                _start(model, values["init_scale"], seed, side, number),
                values["learning_rate"],
                values["weight_decay"],
                _batches(pool, int(values["steps"]), batch_images, draws),
                _points(checkpoints, int(values["steps"])),
                pool[torch.arange(MEASURED_IMAGES) % count],
                tested,
            )
        )
        drawn.append({("run_steps" if name == "steps" else name): value for name, value in values.items()})
    kept = train_runs(prototype, data.train, data.test, runs, machine, report)
    facts = {
        name: torch.tensor([d[name] for d in drawn]).repeat_interleave(len(checkpoints)) for name in drawn[0]
    }
    about = {"family": "classifiers", "ranges": asdict(ranges)}
    return _zoo(data, members, prototype, kept, facts, seed, about, checkpoints, batch_images)


def binary_classifiers(
    data: ImageData,
    members: Members,
    model: Callable[[], nn.Module],
    *,
    seed: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    steps: int = 300,
    batch_images: int = 64,
    test_images: int = 1000,
    machine: Machine | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Zoo:
    """Train classifiers of two random classes each, with independent seeds and equal hyper-parameters.

    The nets that are adapted to another domain in Navon et al. 2023.

    Args:
        data: images; output 0 of a net is the first of its two classes.
        members: the nets.
        model: makes the architecture, of two outputs, initialised from torch's global generator.
        seed: seed of everything that the nets draw.
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled.
        steps: optimizer steps.
        batch_images: images per batch, drawn with replacement from those of the two classes.
        test_images: number of test images of the two classes, or all if there are fewer.
        machine: where to train.
        report: hears how many nets are done.

    Returns:
        A zoo with the facts classes [nets, 2], run (its number on its side), steps, train_loss, test_accuracy
        and diverged (0 or 1).

    Raises:
        ZooError: the data have fewer than two classes with images, or the model has buffers.
    """
    prototype = _made(model, generator(seed, "prototype"))
    train_pools, test_pools = (_by_class(split, data.classes) for split in (data.train, data.test))
    present = [c for c in range(data.classes) if len(train_pools[c]) and len(test_pools[c])]
    if len(present) < 2:
        raise ZooError(f"two classes need images to train and to test; {data.name} has {len(present)}.")
    pairs = list(combinations(present, 2))
    count = min([test_images, *(len(test_pools[a]) + len(test_pools[b]) for a, b in pairs)])
    runs, classes = [], []
    for side, number in members.names:
        draws = generator(seed, side, number, "images")
        pick = torch.randperm(len(present), generator=draws)[:2].tolist()
        pair = (present[pick[0]], present[pick[1]])
        pool = torch.cat([train_pools[c] for c in pair])
        tested = torch.cat([test_pools[c] for c in pair])
        runs.append(
            Run(
                _start(model, 1.0, seed, side, number),
                learning_rate,
                weight_decay,
                _batches(pool, steps, batch_images, draws),
                (steps,),
                pool[torch.randint(len(pool), (MEASURED_IMAGES,), generator=draws)],
                tested[torch.randperm(len(tested), generator=generator(seed, *pair))[:count]],
                pair,
            )
        )
        classes.append(pair)
    kept = train_runs(prototype, data.train, data.test, runs, machine, report)
    about = {
        "family": "binary_classifiers",
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "steps": steps,
    }
    return _zoo(
        data, members, prototype, kept, {"classes": torch.tensor(classes)}, seed, about, (1.0,), batch_images
    )


def _check_checkpoints(checkpoints: tuple[float, ...]) -> None:
    if not checkpoints or sorted(set(checkpoints)) != list(checkpoints):
        raise ZooError(f"checkpoints are ascending shares of a run's length, not {list(checkpoints)}.")
    if not 0 <= checkpoints[0] <= checkpoints[-1] <= 1:
        raise ZooError(f"checkpoints are shares from 0 to 1 of a run's length, not {list(checkpoints)}.")


def _points(checkpoints: tuple[float, ...], steps: int) -> tuple[int, ...]:
    points = tuple(round(share * steps) for share in checkpoints)
    if len(set(points)) < len(points):
        raise ZooError(
            f"of a run of {steps} steps the checkpoints {list(checkpoints)} are not different steps. Take "
            "longer runs, or fewer checkpoints."
        )
    return points


def _first(split: Split, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(split), generator=generator)[:count]


def _by_class(split: Split, classes: int) -> list[Tensor]:
    return [(split.labels == c).nonzero().flatten() for c in range(classes)]


def _batches(pool: Tensor, steps: int, batch: int, generator: torch.Generator) -> Tensor:
    return pool[torch.randint(len(pool), (steps, batch), generator=generator)]


def _made(model: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Make the model from draws of `generator`, whatever torch's global one is at."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator.get_state())
        return model()


def _start(
    model: Callable[[], nn.Module], init_scale: float, seed: int, side: str, number: int
) -> dict[str, Tensor]:
    made = _made(model, generator(seed, side, number, "start"))
    return {
        name: value.detach() * (init_scale if value.ndim > 1 else 1.0)
        for name, value in made.named_parameters()
    }


def _zoo(
    data: ImageData,
    members: Members,
    prototype: nn.Module,
    kept: list[list[Kept]],
    facts: dict[str, Tensor],
    seed: int,
    about: dict[str, object],
    checkpoints: tuple[float, ...],
    batch_images: int,
) -> Zoo:
    nets = [net for run in kept for net in run]
    facts = facts | {
        "run": members.number.repeat_interleave(len(checkpoints)),
        "steps": torch.tensor([net.steps for net in nets]),
        "train_loss": torch.tensor([net.train_loss for net in nets]),
        "test_accuracy": torch.tensor([net.test_accuracy for net in nets]),
        "diverged": torch.tensor([int(net.diverged) for net in nets]),
    }
    card = {
        **about,
        "data": data.name,
        "in_shape": list(data.in_shape),
        "seed": seed,
        "architecture": str(prototype),
        "checkpoints": list(checkpoints),
        "batch_images": batch_images,
    }
    spec = trace_permutation_spec(prototype, data.train.images[:2])
    side = members.side.repeat_interleave(len(checkpoints))
    return Zoo(spec, stack_nets([net.tensors for net in nets]), facts, side, card)
