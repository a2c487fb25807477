"""A zoo in one safetensors file with its card, checked whole when it is read."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from nfopt.atomic import replacing
from nfopt.errors import PermutationSpecError
from nfopt.symmetry import PermutationSpec
from nfopt.zoo.zoo import Zoo, ZooError

FORMAT = "nfopt-zoo"
FORMAT_VERSION = 1
_SIDE = "side"


def save_zoo(path: Path | str, zoo: Zoo, *, overwrite: bool = False) -> None:
    """Write `zoo` to one safetensors file, whole or not at all.

    Raises:
        ZooError: `path` exists and `overwrite` is False, or the card is not made of JSON values.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ZooError(f"{path} exists; choose another name, or pass overwrite=True.")
    try:
        card = json.dumps(zoo.card, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ZooError(f"the card of the zoo is not made of JSON values: {error}.") from error
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "spec": zoo.spec.to_json(),
        "card": card,
        "digest": zoo.digest,
    }
    stored = {f"tensors/{name}": tensor for name, tensor in zoo.tensors.items()}
    stored |= {f"facts/{name}": fact for name, fact in zoo.facts.items()}
    stored[_SIDE] = zoo.side
    # Cloned: two names may be views of one memory, which safetensors refuses.
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in stored.items()}
    with replacing(path) as partial:
        # Not by safetensors' own writer: it makes files that nobody else may read.
        partial.write_bytes(to_bytes(stored, metadata=metadata))


def load_zoo(path: Path | str) -> Zoo:
    """Read what `save_zoo` wrote, on the CPU.

    Raises:
        ZooError: the file is absent, truncated, altered, of another format or version, or its nets are not of
            one architecture or not finite; the message begins with the path.
    """
    path = Path(path)
    if not path.is_file():
        raise ZooError(
            f"there is no zoo at {path}. Make one with nfopt run recipes/zoo_smoke.yaml, or another."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ZooError(
            f"{path} cannot be read ({error}): it is truncated, or no safetensors file. Copy it again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ZooError(f"{path} is a safetensors file, but no zoo of nfopt (no format mark).")
    if metadata.get("version") != str(FORMAT_VERSION):
        raise ZooError(
            f"{path} has version {metadata.get('version')!r}; this nfopt reads version {FORMAT_VERSION}. "
            "Make the zoo again, or use the nfopt that wrote it."
        )
    try:
        zoo = Zoo(
            PermutationSpec.from_json(metadata["spec"]),
            {key.removeprefix("tensors/"): t for key, t in stored.items() if key.startswith("tensors/")},
            {key.removeprefix("facts/"): t for key, t in stored.items() if key.startswith("facts/")},
            stored[_SIDE],
            json.loads(metadata["card"]),
        )
    except (KeyError, ValueError, PermutationSpecError, ZooError) as error:
        raise ZooError(f"{path} holds no consistent zoo: {error}") from error
    if zoo.digest != metadata.get("digest"):
        raise ZooError(f"{path} was altered after it was written: its hash does not fit. Copy it again.")
    return zoo
