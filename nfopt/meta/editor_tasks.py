"""Tasks for an editor: nets of one architecture, target images of a domain, and other images to judge by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nfopt.data import Split
from nfopt.editing.editor import NetForward, Targets
from nfopt.errors import NfoptError
from nfopt.symmetry import PermutationSpec, trace_permutation_spec

CLEAN = "clean"


@dataclass(frozen=True, eq=False)
class EditingNets:
    """Trained nets of one architecture, and images of each domain as the nets take them.

    Attributes:
        module: the architecture, in evaluation mode.
        spec: its permutation spec.
        tensors: parameters and running statistics, each [nets, *shape].
        domains: images and labels of each domain by name; "clean" is the source. Image i of every domain
            shows the same as image i of any other.
    """

    module: nn.Module
    spec: PermutationSpec
    tensors: Mapping[str, Float[Tensor, "nets ..."]]
    domains: Mapping[str, Split]

    def __post_init__(self) -> None:
        if CLEAN not in self.domains or len(self) == 0:
            raise NfoptError(
                "nets to edit need the domain 'clean' among their domains, and at least one net."
            )

    @classmethod
    def of(
        cls, module: nn.Module, tensors: Mapping[str, Tensor], domains: Mapping[str, Split]
    ) -> "EditingNets":
        """Return the nets with the spec that `module` is traced to."""
        spec = trace_permutation_spec(module, domains[CLEAN].images[:2])
        return cls(module, spec, {name: tensors[name] for name in spec.tensors}, domains)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def forward(self) -> NetForward:
        """The nets side by side."""
        return NetForward(self.module, many=True)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.domains[CLEAN].images.shape[1:])


@dataclass(frozen=True)
class TaskShape:
    """What tasks are drawn from.

    Attributes:
        domains: names of the domains; a task has one, uniformly.
        images: numbers of target images; all nets of a batch have the same.
        test_images: other images of the domain, by which the edit is judged.
        one_sided: share of the nets whose target images are of at most `few_classes` classes.
        few_classes: see `one_sided`.
        shots: labelled target images per class, for editors that use labels.
    """

    domains: tuple[str, ...]
    images: tuple[int, ...] = (16, 64)
    test_images: int = 64
    one_sided: float = 0.1
    few_classes: int = 2
    shots: int = 3


@dataclass(frozen=True, eq=False)
class EditingBatch:
    """Tasks side by side: one for each net.

    Attributes:
        tensors: the nets' own.
        targets: target images, with their few labels.
        test_images: [nets, images, ...] of the same domains.
        test_labels: their classes.
        clean_images: the same pictures as the source shows them.
        domains: name of each task's domain.
    """

    tensors: dict[str, Float[Tensor, "nets ..."]]
    targets: Targets
    test_images: Float[Tensor, "..."]
    test_labels: Int[Tensor, "nets images"]
    clean_images: Float[Tensor, "..."]
    domains: tuple[str, ...]


def draw_batch(nets: EditingNets, shape: TaskShape, count: int, generator: torch.Generator) -> EditingBatch:
    """Draw `count` tasks: a net, a domain, target images and others to test on."""
    chosen = torch.randint(0, len(nets), (count,), generator=generator)
    amount = shape.images[_number(len(shape.images), generator)]
    names, pairs = [], []
    labels, device = nets.domains[CLEAN].labels.cpu(), nets.domains[CLEAN].labels.device
    for _ in range(count):
        names.append(shape.domains[_number(len(shape.domains), generator)])
        one_sided = float(torch.rand((), generator=generator)) < shape.one_sided
        pairs.append(_indices(labels, amount, shape, one_sided, generator))
    return EditingBatch(
        {name: tensor[chosen.to(tensor.device)] for name, tensor in nets.tensors.items()},
        Targets(
            _pictures(nets, names, [seen for seen, _ in pairs]),
            torch.stack([few_of_each(labels[seen], shape.shots) for seen, _ in pairs]).to(device),
        ),
        _pictures(nets, names, [test for _, test in pairs]),
        torch.stack([labels[test] for _, test in pairs]).to(device),
        _pictures(nets, [CLEAN] * count, [test for _, test in pairs]),
        tuple(names),
    )


def few_of_each(labels: Int[Tensor, " images"], shots: int) -> Int[Tensor, " images"]:
    """Return the labels of the first `shots` images of each class, -1 for the others."""
    few = torch.full_like(labels, -1)
    for label in labels.unique():
        few[torch.nonzero(labels == label).flatten()[:shots]] = label
    return few


def _indices(
    labels: Tensor, amount: int, shape: TaskShape, one_sided: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(labels), generator=generator)
    test, rest = order[: shape.test_images], order[shape.test_images :]
    if one_sided:
        classes = torch.randperm(int(labels.max()) + 1, generator=generator)[: shape.few_classes]
        rest = rest[torch.isin(labels[rest], classes)]
    # Drawn with repetition only where there are too few.
    return rest[torch.arange(amount) % len(rest)], test


def _pictures(nets: EditingNets, names: Sequence[str], indices: Sequence[Tensor]) -> Tensor:
    parts = []
    for name, index in zip(names, indices, strict=True):
        images = nets.domains[name].images
        parts.append(images[index.to(images.device)])
    return torch.stack(parts)


def _number(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))
