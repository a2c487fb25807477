"""PruningMask: which elements of which weights of a model are kept, as a value."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nfopt.atomic import replacing
from nfopt.errors import PruningError
from nfopt.symmetry import unwrap

FORMAT = "nfopt-pruning-mask-1"
SHOWN = 6


@dataclass(frozen=True, slots=True)
class MaskRow:
    """One tensor of a mask; `density` is the KEPT fraction."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Kept fraction in [0, 1]."""
        return self.kept / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True)
class MaskComparison:
    """How alike two masks of one model are.

    Attributes:
        jaccard: for each tensor |A and B| / |A or B|; 1 where both keep nothing.
        overall: the same over all elements together.
        largest_density_gap: the largest difference of the two kept fractions of one tensor.
    """

    jaccard: Mapping[str, float]
    overall: float
    largest_density_gap: float


@dataclass(frozen=True, eq=False)
class PruningMask:
    """Which elements of which parameters are kept; a value: it compares, prints, saves and loads.

    Attributes:
        kept: for each pruned parameter's name a boolean tensor of its shape, True where kept; on the CPU.
            Parameters that are not named are not pruned.
        model: digest of the parameters' names and shapes of the model that the mask is for.
        origin: how the mask was made ("score": "snip"), for people; it takes no part in comparisons.
    """

    kept: Mapping[str, Tensor]
    model: str
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.kept.items():
            if tensor.dtype != torch.bool:
                raise PruningError(
                    f"the mask of {name} has elements of type {tensor.dtype}; give torch.bool."
                )
        copies = {name: tensor.detach().cpu().clone() for name, tensor in self.kept.items()}
        object.__setattr__(self, "kept", MappingProxyType(copies))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @classmethod
    def for_model(
        cls, model: nn.Module, kept: Mapping[str, Tensor], origin: Mapping[str, str] | None = None
    ) -> "PruningMask":
        """Return the mask of `model` that keeps `kept`.

        Raises:
            PruningError: a name or a shape is not the model's.
        """
        mask = cls(kept, model_digest(model), origin or {})
        mask.check_fits(model)
        return mask

    @property
    def kept_count(self) -> int:
        """Number of kept elements over all named tensors."""
        return sum(row.kept for row in self.rows())

    @property
    def total_count(self) -> int:
        """Number of elements over all named tensors."""
        return sum(row.total for row in self.rows())

    @property
    def density(self) -> float:
        """Kept fraction over all named tensors."""
        return self.kept_count / self.total_count if self.total_count else 1.0

    @property
    def densities(self) -> dict[str, float]:
        """Kept fraction of each named tensor."""
        return {row.name: row.density for row in self.rows()}

    @property
    def empty_layers(self) -> tuple[str, ...]:
        """Names of the tensors of which nothing is kept."""
        return tuple(row.name for row in self.rows() if row.kept == 0 and row.total > 0)

    def rows(self) -> list[MaskRow]:
        """Return one row per tensor, in the model's order."""
        return [
            MaskRow(name, tuple(tensor.shape), int(tensor.sum()), tensor.numel())
            for name, tensor in self.kept.items()
        ]

    def check_fits(self, model: nn.Module) -> None:
        """Raise PruningError, naming the first difference, unless the mask is one of `model`'s."""
        shapes = dict(_named_shapes(model))
        kind = type(unwrap(model)).__name__
        for name, tensor in self.kept.items():
            if name not in shapes:
                raise PruningError(
                    f"the mask prunes {name!r}, which {kind} does not have. It is the mask of another model."
                )
            if shapes[name] != tuple(tensor.shape):
                raise PruningError(
                    f"the mask of {name} has shape {tuple(tensor.shape)}, the tensor {shapes[name]}. "
                    "It is the mask of another model."
                )
        if self.model != model_digest(model):
            raise PruningError(
                f"the mask was made for a model with other parameters than {kind}: their names or shapes "
                f"differ outside the {len(self.kept)} pruned tensors. Make the mask again for this model."
            )

    def compare(self, other: "PruningMask") -> MaskComparison:
        """Return how alike this mask and `other` are; raises PruningError for masks of different tensors."""
        jaccard, both_all, either_all, gap = {}, 0, 0, 0.0
        for name, ours, theirs in self._paired(other):
            both, either = int((ours & theirs).sum()), int((ours | theirs).sum())
            jaccard[name] = both / either if either else 1.0
            both_all, either_all = both_all + both, either_all + either
            gap = max(gap, abs(int(ours.sum()) - int(theirs.sum())) / max(ours.numel(), 1))
        return MaskComparison(jaccard, both_all / either_all if either_all else 1.0, gap)

    def union(self, other: "PruningMask") -> "PruningMask":
        """Return the mask that keeps what either keeps."""
        return PruningMask({name: a | b for name, a, b in self._paired(other)}, self.model)

    def intersection(self, other: "PruningMask") -> "PruningMask":
        """Return the mask that keeps what both keep."""
        return PruningMask({name: a & b for name, a, b in self._paired(other)}, self.model)

    def shuffled(self, generator: torch.Generator) -> "PruningMask":
        """Return the control that permutes each tensor's mask at random: equal densities, other places.

        Source: Frankle et al., "Pruning Neural Networks at Initialization" (arXiv:2009.08576), section 5.
        """
        kept = {
            name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
            for name, mask in self.kept.items()
        }
        return PruningMask(kept, self.model, {**self.origin, "shuffled": "within layers"})

    def _paired(self, other: "PruningMask") -> Iterator[tuple[str, Tensor, Tensor]]:
        if self.model != other.model or self.kept.keys() != other.kept.keys():
            differing = sorted(self.kept.keys() ^ other.kept.keys())[:SHOWN]
            raise PruningError(
                "the two masks are not of the same tensors of one model"
                + (f": only one of them has {', '.join(differing)}." if differing else ".")
            )
        for name, mask in self.kept.items():
            yield name, mask, other.kept[name]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningMask):
            return NotImplemented
        return (
            self.model == other.model
            and self.kept.keys() == other.kept.keys()
            and all(torch.equal(mask, other.kept[name]) for name, mask in self.kept.items())
        )

    def __hash__(self) -> int:
        return hash((self.model, tuple((row.name, row.kept) for row in self.rows())))

    def __str__(self) -> str:
        head = f"PruningMask: {self.kept_count:,} of {self.total_count:,} kept ({100 * self.density:.3g} %)"
        rows = [
            f"  {r.name} {list(r.shape)}: {r.kept:,} of {r.total:,} ({100 * r.density:.3g} %)"
            for r in self.rows()
        ]
        matched = [f"  {line.strip()}" for line in self.origin.get("patterns", "").splitlines()[1:]]
        return "\n".join([head, *rows, *matched])

    def save(self, path: Path) -> None:
        """Write the mask to one safetensors file, whole or not at all; `load` gives it back equal."""
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "names": json.dumps(list(self.kept)),
            **{f"origin.{key}": value for key, value in self.origin.items()},
        }
        with replacing(Path(path)) as partial:
            save_file(dict(self.kept), partial, metadata=metadata)

    @classmethod
    def load(cls, path: Path, model: nn.Module | None = None) -> "PruningMask":
        """Read what `save` wrote.

        Args:
            path: the file.
            model: checked to be the mask's model; None for no check.

        Raises:
            PruningError: the file is absent, damaged, or no mask; or it is the mask of another model.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise PruningError(
                        f"{path} has the format {metadata.get('format')!r}; a mask has {FORMAT!r}."
                    )
                kept = {name: file.get_tensor(name) for name in json.loads(metadata["names"])}
            origin = {k.removeprefix("origin."): v for k, v in metadata.items() if k.startswith("origin.")}
            mask = cls(kept, metadata["model"], origin)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise PruningError(f"{path} cannot be read as a mask: {error}.") from error
        if model is not None:
            mask.check_fits(model)
        return mask


def model_digest(model: nn.Module) -> str:
    """Return a SHA-256 over the names and shapes of a model's parameters, pruned by torch or not."""
    digest = hashlib.sha256()
    for name, shape in _named_shapes(model):
        digest.update(f"{name} {shape}\n".encode())
    return digest.hexdigest()


def prunable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name; one that torch.nn.utils.prune holds has its name without `_orig`."""
    model = unwrap(model)
    buffers = {name for name, _ in model.named_buffers()}
    found = {}
    for name, parameter in model.named_parameters():
        plain = name.removesuffix("_orig")
        found[plain if plain != name and f"{plain}_mask" in buffers else name] = parameter
    return found


def _named_shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes sorted by name: torch.nn.utils.prune changes the order of parameters."""
    return sorted((name, tuple(parameter.shape)) for name, parameter in prunable_parameters(model).items())
