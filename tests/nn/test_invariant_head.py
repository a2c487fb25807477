"""The invariant head reads what differs from net to net: pooled features standardised over a zoo."""

import copy

import torch
from torch.testing import assert_close

from nfopt.nn import NeuralFunctional, NeuralFunctionalConfig
from nfopt.nn.neural_functional import _STATISTICS_NETS
from nfopt.testing import assert_equivariant
from tests.nn.spec_bound import mlp

SPEC = mlp(3, 5, 7, 2)
NETS = {
    name: torch.randn(11, *entry.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, entry in SPEC.tensors.items()
}


def network(**options):
    config = NeuralFunctionalConfig(
        **{"channels": 4, "depth": 2, "outputs": 3, "norm": None, "standardise_pooled": True, **options}
    )
    return NeuralFunctional(SPEC, config, generator=torch.Generator().manual_seed(0)).double()


def pooled(made, nets):
    """What the head's first matrix reads."""
    seen = []
    weight = made.head.weights[0]
    with torch.no_grad():
        weight.copy_(torch.eye(*weight.shape))
        made.head.activation = lambda x: seen.append(x) or x
        made(nets)
    return seen[0]


def test_after_the_fit_pooled_features_have_mean_0_and_spread_1_over_the_zoo():
    made = network(head_hidden=64)
    made.fit_statistics(NETS)
    read = pooled(made.eval(), NETS)[:, : made.head.pooling.features]
    assert_close(read.mean(0), torch.zeros_like(read[0]), atol=1e-9, rtol=0)
    varying = read.std(0, correction=0)
    assert_close(varying, torch.ones_like(varying), atol=1e-6, rtol=0)


def test_before_the_fit_it_is_the_head_without_standardisation():
    plain = network(standardise_pooled=False).eval()
    assert_close(network().eval()(NETS), plain(NETS), rtol=1e-6, atol=1e-6)


def test_a_feature_that_does_not_vary_is_not_blown_up():
    made = network()
    made.fit_statistics({name: tensor[:1].expand(7, *tensor.shape[1:]) for name, tensor in NETS.items()})
    variance = made.head.standardiser.running_var
    assert_close(variance, torch.ones_like(variance))


def test_a_fitted_head_follows_every_permutation():
    made = network().eval()
    made.fit_statistics(NETS)
    net = {name: tensor[0] for name, tensor in NETS.items()}
    assert_equivariant(made, SPEC, net, torch.Generator().manual_seed(0), samples=1)


def test_the_fit_reads_a_zoo_without_dropout_and_leaves_the_mode_as_it_was():
    calm, noisy = network(), network(dropout=0.5)
    for made in (calm, noisy):
        made.train()
        made.fit_statistics(NETS)
        assert made.training
    assert_close(noisy.head.standardiser.running_mean, calm.head.standardiser.running_mean)


def test_the_statistics_of_many_nets_are_those_of_the_first():
    torch.manual_seed(0)
    many = {name: torch.randn(_STATISTICS_NETS + 9, *t.shape[1:]).double() for name, t in NETS.items()}
    whole, first = network(), network()
    whole.fit_statistics(many)
    first.standardiser.load_state_dict(whole.standardiser.state_dict())
    first.head.fit(first.encode(first._enter({name: t[:_STATISTICS_NETS] for name, t in many.items()})))
    assert_close(whole.head.standardiser.running_mean, first.head.standardiser.running_mean)
    assert_close(whole.head.standardiser.running_var, first.head.standardiser.running_var)


def test_in_training_the_head_follows_layers_that_drift():
    made = network(head_hidden=64)
    made.fit_statistics(NETS)
    with torch.no_grad():
        for layer in (made.lift, *(layer.linear for layer in made.layers)):
            for bias in layer.biases:
                bias += 3
    features = made.head.pooling.features
    assert pooled(copy.deepcopy(made).eval(), NETS)[:, :features].abs().mean() > 3
    read = pooled(made.train(), NETS)[:, :features]
    assert_close(read.mean(0), torch.zeros_like(read[0]), atol=1e-9, rtol=0)


def test_a_single_net_is_read_by_the_running_means_in_training_too():
    made = network()
    made.fit_statistics(NETS)
    one = {name: tensor[:1] for name, tensor in NETS.items()}
    assert_close(made.train()(one), made.eval()(one))
    assert_close(made({name: tensor[0] for name, tensor in NETS.items()}), made(one)[0])
