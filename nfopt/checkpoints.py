"""Checkpoints of learned rules: one safetensors file with its card, checked when it is read.

The weights travel as safetensors (no code can hide in them); the file's metadata holds the format version,
what the weights belong to, their configuration, a card (recipe, seeds, scores) and a hash of the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from nfopt.atomic import replacing
from nfopt.errors import CheckpointError, unknown_name

FORMAT = "nfopt"
FORMAT_VERSION = 1
BUNDLED = resources.files("nfopt") / "_data"


@dataclass(frozen=True)
class Checkpoint:
    """Learned weights with what one must know about them.

    Attributes:
        kind: what the weights belong to ("update-rule").
        theta: the weights by name.
        config: the configuration that they were trained for, as JSON values.
        card: recipe, seeds, scores and so on, as JSON values.
        name: where the checkpoint came from.
    """

    kind: str
    theta: Mapping[str, Tensor]
    config: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    name: str = "unsaved"

    @property
    def digest(self) -> str:
        """SHA-256 of the names, shapes and values of the weights."""
        return digest_of(self.theta)


def digest_of(theta: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, dtypes, shapes and values."""
    digest = sha256()
    for name in sorted(theta):
        value = theta[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def bundled_names() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(
        f.name.removesuffix(".safetensors") for f in BUNDLED.iterdir() if f.name.endswith(".safetensors")
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write `checkpoint` beside `path` and move it into place.

    Raises:
        CheckpointError: `path` exists and `overwrite` is False.
    """
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name, or pass overwrite=True.")
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "kind": checkpoint.kind,
        "config": json.dumps(checkpoint.config, sort_keys=True),
        "card": json.dumps(checkpoint.card, sort_keys=True),
        "digest": checkpoint.digest,
    }
    theta = {name: value.detach().cpu().contiguous() for name, value in checkpoint.theta.items()}
    with replacing(path) as partial:
        partial.write_bytes(to_bytes(theta, metadata=metadata))


def load_checkpoint(name_or_path: str | Path, *, kind: str) -> Checkpoint:
    """Read a checkpoint: a bundled one by name, or a `.safetensors` file by path.

    Raises:
        UnknownNameError: there is neither a bundled checkpoint nor a file of that name.
        CheckpointError: the file is damaged, of another version, or of another kind.
    """
    text = str(name_or_path)
    if not isinstance(name_or_path, Path) and text in bundled_names():
        with resources.as_file(BUNDLED / f"{text}.safetensors") as path:
            return _read(path, text, kind)
    path = Path(name_or_path)
    if not path.is_file():
        raise unknown_name("checkpoint", text, bundled_names(), where="the package or the file system")
    return _read(path, text, kind)


def _read(path: Path, name: str, kind: str) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            theta = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{name} cannot be read ({error}): it is truncated, or no safetensors file. Copy it again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{name} is a safetensors file, but not an nfopt checkpoint (no format mark).")
    if metadata.get("version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{name} has format version {metadata.get('version')!r}; this nfopt reads version "
            f"{FORMAT_VERSION}. Use the nfopt that wrote it, or train it again from its recipe."
        )
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{name} holds a checkpoint of kind {metadata.get('kind')!r}, not {kind!r}.")
    try:
        config, card = json.loads(metadata["config"]), json.loads(metadata["card"])
        digest = metadata["digest"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{name} has a damaged header ({error!r}). Copy it again.") from error
    checkpoint = Checkpoint(kind, theta, config, card, name)
    if checkpoint.digest != digest:
        raise CheckpointError(f"{name} is damaged: its weights do not match their hash. Copy it again.")
    return checkpoint
