import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nfopt.zoo import Zoo, ZooError, load_zoo, save_zoo
from tests.zoo.toy_zoos import toy_zoo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "zoo.safetensors"


def rewritten(path, *, tensors=None, metadata=None):
    """Write the file of the toy zoo with some tensors and metadata changed."""
    save_zoo(path, toy_zoo())
    with safe_open(path, framework="pt") as file:
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = file.metadata()
    kept = {key: value for key, value in {**old, **(tensors or {})}.items() if value is not None}
    save_file(kept, path, metadata={**header, **(metadata or {})})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zoo_comes_back_as_it_was_written(path, dtype):
    zoo = toy_zoo(dtype=dtype)
    save_zoo(path, zoo)
    loaded = load_zoo(path)
    assert loaded.digest == zoo.digest
    assert loaded.spec == zoo.spec
    assert loaded.card == zoo.card
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_a_zoo_as_they_may_any_new_file(path):
    save_zoo(path, toy_zoo())
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


def test_an_existing_file_is_not_overwritten_unasked(path):
    save_zoo(path, toy_zoo())
    with pytest.raises(ZooError, match="exists"):
        save_zoo(path, toy_zoo(seed=1))
    assert load_zoo(path).digest == toy_zoo().digest
    save_zoo(path, toy_zoo(seed=1), overwrite=True)
    assert load_zoo(path).digest == toy_zoo(seed=1).digest


def test_a_card_that_is_no_json_is_refused_before_anything_is_written(path):
    zoo = toy_zoo()
    with pytest.raises(ZooError, match="card"):
        save_zoo(path, Zoo(zoo.spec, zoo.tensors, zoo.facts, zoo.side, {"path": path}))
    assert not path.exists()


def test_a_truncated_file_is_refused_wherever_it_ends(path):
    save_zoo(path, toy_zoo())
    whole = path.read_bytes()
    for end in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ZooError, match="truncated"):
            load_zoo(path)


def test_an_altered_number_is_noticed(path):
    save_zoo(path, toy_zoo())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ZooError, match="altered"):
        load_zoo(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"format": "other"}}, "no zoo of nfopt"),
        ({"metadata": {"version": "7"}}, "has version '7'"),
        ({"metadata": {"spec": "{}"}}, "not a permutation spec"),
        ({"metadata": {"card": "{"}}, "no consistent zoo"),
        ({"tensors": {"side": None}}, "no consistent zoo"),
        ({"tensors": {"tensors/0.bias": None}}, r"missing \['0.bias'\]"),
        ({"tensors": {"tensors/0.bias": torch.zeros(7, 5)}}, "one architecture only"),
        ({"tensors": {"tensors/0.bias": torch.full((7, 3), torch.inf)}}, "NaN or infinite for 7 of 7"),
    ],
)
def test_a_foreign_mixed_or_non_finite_file_is_refused_with_its_path(path, change, message):
    rewritten(path, **change)
    with pytest.raises(ZooError, match=message) as caught:
        load_zoo(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(ZooError, match=r"no zoo at .*zoo\.safetensors"):
        load_zoo(path)
