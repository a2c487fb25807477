"""Task: one inner training problem as pure functions, many instances of it side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nfopt.data import ImageData, Split
from nfopt.errors import NfoptError
from nfopt.meta.nets import Architecture, initial_parameters
from nfopt.meta.sources import load_source
from nfopt.seeds import derive_seed

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """What a task trains, on what, and for how long.

    Attributes:
        architecture: the network.
        source: a name of `sources.source_names()`.
        batch_images: images per inner step; at most `train_images`.
        train_images: images in the training subset, each instance drawing its own.
        validation_images: images on which the validation loss is taken.
        label_noise: share of the training labels replaced by a uniformly random class, in [0, 1).
        horizon: inner steps in a whole training.
        rescale: the largest factor s >= 1 by which an initial tensor is multiplied; each tensor of each
            instance draws its own from exp(U(-log s, log s)).
        compensate: divide the tensors by those factors again where the network reads them, so that the
            function is unchanged and only its parametrisation differs.
    """

    architecture: Architecture
    source: str = "digits"
    batch_images: int = 64
    train_images: int = 1000
    validation_images: int = 256
    label_noise: float = 0.0
    horizon: int = 200
    rescale: float = 1.0
    compensate: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.batch_images <= self.train_images:
            raise NfoptError(
                f"a task with batch_images={self.batch_images} and train_images={self.train_images}: "
                "a batch needs at least 1 image and at most the training images."
            )
        if not 0 <= self.label_noise < 1:
            raise NfoptError(f"label_noise is a share in [0, 1), not {self.label_noise}.")
        if self.horizon < 1 or self.rescale < 1:
            raise NfoptError(
                f"a task needs horizon >= 1 and rescale >= 1, not {self.horizon} and {self.rescale}."
            )


@dataclass(frozen=True, eq=False)
class Instances:
    """The random choices of a task's instances, each a function of its seed alone.

    Attributes:
        seeds: one per instance.
        train_index: (instances, train_images), into the source's training pool.
        train_labels: (instances, train_images), label noise included.
        validation_index: (instances, validation_images), into the source's validation pool.
        divisor: for each parameter, (instances,): what the network divides it by; empty when nothing is
            compensated.
    """

    seeds: tuple[int, ...]
    train_index: Tensor
    train_labels: Tensor
    validation_index: Tensor
    divisor: Tensors


@dataclass(frozen=True, eq=False)
class Task:
    """A task config with its network and data; every method is a function of its arguments.

    Attributes:
        config: what the task is.
        module: the network, whose own parameter values are never read.
        source: the data.
        dtype: floating type of parameters and images.
        device: where instances, parameters and images lie; random draws are made on the CPU and moved there.
    """

    config: TaskConfig
    module: nn.Module
    source: ImageData
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @classmethod
    def make(
        cls, config: TaskConfig, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> "Task":
        """Build the task of `config`.

        Raises:
            DataError: the source is absent, has other image shapes or classes, or too few images.
        """
        source = load_source(config.source, config.architecture.image[1], device)
        config_shape, shape = config.architecture.image, source.in_shape
        if config_shape != shape or config.architecture.classes != source.classes:
            raise NfoptError(
                f"the architecture reads images {config_shape} in {config.architecture.classes} classes, but "
                f"{config.source!r} has {shape} in {source.classes}."
            )
        if config.train_images > len(source.train.labels):
            raise NfoptError(
                f"{config.source!r} has {len(source.train.labels)} training images; train_images="
                f"{config.train_images} is too many."
            )
        return cls(config, config.architecture.build(), source, dtype, device)

    def instances(self, seeds: Sequence[int]) -> Instances:
        """Draw the data subsets, labels and parametrisations of one instance per seed."""
        config = self.config
        index, labels, validation = [], [], []
        divisor: dict[str, list[Tensor]] = {name: [] for name, _ in self.module.named_parameters()}
        pool = self.source.val.labels
        for seed in seeds:
            draw = torch.Generator().manual_seed(derive_seed(seed, "data"))
            chosen = torch.randperm(len(self.source.train.labels), generator=draw)[: config.train_images]
            flip = torch.rand(len(chosen), generator=draw) < config.label_noise
            noise = torch.randint(self.source.classes, (len(chosen),), generator=draw)
            index.append(chosen)
            labels.append(torch.where(flip, noise, self.source.train.labels[chosen].cpu()))
            validation.append(torch.randperm(len(pool), generator=draw)[: config.validation_images])
            for factors, factor in zip(divisor.values(), self._rescaling(seed), strict=True):
                factors.append(factor)
        compensated = config.compensate and config.rescale > 1
        return Instances(
            tuple(seeds),
            torch.stack(index).to(self.device),
            torch.stack(labels).to(self.device),
            torch.stack(validation).to(self.device),
            {name: torch.stack(factors).to(self.device) for name, factors in divisor.items()}
            if compensated
            else {},
        )

    def initial_parameters(self, instances: Instances) -> Tensors:
        """Draw each instance's initialisation: tensors with a leading dimension of the instances."""
        draws = [torch.Generator().manual_seed(derive_seed(seed, "init")) for seed in instances.seeds]
        drawn = initial_parameters(self.module, draws, self.dtype)
        params = {name: p.to(self.device) for name, p in drawn.items()}
        if self.config.rescale == 1:
            return params
        factors = torch.stack([torch.stack(self._rescaling(seed)) for seed in instances.seeds]).to(
            self.device
        )
        return {
            name: p * factors[:, k].reshape(-1, *(1,) * (p.ndim - 1))
            for k, (name, p) in enumerate(params.items())
        }

    def _rescaling(self, seed: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(derive_seed(seed, "rescale"))
        count = len(list(self.module.parameters()))
        exponent = 2 * torch.rand(count, generator=draw, dtype=torch.float64) - 1
        return list((self.config.rescale**exponent).to(self.dtype))

    def batch_positions(self, instances: Instances, start: int, steps: int) -> Tensor:
        """Return which of its training images each instance reads at steps start ... start + steps - 1.

        Epochs visit the images in a fresh random order, without replacement; the remainder that fills no
        batch is left out. A step's batch does not depend on how the training is cut into pieces.

        Returns:
            (steps, instances, batch_images), positions in [0, train_images).
        """
        per_epoch = self.config.train_images // self.config.batch_images
        first, last = start // per_epoch, (start + steps - 1) // per_epoch
        orders = []
        for seed in instances.seeds:
            epochs = []
            for epoch in range(first, last + 1):
                draw = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
                order = torch.randperm(self.config.train_images, generator=draw)
                epochs.append(order[: per_epoch * self.config.batch_images])
            orders.append(torch.cat(epochs).reshape(-1, self.config.batch_images))
        skipped = start - first * per_epoch
        return torch.stack(orders, 1)[skipped : skipped + steps].to(self.device)

    def train_batch(self, instances: Instances, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (instances, batch, channels, height, width) and labels (instances, batch)."""
        index = instances.train_index.gather(1, positions)
        return self._images(self.source.train, index), instances.train_labels.gather(1, positions)

    def validation_batch(self, instances: Instances) -> tuple[Tensor, Tensor]:
        """Return each instance's validation images and (clean) labels, shaped like `train_batch`."""
        index = instances.validation_index
        return self._images(self.source.val, index), self.source.val.labels[index]

    def _images(self, pool: Split, index: Tensor) -> Tensor:
        # A plain selection of rows is several times as fast as indexing by a matrix of indices.
        picked = pool.images.index_select(0, index.flatten())
        return picked.unflatten(0, index.shape).to(self.dtype)

    def logits(self, params: Mapping[str, Tensor], divisor: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return the network's outputs (batch, classes) for one instance's parameters; works under vmap."""
        read = {name: p / divisor[name] if name in divisor else p for name, p in params.items()}
        return functional_call(self.module, read, (images,))

    def loss(
        self, params: Mapping[str, Tensor], divisor: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> Tensor:
        """Return one instance's mean cross-entropy in nats; works under vmap."""
        return F.cross_entropy(self.logits(params, divisor, images), labels)
