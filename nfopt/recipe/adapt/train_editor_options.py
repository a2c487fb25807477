"""What recipes say about nets to edit: their architecture and training, and the domains they are seen in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from nfopt.data import ImageData, Split
from nfopt.editing import Domain
from nfopt.errors import RecipeError
from nfopt.meta.editor_nets import stacked_state, train_in_turn, train_side_by_side
from nfopt.meta.editor_tasks import CLEAN
from nfopt.progress import ProgressCallback
from nfopt.recipe.inputs import DataOptions, ModelOptions
from nfopt.recipe.strict import Count, Positive, Strict
from nfopt.seeds import derive_seed, generator
from nfopt.statefile import load_state, save_state


class NetsOptions(Strict):
    """Nets of one architecture.

    Attributes:
        model: the architecture.
        train: number of nets that the editor learns on.
        val: number of nets that choose among editors.
        total_steps: Adam steps of their training, cosine decay.
        batch_size: images per net and step.
        lr: learning rate at the start.
        in_turn: whether they are trained one after the other: on CPUs faster for all but the smallest.
    """

    model: ModelOptions
    train: Count = 16
    val: Count = 4
    total_steps: Count = 200
    batch_size: Count = 64
    lr: Positive = 1e-2
    in_turn: bool = False


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images in [0, 1] with the source's mean and deviation: a corruption comes before standardising."""

    data: ImageData
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, options: DataOptions) -> "Pictures":
        """Load the data set of a recipe."""
        data = options.model_copy(update={"standardize": False}).load()
        clamped = [replace(s, images=s.images.clamp(0, 1)) for s in (data.train, data.val, data.test)]
        mean = data.train.images.mean((0, 2, 3), keepdim=True)
        deviation = data.train.images.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
        return cls(ImageData(data.name, *clamped, classes=data.classes), mean, deviation)

    def prepared(self, split: Split) -> Split:
        """Return the split as nets take it."""
        return replace(split, images=(split.images - self.mean) / self.deviation)

    def in_domains(self, split: Split, domains: Iterable[str], seed: int) -> dict[str, Split]:
        """Return the split as each domain shows it, and clean, prepared for nets."""
        found = {}
        for name in dict.fromkeys([CLEAN, *domains]):
            domain = Domain.parse(name)
            images = domain(split.images, generator(seed, "domain", name))
            found[name] = self.prepared(replace(split, images=images))
        return found


def halves(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Return `share` of a split and the rest, drawn at random.

    Raises:
        RecipeError: one of the parts is empty.
    """
    order = torch.randperm(len(split), generator=generator(seed, "halves"))
    count = round(share * len(split))
    if not 0 < count < len(split):
        raise RecipeError(
            f"{share:g} of {len(split)} images leaves none on one side. Give another share, or more images."
        )
    return split[order[:count]], split[order[count:]]


def trained_nets(
    options: NetsOptions,
    pictures: Pictures,
    split: Split,
    count: int,
    seed: int,
    file: Path | None,
    device: torch.device,
    progress: ProgressCallback,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the architecture and `count` trained nets, [nets, *shape], kept in `file`."""
    modules = [
        options.model.build(pictures.data, derive_seed(seed, "net", number)).eval() for number in range(count)
    ]
    template = modules[0].to(device).requires_grad_(False)
    if file is not None and file.exists():
        return template, load_state(file, device)
    prepared = pictures.prepared(split).to(device)
    batch_size = min(options.batch_size, len(split))
    how = {"total_steps": options.total_steps, "lr": options.lr, "seed": seed}
    if options.in_turn:
        fresh = [module.to(device) for module in modules]
        tensors = train_in_turn(fresh, prepared, batch_size=batch_size, progress=progress, **how)
    else:
        initial = {name: tensor.to(device) for name, tensor in stacked_state(modules).items()}
        tensors = train_side_by_side(
            template, initial, prepared, batch_size=batch_size, progress=progress, **how
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise RecipeError(f"the training of nets {options.model.name} diverged; give them a smaller lr.")
    if file is not None:
        save_state(file, tensors)
    return template, tensors


def single_nets(
    template: nn.Module, build: Sequence[nn.Module], tensors: dict[str, Tensor]
) -> list[nn.Module]:
    """Return the nets of stacked tensors as modules."""
    for index, module in enumerate(build):
        module.load_state_dict({name: value[index] for name, value in tensors.items()}, strict=False)
        module.to(next(template.parameters()).device).eval().requires_grad_(False)
    return list(build)


class TaskOptions(Strict):
    """Numbers of target images in training, of images to judge by, and how one-sided the targets are."""

    images: tuple[Count, ...] = Field(default=(16, 64), min_length=1)
    test_images: Count = 64
    one_sided: float = Field(default=0.1, ge=0, le=1)
    few_classes: Count = 2
    shots: Count = 3
