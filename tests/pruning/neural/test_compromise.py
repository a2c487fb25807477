"""The compromise for convolutional nets: ranks and shares between two scores, and where it is taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nfopt.pruning import prune, select
from nfopt.pruning.neural import compromise, neural_score, read_network
from nfopt.pruning.neural.compromise import admissions, is_convolutional, places
from nfopt.pruning.prune import score_once
from nfopt.pruning.select import erk_counts
from tests.pruning.nets import batches, cnn, mlp

SHAPES = {"a": (5, 3, 3, 3), "b": (7, 5, 3, 3), "c": (2, 7)}
PICTURES = [(torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(11) % 2)]


def scores(seed, levels=10**6):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randint(levels, shape, generator=draw).double() for name, shape in SHAPES.items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1), st.sampled_from([3, 10**6]))
def test_a_tensor_has_as_many_weights_admitted_as_are_selected_also_among_ties(seed, density, levels):
    found = admissions(scores(seed, levels))
    total = sum(len(each) for each in found.values())
    for name, mask in select(scores(seed, levels), density).items():
        assert int((found[name] * total <= round(density * total) + 0.5).sum()) == int(mask.sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 1))
def test_its_shares_lie_between_those_of_the_magnitudes_and_erk_s(seed, density):
    ahead = {name: values * 10.0 ** (2 * i) for i, (name, values) in enumerate(scores(seed).items())}
    chosen = select(compromise(ahead, scores(seed + 1)), density)
    by_ahead, by_erk = select(ahead, density), erk_counts(SHAPES, density)
    assert sum(int(mask.sum()) for mask in chosen.values()) == round(density * 464)
    sides = [int(by_ahead[name].sum()) - by_erk[name] for name in SHAPES]
    moved = [int(chosen[name].sum()) - by_erk[name] for name in SHAPES]
    # The tensor to which the magnitudes give most above ERK's count does not fall below it, and the reverse.
    assert moved[sides.index(max(sides))] >= -1
    assert moved[sides.index(min(sides))] <= 1


def test_weights_are_ranked_by_the_product_of_their_places():
    ahead, flow = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 4.0, 3.0, 5.0, 2.0]])
    # Places 1 2 3 4 5 and 5 2 3 1 4, products 5 4 9 4 20: of equals the earlier first.
    assert places(compromise({"w": ahead}, {"w": flow})["w"]).tolist() == [[3, 1, 4, 2, 5]]


def test_two_scores_that_agree_with_each_other_and_with_erk_have_nothing_to_compromise_about():
    erk = {
        n: -(scores(0)[n].flatten().argsort().argsort() + 0.5).reshape(s) / sum(s) for n, s in SHAPES.items()
    }
    for density in (0.02, 0.1, 0.5):
        both = select(compromise(erk, erk), density)
        assert all(torch.equal(mask, both[name]) for name, mask in select(erk, density).items())


@pytest.mark.parametrize(
    ("model", "whether"),
    [(mlp(), False), (cnn(), True), (nn.Sequential(nn.Conv1d(3, 5, 3), nn.Linear(5, 2)), False)],
)
def test_a_net_is_convolutional_if_most_of_its_tensors_are_kernels(model, whether):
    assert is_convolutional({n: p for n, p in model.named_parameters() if p.dim() > 1}) == whether


def test_nf_is_the_compromise_on_convolutional_nets_and_its_flow_alone_on_others():
    network = read_network("mask")
    for model, data, same in ((mlp(), batches(), True), (cnn(), PICTURES, False)):
        given = {"batches": data, "on_empty_layer": "allow"}
        mixed, flow = prune(model, 0.2, "nf", **given), prune(model, 0.2, neural_score(network), **given)
        assert (mixed == flow) is same
        assert mixed == prune(model, 0.2, neural_score(network, mixed=True), **given)
        assert mixed.kept_count == flow.kept_count


def test_channels_are_scored_by_the_flow_which_has_an_amount():
    names = ["0.weight", "3.weight", "7.weight"]
    found, flow = (
        score_once(cnn(), names, score, batches=PICTURES)
        for score in ("nf", neural_score(read_network("mask")))
    )
    assert all(torch.equal(found[name], flow[name]) for name in names)


def test_a_wide_layer_that_magnitudes_empty_keeps_something():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 67, 3), nn.ReLU(), nn.Conv2d(67, 3, 3), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip
    given = {"batches": PICTURES, "on_empty_layer": "allow"}
    assert prune(model, 0.01, "ahead", **given).empty_layers
    assert not prune(model, 0.01, "nf", **given).empty_layers
