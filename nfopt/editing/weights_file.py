"""Edits applied to files of weights: one safetensors file in, another out, metadata kept."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from nfopt.atomic import replacing
from nfopt.editing.edit import Edit
from nfopt.errors import EditingError


def apply_to_file(edit: Edit, weights: Path, out: Path, *, force: bool = False) -> None:
    """Write the edited weights of `weights` to `out`, which must not exist.

    Raises:
        EditingError: `weights` is absent, damaged or not the edit's base, the gate refused the edit, or `out`
            exists.
    """
    state, metadata = _read(weights, out)
    _write(out, edit.edited_state(state, force=force), metadata)


def revert_file(edit: Edit, weights: Path, out: Path) -> None:
    """Write the weights before the edit to `out`, which must not exist; raises as `apply_to_file` does."""
    state, metadata = _read(weights, out)
    _write(out, edit.reverted_state(state), metadata)


def _read(weights: Path, out: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if out.exists():
        raise EditingError(f"{out} exists; no file is written over. Give another name.")
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise EditingError(f"{weights} cannot be read as a safetensors file of weights: {error}.") from error


def _write(out: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    with replacing(out) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, partial, metadata=dict(metadata)
        )
