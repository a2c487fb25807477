import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nfopt.errors import PruningError
from nfopt.pruning import PruningMask, prune
from tests.pruning.nets import cnn, mlp


def random_mask(model, seed, density=0.4):
    return prune(model, density, "random", seed=seed)


@given(st.integers(0, 99), st.integers(0, 99))
def test_union_and_intersection_are_those_of_the_kept_sets_and_jaccard_is_their_share(first, second):
    model = mlp()
    a, b = random_mask(model, first), random_mask(model, second)
    union, both = a.union(b), a.intersection(b)
    assert union.kept_count + both.kept_count == a.kept_count + b.kept_count
    assert a.compare(b).overall == both.kept_count / union.kept_count
    assert union == b.union(a) and both.union(a) == a


def test_a_mask_comes_back_equal_from_its_file_in_the_order_of_the_model(tmp_path):
    model = cnn()
    mask = prune(model, 0.3, "magnitude", "erk")
    mask.save(tmp_path / "mask.safetensors")
    loaded = PruningMask.load(tmp_path / "mask.safetensors", model)
    assert loaded == mask and hash(loaded) == hash(mask)
    assert [row.name for row in loaded.rows()] == ["0.weight", "3.weight", "7.weight"]
    assert loaded.origin == mask.origin and loaded.origin["scope"] == "erk"


def test_a_mask_of_another_initialisation_fits_and_one_of_another_width_does_not(tmp_path):
    mask = random_mask(mlp(0), 0)
    mask.check_fits(mlp(1))
    mask.save(tmp_path / "mask.safetensors")
    other = nn.Sequential(nn.Linear(5, 13))
    with pytest.raises(PruningError, match=r"mask of 0.weight has shape \(7, 5\), the tensor \(13, 5\)"):
        PruningMask.load(tmp_path / "mask.safetensors", other)
    with pytest.raises(PruningError, match=r"'2\.weight', which Sequential does not have"):
        mask.check_fits(nn.Sequential(nn.Linear(5, 7)))
    deeper = nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(PruningError, match="other parameters"):
        mask.check_fits(deeper)
    with pytest.raises(PruningError, match="not of the same tensors"):
        mask.compare(prune(mlp(), 0.4, "random", exclude=["0.*"]))


def test_a_file_that_is_no_mask_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"no tensors here")
    for file in ("x", "absent"):
        with pytest.raises(PruningError, match="cannot be read as a mask"):
            PruningMask.load(tmp_path / file)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "y")
    with pytest.raises(PruningError, match="has the format None"):
        PruningMask.load(tmp_path / "y")


def test_a_mask_does_not_share_memory_with_what_it_was_made_from():
    model = mlp()
    kept = {"0.weight": torch.ones(7, 5, dtype=torch.bool)}
    mask = PruningMask.for_model(model, kept)
    kept["0.weight"].zero_()
    assert mask.density == 1
    with pytest.raises(TypeError):
        mask.kept["2.weight"] = kept["0.weight"]


def test_masks_are_boolean():
    with pytest.raises(PruningError, match=r"give torch\.bool"):
        PruningMask.for_model(mlp(), {"0.weight": torch.ones(7, 5)})


def test_shuffling_keeps_the_density_of_every_layer_and_moves_the_places():
    mask = prune(mlp(), 0.4, "magnitude")
    shuffled = mask.shuffled(torch.Generator().manual_seed(3))
    assert shuffled.densities == mask.densities
    assert shuffled != mask
    assert mask.compare(shuffled).overall < 0.8
    assert mask.compare(shuffled).largest_density_gap == 0


def test_rows_count_what_is_kept_and_the_text_says_it():
    mask = prune(mlp(), 0.25, "magnitude", "layer")
    assert [(row.name, row.kept, row.total) for row in mask.rows()] == [
        ("0.weight", 9, 35),
        ("2.weight", 19, 77),
        ("4.weight", 8, 33),
    ]
    assert "36 of 145 kept (24.8 %)" in str(mask)
    assert "2.weight [11, 7]: 19 of 77" in str(mask)


def test_the_text_says_what_each_pattern_matched_also_after_loading(tmp_path):
    mask = prune(mlp(), 0.25, exclude=["4.*"])
    assert "exclude '4.*': 4.weight" in str(mask)
    mask.save(tmp_path / "mask.safetensors")
    assert str(PruningMask.load(tmp_path / "mask.safetensors")) == str(mask)
    assert "exclude" not in str(prune(mlp(), 0.25))
