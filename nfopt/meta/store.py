"""Files of a meta-training: checkpoints that are whole or absent, the chosen theta, and the log."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nfopt.atomic import replacing, write_json, write_text
from nfopt.errors import CheckpointError
from nfopt.meta.workers import Workers

LATEST = "latest.json"
SlotTensors = tuple[dict[str, int], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        outer: the outer optimizer's tensors.
        slots: counters and tensors by slot.
        numbers: JSON values.
    """

    outer: dict[str, Tensor]
    slots: dict[int, SlotTensors]
    numbers: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    outer: Mapping[str, Tensor],
    slots: Mapping[int, SlotTensors],
    numbers: Mapping[str, Any],
    workers: Workers,
) -> None:
    """Write a checkpoint of outer step `step`; it counts once every process has written its slots.

    One file per slot, so that a run may go on with another number of processes.
    """
    place = folder / f"checkpoint-{step:08d}"
    for index, (counters, tensors) in slots.items():
        # The file format sorts names, but autograd sums in the order in which the tensors are visited.
        metadata = {"counters": json.dumps(counters), "order": json.dumps(list(tensors))}
        _save(place / f"slot-{index}.safetensors", tensors, metadata)
    if workers.rank == 0:
        _save(place / "outer.safetensors", outer, {})
    workers.wait()
    if workers.rank == 0:
        write_json(folder / LATEST, {"folder": place.name, "step": step, **numbers})
        for old in folder.glob("checkpoint-*"):
            if old.name != place.name:
                shutil.rmtree(old)
    workers.wait()


def load_latest(folder: Path, slots: Iterable[int]) -> Checkpoint | None:
    """Return the last checkpoint under `folder` with the wanted slots, or None when there is none.

    Raises:
        CheckpointError: a file of it is missing or damaged.
    """
    latest = folder / LATEST
    if not latest.exists():
        return None
    try:
        numbers = json.loads(latest.read_text(encoding="utf-8"))
        place = folder / numbers["folder"]
        loaded = {index: _load_slot(place / f"slot-{index}.safetensors") for index in slots}
        outer = {name: t.clone() for name, t in load_file(place / "outer.safetensors").items()}
        return Checkpoint(outer, loaded, numbers)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the meta-training checkpoint in {folder} cannot be read: {error}. "
            f"Remove {latest} to start again."
        ) from error


def save_theta(folder: Path, theta: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write the chosen theta as `best.safetensors`, with its card in `best.json`."""
    _save(folder / "best.safetensors", theta, {})
    write_json(folder / "best.json", dict(card))


def drop_lines_after(log: Path, step: int) -> None:
    """Drop the log's lines of outer steps after `step`, which a killed run wrote past its checkpoint."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["outer_step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # the line that the kill cut short
            break
    write_text(log, "".join(f"{line}\n" for line in kept))


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with replacing(path) as partial:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, partial, metadata)


def _load_slot(path: Path) -> SlotTensors:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        # Cloned, as a tensor inside the file's buffer may be aligned differently and summed in another order.
        tensors = {name: file.get_tensor(name).clone() for name in json.loads(metadata["order"])}
        return json.loads(metadata["counters"]), tensors
