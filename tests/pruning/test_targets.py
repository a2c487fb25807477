import pytest
from torch import nn

from nfopt.errors import PruningError
from nfopt.pruning import find_targets
from tests.pruning.nets import cnn, mlp


def test_the_weights_of_linear_maps_convolutions_and_attention_are_pruned_and_nothing_else():
    assert find_targets(cnn()).names == ("0.weight", "3.weight", "7.weight")
    net = nn.ModuleDict(
        {"e": nn.Embedding(3, 5), "a": nn.MultiheadAttention(6, 2), "n": nn.LayerNorm(5), "r": nn.GRU(5, 7)}
    )
    assert find_targets(net).names == (
        "a.in_proj_weight",
        "a.out_proj.weight",
        "r.weight_ih_l0",
        "r.weight_hh_l0",
    )


def test_patterns_narrow_and_widen_and_what_they_match_is_said():
    targets = find_targets(mlp(), include=["*.weight", "*.bias"], exclude=["0.*"])
    assert targets.names == ("2.weight", "2.bias", "4.weight", "4.bias")
    assert targets.excluded == {"0.*": ("0.weight", "0.bias")}
    assert "exclude '0.*': 0.weight, 0.bias" in str(targets)


@pytest.mark.parametrize("word", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_names(word):
    with pytest.raises(PruningError, match=f"{word} pattern 'head' matches no parameter.*0.weight"):
        find_targets(mlp(), **{word: ["head"]})


def test_one_pattern_needs_no_list():
    assert find_targets(mlp(), exclude="0.*") == find_targets(mlp(), exclude=["0.*"])
    assert find_targets(mlp(), include="*.bias") == find_targets(mlp(), include=["*.bias"])


def test_a_lazy_layer_without_weights_is_named():
    with pytest.raises(PruningError, match=r"0\.weight has no shape yet\. Call the model once"):
        find_targets(nn.Sequential(nn.LazyLinear(3)))


def test_nothing_left_to_prune_is_an_error():
    with pytest.raises(PruningError, match="nothing of Sequential is left"):
        find_targets(mlp(), exclude=["*"])


def test_a_tied_weight_is_one_target():
    net = mlp()
    net.append(nn.Linear(11, 3))
    net[-1].weight = net[4].weight
    assert find_targets(net).names == ("0.weight", "2.weight", "4.weight")
