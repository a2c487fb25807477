"""Files of a meta-training: whole or absent, in order, and read with suspicion."""

from pathlib import Path

import pytest
import torch

from nfopt.errors import CheckpointError
from nfopt.meta.store import drop_lines_after, load_latest, save_checkpoint
from nfopt.meta.workers import OneProcess

TENSORS = {"zeta": torch.randn(3, 5), "alpha": torch.randn(7), "step": torch.ones(())}


def saved(folder: Path, step: int) -> None:
    save_checkpoint(
        folder,
        step,
        outer={"theta": torch.full((3,), float(step))},
        slots={0: ({"episode": step}, TENSORS), 2: ({"episode": 0}, {})},
        numbers={"step": step},
        workers=OneProcess(),
    )


def test_a_checkpoint_returns_tensors_counters_and_their_order(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    found = load_latest(tmp_path, [0, 2])
    assert found is not None
    counters, tensors = found.slots[0]
    assert counters == {"episode": 4}
    assert list(tensors) == list(TENSORS)
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert found.numbers["step"] == 4


def test_only_the_last_checkpoint_is_kept_and_a_started_one_does_not_count(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    saved(tmp_path, 6)
    (tmp_path / "checkpoint-00000008").mkdir()
    found = load_latest(tmp_path, [0])
    assert found is not None
    assert float(found.outer["theta"][0]) == 6
    saved(tmp_path, 10)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000010"]


def test_no_checkpoint_is_none_and_a_missing_slot_an_error(tmp_path: Path) -> None:
    assert load_latest(tmp_path, [0]) is None
    saved(tmp_path, 4)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_latest(tmp_path, [1])


def test_lines_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    drop_lines_after(log, 1)
    log.write_text('{"outer_step": 1}\n{"outer_step": 2}\n{"outer_st')
    drop_lines_after(log, 1)
    assert log.read_text() == '{"outer_step": 1}\n'
