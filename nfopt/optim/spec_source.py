"""Where an optimizer's permutation spec comes from: example inputs, the first forward pass, or nowhere.

Nothing is traced on the hot path: a hook notes the first forward's inputs, and the trace runs once, on
tensors without data, when the first step asks for the spec.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nfopt.errors import NfoptError, NfoptWarning, TraceError
from nfopt.optim.sharded_tensors import as_unsharded
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.skeleton import unwrap
from nfopt.symmetry.trace import trace_permutation_spec


class _FirstForward:
    """A forward pre-hook that notes the shapes of the first inputs, then removes itself."""

    def __init__(self, model: nn.Module) -> None:
        self.noted: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        hook: Any = self
        self._handle = model.register_forward_pre_hook(hook, with_kwargs=True)

    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.noted is None:
            self.noted = tree_map(_without_data, args), tree_map(_without_data, kwargs)
        self.release()

    def release(self) -> None:
        """Remove the hook from the model."""
        self._handle.remove()


class SpecSource:
    """Supplies the spec of a model, tracing it at most once.

    Args:
        model: the model, bare or wrapped, or None when only parameters are known.
        example_inputs: inputs as for `trace_permutation_spec`; then the trace runs at once.

    Raises:
        TraceError: the model cannot be traced with `example_inputs`.
    """

    def __init__(self, model: nn.Module | None, example_inputs: Any = None) -> None:
        self._model = None if model is None else unwrap(model)
        self._spec: PermutationSpec | None = None
        self._first: _FirstForward | None = None
        if self._model is not None and example_inputs is not None:
            with as_unsharded(self._model):
                self._spec = trace_permutation_spec(self._model, example_inputs)
        elif self._model is not None:
            self._first = _FirstForward(self._model)

    def names(self) -> dict[int, str] | None:
        """Return the qualified name of each parameter of the model by `id`; None when there is no model.

        Made afresh at every call, since hosts put other tensors in the place of a model's parameters.
        """
        if self._model is None:
            return None
        return {id(param): name for name, param in self._model.named_parameters()}

    @property
    def is_traced(self) -> bool:
        """Whether the spec is known."""
        return self._spec is not None

    def tables(self) -> frozenset[str]:
        """Return the names of the embedding tables: no matrices, which is known before the trace."""
        parts = [] if self._model is None else self._model.named_modules()
        kinds = nn.Embedding | nn.EmbeddingBag
        return frozenset(f"{name}.weight".lstrip(".") for name, part in parts if isinstance(part, kinds))

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> PermutationSpec:
        """Return the spec that covers the named tensors, uncoupled where nothing better is known.

        Warns once when tensors stay uncoupled: the rule then sees no neurons shared between tensors.
        """
        if self._spec is None:
            self._spec = self._trace()
        missing = {name: shape for name, shape in shapes.items() if _shape_in(self._spec, name) != shape}
        if missing:
            loose = PermutationSpec.uncoupled(missing)
            kept = {n: e for n, e in self._spec.tensors.items() if n not in missing}
            aliases = {n: t for n, t in self._spec.aliases.items() if n not in missing and t in kept}
            self._spec = PermutationSpec(
                {**kept, **loose.tensors}, self._spec.fixed, aliases, self._spec.unruled
            )
        return self._spec

    def _trace(self) -> PermutationSpec:
        reason = "it was given parameters without their model; pass the model to couple them"
        noted = None
        if self._first is not None:
            self._first.release()
            noted = self._first.noted
        if self._model is not None and noted is None:
            reason = "no forward pass of the model was seen before the first step; pass example_inputs"
        elif self._model is not None and noted is not None:
            try:
                with as_unsharded(self._model):
                    return trace_permutation_spec(self._model, _one_form(self._model, *noted))
            except TraceError as error:
                reason = f"the model could not be traced: {error}"
            except NfoptError as error:
                reason = f"its symmetry could not be derived: {error}"
        warnings.warn(f"NFOptimizer treats every tensor on its own: {reason}", NfoptWarning, stacklevel=4)
        return PermutationSpec({})


def _shape_in(spec: PermutationSpec, name: str) -> tuple[int, ...] | None:
    entry = spec.tensors.get(spec.aliases.get(name, name))
    return None if entry is None else entry.shape


def _without_data(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _one_form(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the arguments of a call as a tuple, or as a dict when some were given by keyword."""
    if not kwargs:
        return args
    bound = inspect.signature(type(model).forward).bind_partial(model, *args, **kwargs)
    named = dict(list(bound.arguments.items())[1:])
    for parameter in bound.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named
