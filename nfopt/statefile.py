"""Nested state (tensors among plain values, as in a state_dict) in one safetensors file, without pickle."""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from nfopt.atomic import replacing
from nfopt.errors import CheckpointError

FORMAT = "nfopt-state-1"


def save_state(path: Path, state: Any) -> None:
    """Write nested state to `path`, whole or not at all.

    Args:
        path: the file.
        state: dicts (keys: text or whole numbers), lists, tuples, tensors, numbers, text, booleans, None,
            nested in any way. It comes back from `load_state` equal in values and in types,
            each tensor with its axes in the same order in memory.

    Raises:
        CheckpointError: something in the state is none of these.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, tensors, "state")
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, "tree": json.dumps(tree)})


def load_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read what `save_state` wrote, with the tensors on `device`.

    Raises:
        CheckpointError: the file is absent, truncated, or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} has the format {metadata.get('format')!r}; this nfopt reads {FORMAT!r}. "
                    "It was written by another program or version."
                )
            # Cloned when used: a product's last digits depend on how memory is aligned, too.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _decode(json.loads(metadata["tree"]), tensors)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. It is damaged; delete it.") from error


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Return `value` as JSON, tensors set apart; each JSON list is [kind, content]."""
    match value:
        case Tensor():
            name, order = str(len(tensors)), _memory_order(value)
            tensors[name] = value.detach().cpu().permute(order).contiguous().clone()
            return ["tensor", name] if order == sorted(order) else ["permuted", [name, order]]
        case dict():
            pairs = []
            for key, item in value.items():
                if not isinstance(key, str | int) or isinstance(key, bool):
                    raise CheckpointError(f"{where} has the key {key!r}; keys are text or whole numbers.")
                pairs.append([key, _encode(item, tensors, f"{where}[{key!r}]")])
            return ["dict", pairs]
        case list() | tuple():
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]]
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise CheckpointError(
                f"{where} is a {type(value).__name__}, which cannot be stored. State is made of tensors, "
                "numbers, text, booleans, None, lists, tuples and dicts."
            )


def _memory_order(value: Tensor) -> list[int]:
    """Return the axes from the slowest to the fastest in memory.

    A product's last digits depend on how its factors lie in memory, so a state must come back as it lay.
    """
    return sorted(range(value.ndim), key=lambda axis: -value.stride(axis))


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, content = tree
    match kind:
        case "tensor":
            return tensors[content].clone()
        case "permuted":
            name, order = content
            return tensors[name].clone().permute([order.index(axis) for axis in range(len(order))])
        case "dict":
            return {key: _decode(item, tensors) for key, item in content}
        case "list":
            return [_decode(item, tensors) for item in content]
        case "tuple":
            return tuple(_decode(item, tensors) for item in content)
    raise ValueError(f"unknown kind {kind!r}")
