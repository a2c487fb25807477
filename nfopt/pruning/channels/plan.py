"""PruningPlan: which channels of a model remain, as a value to apply to any model of its kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nfopt.atomic import replacing
from nfopt.errors import PermutationSpecError, PruningError
from nfopt.pruning.channels.subset import remaining, smaller_spec
from nfopt.pruning.channels.surgery import without_channels
from nfopt.pruning.mask import model_digest
from nfopt.symmetry import PermutationSpec, unwrap

FORMAT = "nfopt-pruning-plan-1"


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of coupled channels: how many of its `size` channels are kept."""

    group: str
    size: int
    kept: int


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which channels of each group remain; groups that are not named stay whole.

    To save a pruned model, save the plan and the smaller model's state_dict; to load it, make a fresh model
    as the original was made, `plan.apply(fresh)`, and load the state_dict into that.

    Attributes:
        kept: for each pruned group of `spec` the sorted indices that remain.
        spec: the symmetry of the original model.
        model: digest of the original's parameter names and shapes.
        origin: how the plan was made, for people; it takes no part in comparisons.
    """

    kept: Mapping[str, Tensor]
    spec: PermutationSpec
    model: str
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group, indices in self.kept.items():
            size = self.spec.groups[group].size if group in self.spec.groups else 0
            inside = bool(((indices >= 0) & (indices < size)).all())
            if len(indices) == 0 or not inside or len(torch.unique(indices)) != len(indices):
                raise PruningError(
                    f"of the group {group!r} of {size} channels the plan keeps {indices.tolist()[:8]}: "
                    "give at least one index, each once, of a group of the spec."
                )
        copies = {group: torch.unique(indices.detach().cpu().long()) for group, indices in self.kept.items()}
        object.__setattr__(self, "kept", MappingProxyType(copies))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a smaller copy of a model: the original, or another one of its kind.

        Raises:
            PruningError: the model has other parameters than the one that the plan was made for.
        """
        if model_digest(model) != self.model:
            raise PruningError(
                f"the plan was made for a model whose parameters have other names or shapes than those of "
                f"{type(unwrap(model)).__name__}. Apply it to a model made as the original was."
            )
        return without_channels(model, self.spec, self.kept)

    def apply_to_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the original's names and shapes (gradients, momenta) without the channels."""
        return {name: remaining(t, self.spec.axes_of(name), self.kept) for name, t in tensors.items()}

    @property
    def smaller_spec(self) -> PermutationSpec:
        """The symmetry of the smaller model."""
        return smaller_spec(self.spec, self.kept)

    def rows(self) -> list[GroupRow]:
        """Return one row per group of the spec, in its order."""
        return [
            GroupRow(name, atom.size, len(self.kept[name]) if name in self.kept else atom.size)
            for name, atom in self.spec.groups.items()
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningPlan):
            return NotImplemented
        return (
            self.model == other.model
            and self.spec == other.spec
            and self.kept.keys() == other.kept.keys()
            and all(torch.equal(indices, other.kept[group]) for group, indices in self.kept.items())
        )

    def __hash__(self) -> int:
        return hash((self.model, tuple((row.group, row.kept) for row in self.rows())))

    def __str__(self) -> str:
        rows = [f"  {row.group}: {row.kept} of {row.size}" for row in self.rows()]
        return "\n".join([f"PruningPlan: {len(self.kept)} of {len(rows)} groups pruned", *rows])

    def save(self, path: Path) -> None:
        """Write the plan to one safetensors file, whole or not at all; `load` gives it back equal."""
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "spec": self.spec.to_json(),
            **{f"origin.{key}": value for key, value in self.origin.items()},
        }
        with replacing(Path(path)) as partial:
            save_file(dict(self.kept), partial, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read what `save` wrote; raises PruningError if the file is absent, damaged or no plan."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise PruningError(
                        f"{path} has the format {metadata.get('format')!r}; a plan has {FORMAT!r}."
                    )
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            origin = {k.removeprefix("origin."): v for k, v in metadata.items() if k.startswith("origin.")}
            return cls(kept, PermutationSpec.from_json(metadata["spec"]), metadata["model"], origin)
        except (OSError, safetensors.SafetensorError, KeyError, PermutationSpecError) as error:
            raise PruningError(f"{path} cannot be read as a pruning plan: {error}.") from error
