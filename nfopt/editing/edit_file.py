"""The file of an edit: one safetensors file of bits with a checked card, and a card for people beside it."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from nfopt.atomic import replacing, write_text
from nfopt.errors import EditingError

FORMAT = "nfopt-edit-1"


def save(path: Path, bits: Mapping[str, Tensor], card: Mapping[str, Any], text: str) -> None:
    """Write `path`, whole or not at all, and the `text` beside it with the ending .md.

    Raises:
        EditingError: the card holds something that JSON has no place for.
    """
    try:
        card_text = json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EditingError(f"the history of the edit cannot be written as JSON: {error}.") from error
    metadata = {"format": FORMAT, "card": card_text, "digest": _digest(bits, card_text)}
    with replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in bits.items()}, partial, metadata=metadata)
    write_text(path.with_suffix(".md"), f"# {path.name}\n\n```\n{text}\n```\n")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the bits and the card of a file.

    Raises:
        EditingError: the file is absent, damaged, or no edit.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise EditingError(
            f"{path} cannot be read as an edit: {error}. It is absent, cut short, or another file."
        ) from error
    if metadata.get("format") != FORMAT:
        raise EditingError(f"{path} has the format {metadata.get('format')!r}; an edit has {FORMAT!r}.")
    card_text = metadata.get("card", "")
    if metadata.get("digest") != _digest(bits, card_text):
        raise EditingError(f"{path} is damaged: its content does not match its hash. Copy it again.")
    return bits, json.loads(card_text)


def _digest(bits: Mapping[str, Tensor], card_text: str) -> str:
    digest = sha256(card_text.encode())
    for name in sorted(bits):
        digest.update(f"{name} {tuple(bits[name].shape)}\n".encode())
        digest.update(bits[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
