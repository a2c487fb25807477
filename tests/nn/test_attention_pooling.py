"""Attention pooling: invariant on every spec, equal to its formula, and listening to every weight."""

import pytest
import torch
from torch.testing import assert_close

from nfopt.nn import AttentionPooling, LayoutError, weight_layout
from nfopt.testing import assert_equivariant
from tests.hand_specs import SPECS
from tests.nn.spec_bound import LAWS, law_spec, law_tensors, layouts, mlp, random_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pooling(layout, channels=1, **options):
    return AttentionPooling(layout, channels, 3, heads=2, generator=seeded(), **options).double()


@pytest.mark.parametrize("name", LAWS)
def test_pooling_is_invariant_and_as_wide_as_it_says(name):
    spec = law_spec(name)
    for layout in layouts(spec):
        pool = pooling(layout)
        assert pool(random_values(layout, batch=(2, 5))).shape == (2, 5, pool.features)
        if spec.groups:
            assert_equivariant(lambda t, p=pool: p(p.layout.enter(t)), spec, law_tensors(spec), seeded())


def test_the_result_is_the_formula():
    layout = weight_layout(mlp(2, 5, 3))
    pool = pooling(layout, head_channels=4)
    values = random_values(layout)
    elements = [
        row @ weight + bias
        for given, weight, bias in zip(values, pool.weights, pool.biases, strict=True)
        for row in given.reshape(-1, given.shape[-1])
    ]
    expected = []
    for m in range(3):
        for head in range(2):
            keys = torch.stack([e.view(2, 8)[head, :4] for e in elements])
            parts = torch.stack([e.view(2, 8)[head, 4:] for e in elements])
            attention = (keys @ pool.queries[head, m] / 2).softmax(0)
            expected.append(attention @ parts)
    assert_close(pool(values), torch.cat(expected))


def test_every_weight_of_a_net_is_heard_in_its_own_vector_alone():
    layout = weight_layout(SPECS["mlp"])
    values = [v.requires_grad_() for v in random_values(layout, batch=(2,))]
    for gradient in torch.autograd.grad(pooling(layout)(values)[0].square().sum(), values):
        assert bool((gradient[0] != 0).all()) and not gradient[1].any()


def test_pooling_compiles_as_one_graph():
    layout = weight_layout(SPECS["mlp"])
    pool, values = pooling(layout), random_values(layout, batch=(2,))
    assert_close(torch.compile(pool, fullgraph=True, backend="eager")(values), pool(values))


def test_wrong_options_are_refused():
    layout = weight_layout(SPECS["mlp"])
    with pytest.raises(LayoutError, match="queries"):
        AttentionPooling(layout, 1, 0)
    with pytest.raises(LayoutError, match="another spec"):
        pooling(layout)(random_values(weight_layout(SPECS["rnn"])))
