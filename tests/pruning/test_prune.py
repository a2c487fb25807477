import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nfopt.errors import DuplicateNameError, NfoptWarning, PruningError, UnknownNameError
from nfopt.pruning import SCORES, Score, prune, score
from tests.pruning.nets import batches, cnn, mlp


def shrink_first_layer(model, kept):
    with torch.no_grad():
        model[0].weight.mul_(0.5)


GIVEN = {"batches": batches(), "example_inputs": torch.zeros(1, 5), "train": shrink_first_layer}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(SCORES)), st.floats(0.3, 1), st.sampled_from(["global", "layer", "erk"]))
def test_every_score_keeps_exactly_the_count_in_every_scope_also_over_rounds(name, density, scope):
    mask = prune(mlp(), density, name, scope, rounds=3, on_empty_layer="allow", **GIVEN)
    wanted = sum(round(density * n) for n in (35, 77, 33)) if scope == "layer" else round(density * 145)
    assert mask.kept_count == wanted


@pytest.mark.parametrize("name", sorted(SCORES))
def test_pruning_changes_neither_the_model_nor_the_random_state_and_repeats(name):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    first, second = (prune(model, 0.5, name, **GIVEN) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_statistics_stay_and_other_seeds_give_other_masks():
    model = cnn().train()
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))]
    before = model[1].running_mean.clone()
    prune(model, 0.5, "snip", batches=data)
    assert torch.equal(before, model[1].running_mean)
    assert prune(model, 0.5, "random", seed=1) != prune(model, 0.5, "random", seed=2)


def test_every_round_of_imp_begins_at_the_first_weights_under_the_mask_so_far():
    model, seen = mlp(), []

    def train(copied, kept):
        seen.append({name: mask.clone() for name, mask in kept.items()})
        for name, mask in kept.items():
            start = model.get_parameter(name) * mask
            assert torch.equal(copied.get_parameter(name), start)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.add_(1.0)

    mask = prune(model, 0.125, "imp", rounds=3, train=train)
    densities = [sum(int(m.sum()) for m in kept.values()) for kept in seen] + [mask.kept_count]
    assert densities == [145, round(145 * 0.5), round(145 * 0.25), round(145 * 0.125)]
    for earlier, later in zip(seen, [*seen[1:], mask.kept], strict=True):
        assert all(bool((later[name] <= earlier[name]).all()) for name in earlier)


def test_what_the_starting_mask_prunes_stays_pruned():
    model = mlp()
    start = prune(model, 0.5, "random")
    mask = prune(model, 0.25, "magnitude", start=start)
    assert mask.intersection(start) == mask
    with pytest.raises(PruningError, match=r"do not prune the same tensors: 0.weight"):
        prune(model, 0.25, start=start, exclude=["0.*"])


def deep_narrow():
    """Layer widths as in nets whose wide layers begin with small weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 7, bias=False), nn.Linear(7, 211, bias=False), nn.Linear(211, 211, bias=False),
            nn.Linear(211, 3, bias=False),
        )  # fmt: skip


def test_magnitude_at_2_percent_empties_the_widest_layers_and_is_warned_about():
    with pytest.warns(NfoptWarning, match=r"nothing is kept of 2.weight.*layer collapse"):
        mask = prune(deep_narrow(), 0.02, "magnitude")
    assert "2.weight" in mask.empty_layers


def test_iterated_synflow_empties_no_layer_where_magnitude_does():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = prune(deep_narrow(), 0.02, "synflow", example_inputs=torch.zeros(1, 5))
    assert not mask.empty_layers
    assert mask.kept_count == round(0.02 * mask.total_count)


def test_an_empty_layer_is_an_error_or_nothing_if_asked_for():
    with pytest.raises(PruningError, match=r"nothing is kept of 2\.weight"):
        prune(deep_narrow(), 0.02, on_empty_layer="error")
    assert prune(mlp(), 0.0, on_empty_layer="allow").kept_count == 0


def test_two_of_four_needs_no_density_and_says_what_does_not_divide():
    net = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 3))
    assert prune(net, scope="2:4").density == 0.5
    with pytest.raises(PruningError, match=r"0.weight \[7, 5\].*exclude"):
        prune(mlp(), scope="2:4")
    with pytest.raises(PruningError, match=r"keeps 0\.5, not density=0.1"):
        prune(net, 0.1, scope="2:4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 1.5}, "between 0 and 1"),
        ({}, "needs density="),
        ({"density": 0.5, "score": "snip"}, r"'snip' needs batches=...: a list of pairs"),
        ({"density": 0.5, "score": "imp"}, r"'imp' needs train="),
        ({"density": 0.5, "score": "synflow"}, r"needs example_inputs="),
        ({"density": 0.5, "rounds": 0}, "at least one round"),
        ({"density": 0.5, "exclude": ["head.*"]}, "matches no parameter"),
        ({"density": 0.5, "exclude": "head.*"}, r"pattern 'head\.\*' matches no parameter"),
        ({"density": "0.5"}, "between 0 and 1, not '0.5'"),
        ({"density": float("nan")}, "between 0 and 1, not nan"),
        ({"density": 0.5, "on_empty_layer": "raise"}, "give warn, error or allow"),
        ({"density": 0.5, "score": "snip", "batches": batches()[0]}, r"batches=\[\(inputs, targets\)\]"),
        ({"density": 0.5, "score": "snip", "batches": [(torch.zeros(2, 5),)]}, "has length 1"),
        ({"density": 0.5, "score": "snip", "batches": iter(batches())}, r"list\(itertools.islice\(loader"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(PruningError, match=message):
        prune(mlp(), **arguments)


def test_an_unknown_score_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'magnitude'"):
        prune(mlp(), 0.5, "magnitud")


def test_weights_that_are_no_numbers_are_named():
    model = mlp()
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(PruningError, match=r"scores of 2\.weight are not all finite"):
        prune(model, 0.5)


def test_training_that_diverges_is_named():
    def train(model, kept):
        model[0].weight.data.fill_(float("inf"))

    with pytest.raises(PruningError, match=r"training under the mask left 0\.weight"):
        prune(mlp(), 0.5, "imp", train=train)


def test_a_score_of_one_s_own_is_a_function_and_its_faults_are_found():
    last = Score(
        "last", lambda c: {n: torch.arange(p.numel()).reshape(p.shape) for n, p in c.parameters.items()}
    )
    mask = prune(mlp(), 0.2, last, "layer")
    assert mask.kept["0.weight"].flatten().tolist() == [False] * 28 + [True] * 7
    with pytest.raises(PruningError, match="not the 3 tensors"):
        prune(mlp(), 0.2, Score("none", lambda c: {}))
    with pytest.raises(PruningError, match=r"values of shape \(1,\)"):
        prune(mlp(), 0.2, Score("short", lambda c: {n: torch.ones(1) for n in c.parameters}))


def test_a_score_s_name_is_given_once():
    with pytest.raises(DuplicateNameError, match="named 'snip'"):
        score("snip")(lambda context: {})


def test_progress_is_heard_of_every_round():
    heard = []
    prune(mlp(), 0.5, rounds=3, progress=heard.append)
    assert [(p.done, p.total) for p in heard] == [(0, 3), (1, 3), (2, 3), (3, 3)]
