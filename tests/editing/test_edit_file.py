import json

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from nfopt.editing import Check, Edit, EditStep, edit_between
from nfopt.errors import EditingError
from tests.editing.nets import bits_of, moved, normed


@pytest.fixture
def saved(tmp_path):
    base = normed()
    history = EditStep(
        "by-hand",
        {"lr": 0.5, "include": ["a", None]},
        "b",
        "r",
        images=16,
        data={"target": "abc"},
        before={"target_accuracy": 0.25},
        after={"target_accuracy": 0.75},
        checks=(Check("finite", True, "all numbers are finite"), Check("source", None, "not given")),
        notes={"last_loss": None},
    )
    edit = edit_between(base, moved(base), [history])
    edit.save(tmp_path / "edit.safetensors")
    return edit, tmp_path / "edit.safetensors"


def test_an_edit_comes_back_equal_from_its_file_and_still_works(saved):
    edit, path = saved
    loaded = Edit.load(path)
    assert loaded == edit and loaded.history == edit.history and loaded.changed == edit.changed
    model = normed()
    loaded.apply(model)
    assert bits_of(model) == bits_of(moved(normed()))
    loaded.revert(model)
    assert bits_of(model) == bits_of(normed())


def test_the_card_for_people_says_method_scores_checks_and_hashes(saved):
    edit, path = saved
    card = path.with_suffix(".md").read_text()
    for part in ("by-hand (lr 0.5", "16 target images", "target_accuracy 0.25 -> 0.75", "source: not made"):
        assert part in card
    assert edit.base_digest in card and edit.result_digest in card


@pytest.mark.parametrize("place", [10, 300, -3])
def test_a_flipped_byte_anywhere_is_noticed(saved, place):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[place] ^= 0x15
    path.write_bytes(bytes(content))
    with pytest.raises(EditingError):
        Edit.load(path)


def test_a_file_cut_short_an_absent_one_and_another_kind_are_refused(saved, tmp_path):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-9])
    for file in (path, tmp_path / "absent.safetensors"):
        with pytest.raises(EditingError, match="cannot be read as an edit"):
            Edit.load(file)
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(EditingError, match="has the format None"):
        Edit.load(tmp_path / "weights.safetensors")


def test_a_card_that_was_changed_by_hand_is_noticed(saved, tmp_path):
    _, path = saved
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    card = json.loads(metadata["card"])
    card["history"][0]["after"]["target_accuracy"] = 1.0
    metadata["card"] = json.dumps(card)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(EditingError, match="does not match its hash"):
        Edit.load(path)
