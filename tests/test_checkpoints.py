"""Checkpoint files: what goes in comes out, and what is damaged is refused."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nfopt.checkpoints import Checkpoint, bundled_names, load_checkpoint, save_checkpoint
from nfopt.errors import CheckpointError, UnknownNameError
from nfopt.optim.rule_checkpoint import CHECKPOINT_KIND, read_rule
from tests.optim.models import learned_checkpoint

RULE = learned_checkpoint()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "rule.safetensors"
    save_checkpoint(path, Checkpoint(RULE.kind, RULE.theta, RULE.config, {"seeds": [0, 1]}))
    return path


def rewrite(path: Path, **changes: str) -> None:
    """Write the file again with other metadata, keys set to "" left out."""
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
        theta = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(theta, path, metadata={key: value for key, value in metadata.items() if value})


def test_a_checkpoint_reads_back_as_it_was_written(saved: Path) -> None:
    found = load_checkpoint(saved, kind=CHECKPOINT_KIND)
    assert found.digest == RULE.digest
    assert found.card == {"seeds": [0, 1]}
    assert all(torch.equal(found.theta[name], value) for name, value in RULE.theta.items())
    config, theta, _ = read_rule(found)
    assert config == read_rule(RULE)[0]
    assert theta.keys() == RULE.theta.keys()


def test_nothing_is_overwritten_silently_and_nothing_partial_is_left(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(CheckpointError, match="exists"):
        save_checkpoint(saved, RULE)
    assert saved.read_bytes() == before
    save_checkpoint(saved, RULE, overwrite=True)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(saved: Path, kept: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(saved, kind=CHECKPOINT_KIND)


def test_a_flipped_bit_in_the_weights_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-3] ^= 0x10
    saved.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="hash"):
        load_checkpoint(saved, kind=CHECKPOINT_KIND)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "99"}, "version '99'"),
        ({"kind": "pruner"}, "kind 'pruner'"),
        ({"format": ""}, "not an nfopt checkpoint"),
        ({"config": "{"}, "damaged header"),
        ({"digest": ""}, "damaged header"),
    ],
)
def test_files_of_another_version_kind_or_format_are_refused(
    saved: Path, changes: dict[str, str], message: str
) -> None:
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved, kind=CHECKPOINT_KIND)


def test_a_rule_whose_configuration_does_not_fit_is_refused() -> None:
    wider = Checkpoint(RULE.kind, RULE.theta, {**RULE.config, "hidden": 7}, name="wide")
    with pytest.raises(CheckpointError, match="do not fit"):
        read_rule(wider)
    unknown = Checkpoint(RULE.kind, RULE.theta, {**RULE.config, "depth": 7}, name="deep")
    with pytest.raises(CheckpointError, match="another version"):
        read_rule(unknown)


def test_an_unknown_name_lists_the_bundled_checkpoints() -> None:
    with pytest.raises(UnknownNameError, match="unknown checkpoint 'defaul'"):
        load_checkpoint("defaul", kind=CHECKPOINT_KIND)


@pytest.mark.parametrize("name", sorted({*bundled_names()} - {"mask", "editor", "statistics"}))
def test_bundled_rules_are_intact_and_carry_a_card(name: str) -> None:
    found = load_checkpoint(name, kind=CHECKPOINT_KIND)
    assert read_rule(found)
    assert found.card
