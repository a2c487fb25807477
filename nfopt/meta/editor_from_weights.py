"""Editing from weights alone towards one known shift: proposers trained on a zoo, and what they are held to.

The setting of Navon et al. 2023 (arXiv:2301.12780), section 7: the shift is seen in training only; at
deployment nothing of the target is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nfopt.data import Split
from nfopt.editing.editor import NetForward
from nfopt.errors import NfoptError
from nfopt.meta.editor_nets import descend_side_by_side
from nfopt.meta.editor_proposers import Changes, Proposer
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.seeds import generator
from nfopt.zoo import Zoo


@dataclass(frozen=True, eq=False)
class ShiftedPairs:
    """Images of a shifted domain by class; each net tells two classes apart.

    Attributes:
        images: as nets take them.
        by_class: the numbers of the images of each class.
    """

    images: Float[Tensor, "images channels height width"]
    by_class: tuple[Int[Tensor, " images"], ...]

    @classmethod
    def of(cls, split: Split, classes: int) -> "ShiftedPairs":
        """Return the images of a split by class."""
        return cls(split.images, tuple(torch.nonzero(split.labels == c).flatten() for c in range(classes)))

    def draw(
        self, pairs: Int[Tensor, "nets 2"], count: int, draw: torch.Generator
    ) -> tuple[Tensor, Int[Tensor, "nets images"]]:
        """Return for each net `count` images of its classes, half of each, and labels 0 and 1."""
        labels = torch.arange(count) % 2
        index = torch.empty(len(pairs), count, dtype=torch.long)
        for net, pair in enumerate(pairs.tolist()):
            for side, label in enumerate(pair):
                pool = self.by_class[label]
                chosen = torch.randint(0, len(pool), (int((labels == side).sum()),), generator=draw)
                index[net, labels == side] = pool[chosen].cpu()
        device = self.images.device
        return self.images[index.to(device)], labels.expand(len(pairs), -1).to(device)


@dataclass(frozen=True)
class ProposerTraining:
    """How a proposer is trained: AdamW with cosine decay, chosen by validation nets.

    Attributes:
        total_steps: optimizer steps.
        nets: nets per step.
        images: images per net and step.
        lr: learning rate at the start.
        weight_decay: of AdamW.
        permute: whether each step renumbers the nets' neurons at random (for proposers blind to symmetry).
        check_every: steps between looks at the validation nets.
    """

    total_steps: int = 300
    nets: int = 8
    images: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-3
    permute: bool = False
    check_every: int = 50

    def __post_init__(self) -> None:
        for name in ("total_steps", "nets", "images", "check_every"):
            if getattr(self, name) < 1:
                raise NfoptError(f"{name} of a proposer's training must be 1 or more.")


def train_proposer(
    name: str,
    proposer: Proposer,
    module: nn.Module,
    train: Zoo,
    val: Zoo,
    pictures: ShiftedPairs,
    config: ProposerTraining,
    seed: int,
    progress: ProgressCallback = silent,
) -> float:
    """Train a proposer, leave in it the weights that were best on validation nets; return its loss there."""
    forward = NetForward(module, many=True)
    trained = [weight for weight in proposer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, config.lr, weight_decay=config.weight_decay)
    best, kept = float("inf"), {n: v.clone() for n, v in proposer.state_dict().items()}
    for step in range(config.total_steps + 1):
        if step % config.check_every == 0 or step == config.total_steps:
            with torch.no_grad():
                draw = generator(seed, "validation")
                loss = float(_loss(proposer, forward, val, torch.arange(len(val)), pictures, 64, draw))
            if loss < best:
                best, kept = loss, {n: v.clone() for n, v in proposer.state_dict().items()}
            progress(Progress(f"train {name}", step, config.total_steps, f"validation loss {best:.4f}"))
            if step == config.total_steps:
                break
        draw = generator(seed, "step", step)
        chosen = torch.randint(0, len(train), (config.nets,), generator=draw)
        nets = permuted(train, chosen, draw) if config.permute else train.subset(chosen)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 + cos(pi * step / config.total_steps)) / 2
        optimizer.zero_grad()
        _loss(proposer, forward, nets, torch.arange(len(nets)), pictures, config.images, draw).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    proposer.load_state_dict(kept)
    return best


def permuted(zoo: Zoo, chosen: Tensor, draw: torch.Generator) -> Zoo:
    """Return some nets with their neurons renumbered at random, each in its own way."""
    nets = [zoo.spec.act(zoo.spec.sample(draw), zoo.net(int(i))) for i in chosen]
    tensors = {name: torch.stack([net[name] for net in nets]) for name in nets[0]}
    part = zoo.subset(chosen)
    return Zoo(zoo.spec, tensors, part.facts, part.side, zoo.card)


def _loss(
    proposer: Proposer,
    forward: NetForward,
    zoo: Zoo,
    index: Tensor,
    pictures: ShiftedPairs,
    count: int,
    draw: torch.Generator,
) -> Tensor:
    tensors = {name: tensor[index] for name, tensor in zoo.tensors.items()}
    images, labels = pictures.draw(zoo.fact("classes")[index], count, draw)
    changes = proposer(tensors)
    logits, _ = forward({name: tensors[name] + changes[name] for name in tensors}, images)
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def accuracies(
    module: nn.Module, zoo: Zoo, tensors: Mapping[str, Tensor], pictures: ShiftedPairs, limit: int = 200
) -> Float[Tensor, " nets"]:
    """Return each net's accuracy, in [0, 1], on up to `limit` images of each of its two classes."""
    forward = NetForward(module)
    found = []
    for net, pair in enumerate(zoo.fact("classes").tolist()):
        own = {name: tensor[net] for name, tensor in tensors.items()}
        index = torch.cat([pictures.by_class[label][:limit] for label in pair])
        labels = torch.cat(
            [torch.full((len(pictures.by_class[label][:limit]),), side) for side, label in enumerate(pair)]
        )
        logits, _ = forward(own, pictures.images[index])
        found.append((logits.argmax(1).cpu() == labels).double().mean())
    return torch.stack(found)


def finetuned(
    module: nn.Module,
    zoo: Zoo,
    pictures: ShiftedPairs,
    *,
    total_steps: int,
    lr: float,
    seed: int,
    shots: int | None = None,
    images: int = 32,
    after_step: Callable[[], None] = lambda: None,
) -> Changes:
    """Return the tensors of nets that were each fine-tuned on the shifted images of their classes.

    Args:
        module: the architecture.
        zoo: the nets.
        pictures: shifted images.
        total_steps: Adam steps.
        lr: learning rate at the start.
        seed: of the batches.
        shots: images per class that a net sees; None for all.
        images: images per net and step.
        after_step: told of every step.
    """
    pool = pictures
    if shots is not None:
        first = tuple(index[:shots] for index in pictures.by_class)
        pool = ShiftedPairs(pictures.images, first)
    draw = generator(seed, "finetune", str(shots))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(total_steps):
            yield pool.draw(zoo.fact("classes"), images, draw)
            after_step()

    forward = NetForward(module, many=True)
    return descend_side_by_side(forward, zoo.tensors, batches(), total_steps=total_steps, lr=lr)
