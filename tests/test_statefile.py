import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nfopt.errors import CheckpointError
from nfopt.statefile import load_state, save_state

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
)


@given(TREES)
def test_any_nested_state_comes_back_equal_with_its_types(tmp_path_factory, tree):
    file = tmp_path_factory.getbasetemp() / "tree"
    save_state(file, tree)
    assert repr(load_state(file)) == repr(tree)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.randn(3, 5).to(dtype).T
    save_state(tmp_path / "s", {"a": [tensor, tensor], 0: torch.tensor(3).to(dtype)})
    back = load_state(tmp_path / "s")
    assert torch.equal(back["a"][0], tensor) and back["a"][1].dtype == dtype
    assert back[0].shape == ()


@given(st.permutations(range(4)))
def test_tensors_come_back_with_their_axes_in_memory_as_they_were(tmp_path_factory, order):
    file = tmp_path_factory.getbasetemp() / "strides"
    tensor = torch.randn(2, 3, 5, 7).permute(order)
    save_state(file, tensor)
    assert torch.equal(load_state(file), tensor)
    assert load_state(file).stride() == tensor.stride()


def test_the_state_of_an_optimizer_and_its_scheduler_comes_back(tmp_path):
    model = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(7, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", optimizer.state_dict())
    assert repr(load_state(tmp_path / "s")) == repr(optimizer.state_dict())


@pytest.mark.parametrize("bad", [object(), {"a": [{1, 2}]}, {(1, 2): 3}, {True: 1}])
def test_what_cannot_be_stored_is_an_error(tmp_path, bad):
    with pytest.raises(CheckpointError):
        save_state(tmp_path / "s", bad)
    assert not list(tmp_path.iterdir())


def test_a_truncated_a_foreign_and_a_missing_file_are_errors(tmp_path):
    file = tmp_path / "s"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(file)
    save_state(file, {"a": torch.zeros(100)})
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(file)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match="format"):
        load_state(file)
