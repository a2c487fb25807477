"""Which parameters are pruned: the weights of linear maps and convolutions, narrowed by name patterns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from nfopt.errors import PruningError
from nfopt.pruning.mask import SHOWN, prunable_parameters
from nfopt.symmetry import unwrap

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Targets:
    """Which parameters are pruned, and what each pattern matched.

    Attributes:
        names: the parameters that are pruned, in the model's order.
        included: for each pattern of `include`, the names it matched.
        excluded: for each pattern of `exclude`, the names it took out.
    """

    names: tuple[str, ...]
    included: Mapping[str, tuple[str, ...]]
    excluded: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        lines = [f"{len(self.names)} tensors are pruned"]
        for word, matches in (("include", self.included), ("exclude", self.excluded)):
            for pattern, names in matches.items():
                more = f", ... ({len(names)})" if len(names) > SHOWN else ""
                lines.append(f"  {word} {pattern!r}: {', '.join(names[:SHOWN])}{more}")
        return "\n".join(lines)


def as_patterns(given: str | Sequence[str]) -> Sequence[str]:
    """Return patterns as they are, and one that is given by itself as a sequence of one."""
    return (given,) if isinstance(given, str) else given


def find_targets(
    model: nn.Module, *, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> Targets:
    """Return which parameters of a model are to be pruned.

    Args:
        model: any module.
        include: shell patterns of parameter names ("features.*.weight"); None for the weights of every linear
            map, convolution, recurrent layer and attention projection. Biases, norms and embeddings are
            pruned only by name. One pattern may be given as it is.
        exclude: patterns of names that are not pruned.

    Raises:
        PruningError: a pattern matches nothing, nothing is left, or a lazy layer has no weights yet.
    """
    include = None if include is None else as_patterns(include)
    exclude = as_patterns(exclude)
    parameters = prunable_parameters(model)
    lazy = [name for name, p in parameters.items() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise PruningError(
            f"{lazy[0]} has no shape yet. Call the model once, on an example input, before pruning it."
        )
    floating = [name for name, p in parameters.items() if p.is_floating_point()]
    if include is None:
        wanted = set(_customary(model, floating))
        included: dict[str, tuple[str, ...]] = {}
    else:
        included = {pattern: _matches(pattern, floating, "include", model) for pattern in include}
        wanted = {name for names in included.values() for name in names}
    names = [name for name in floating if name in wanted]
    excluded = {pattern: _matches(pattern, names, "exclude", model) for pattern in exclude}
    out = {name for matched in excluded.values() for name in matched}
    left = tuple(name for name in names if name not in out)
    if not left:
        raise PruningError(
            f"nothing of {type(unwrap(model)).__name__} is left to prune: of {len(floating)} parameters "
            f"{len(names)} are weights to be pruned, and {len(out)} of those are excluded."
        )
    return Targets(left, included, excluded)


def _customary(model: nn.Module, names: Sequence[str]) -> list[str]:
    known = set(names)
    found = []
    for prefix, part in unwrap(model).named_modules():
        keys: Sequence[str] = ()
        if isinstance(part, nn.Linear | nn.Bilinear | nn.modules.conv._ConvNd):
            keys = ("weight",)
        elif isinstance(part, nn.MultiheadAttention):
            keys = _ATTENTION_WEIGHTS
        elif isinstance(part, nn.RNNBase | nn.RNNCellBase):
            keys = [key for key, p in part.named_parameters(recurse=False) if p.ndim == 2]
        found += [name for key in keys if (name := f"{prefix}.{key}" if prefix else key) in known]
    return found


def _matches(pattern: str, names: Sequence[str], word: str, model: nn.Module) -> tuple[str, ...]:
    matched = tuple(name for name in names if fnmatchcase(name, pattern))
    if not matched:
        shown = ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
        raise PruningError(
            f"{word} pattern {pattern!r} matches no parameter of {type(unwrap(model)).__name__}. "
            f"The names are: {shown}. Patterns are those of the shell: 'layer1.*', '*.conv1.weight'."
        )
    return matched
