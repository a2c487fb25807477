"""NPAttention against loops over tokens; equivariant on every spec; no element unheard."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nfopt.nn import LayoutError, NPAttention, weight_layout
from nfopt.testing import assert_equivariant, equivariance_error, wrong_coupling_error
from tests.hand_specs import SPECS, random_specs, random_tensors
from tests.nn.spec_bound import LAWS, law_spec, law_tensors, mlp, on_tensors, random_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def attention(spec, c_in=1, c_out=2, **options):
    layout = weight_layout(spec, permute_io=True)
    return NPAttention(layout, c_in, c_out, heads=2, generator=seeded(), **options).double()


@pytest.mark.parametrize("name", LAWS)
def test_the_layer_follows_every_permutation(name):
    spec = law_spec(name)
    layer = attention(spec)
    if spec.groups:
        assert_equivariant(on_tensors(layer, layer.layout), spec, law_tensors(spec), seeded())


@settings(deadline=None, max_examples=30)
@given(random_specs(), st.integers(0, 99))
def test_the_layer_is_equivariant_on_random_specs(spec, seed):
    layer = attention(spec)
    tensors = random_tensors(spec, seed)
    assert equivariance_error(on_tensors(layer, layer.layout), spec, tensors, seeded(seed)) < 1e-9


@pytest.mark.parametrize("name", ["mlp", "resnet", "rnn", "vit"])
def test_a_wrong_coupling_is_not_followed(name):
    layer = attention(SPECS[name])
    tensors = law_tensors(SPECS[name])
    assert wrong_coupling_error(on_tensors(layer, layer.layout), SPECS[name], tensors, seeded()) > 1e-3


def test_rows_columns_and_biases_attend_to_each_other_as_written():
    """The tokens of the hidden layer of a 2-5-3 MLP, one at a time, with one head."""
    layout = weight_layout(mlp(2, 5, 3), permute_io=True)
    layer = NPAttention(layout, 1, 1, heads=1, head_channels=1, generator=seeded()).double()
    values = random_values(layout)
    summaries_alone = layer._among_summaries(values)
    first, bias, second, _ = values
    # Over the hidden neurons: 2 columns of the first matrix, its bias, 3 rows of the second.
    occurrences = layer._occurrences["n1"]
    assert [(b, d) for _, b, d in occurrences] == [(0, 0), (1, 0), (2, 1)]
    tokens = [first[:, i, 0] for i in range(2)] + [bias[:, 0]] + [second[i, :, 0] for i in range(3)]
    kinds = [0, 0, 1, 2, 2, 2]
    enter = [layer.enter[occurrences[k][0]][0] for k in kinds]
    query, key, value = ([t * w[j] for t, w in zip(tokens, enter, strict=True)] for j in range(3))
    for out, (i, kind) in enumerate(zip([0, 1, None, 0, 1, 2], kinds, strict=True)):
        if i is not None:
            continue
        logits = torch.stack([query[out] @ k for k in key]) / 5**0.5
        mixed = sum(p * v for p, v in zip(logits.softmax(0), value, strict=True))
        expected = mixed * layer.leave[occurrences[kind][0]][0, 0]
        got = layer(values)[1] - summaries_alone[1]
        assert_close(got[:, 0], expected)


def test_every_output_hears_of_every_tensor_next_to_it():
    layout = weight_layout(SPECS["mlp"], permute_io=True)
    layer = attention(SPECS["mlp"])
    values = [v.requires_grad_() for v in random_values(layout, batch=(2,))]
    for output in layer(values):
        direction = torch.randn(output[0].shape, generator=seeded(2), dtype=output.dtype)
        gradients = torch.autograd.grad((output[0] * direction).sum(), values, retain_graph=True)
        for gradient in gradients:
            assert bool((gradient[0] != 0).all()) and not gradient[1].any()


def test_a_batch_of_nets_gives_each_net_its_own_result():
    layer = attention(SPECS["rnn"], 3, 2)
    values = random_values(layer.layout, batch=(2, 3), channels=3)
    together = layer(values)
    alone = layer([v[1, 2] for v in values])
    assert all(torch.allclose(t[1, 2], a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", ["mlp", "rnn"])
def test_the_layer_compiles_as_one_graph(name):
    layer = attention(SPECS[name])
    values = random_values(layer.layout, batch=(2,))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(values), layer(values), strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("width", [8, 64, 256])
def test_attention_does_not_grow_with_the_width(width):
    layer = NPAttention(weight_layout(mlp(2, width, width, 3), permute_io=True), 8, 8, generator=seeded())
    for output in layer([v.float() for v in random_values(layer.layout, channels=8)]):
        assert output.square().mean().sqrt() < 1.5


def test_wrong_options_and_layouts_are_refused():
    layout = weight_layout(SPECS["mlp"], permute_io=True)
    with pytest.raises(LayoutError, match="permute_io=True"):
        NPAttention(weight_layout(SPECS["mlp"]), 1, 1)
    with pytest.raises(LayoutError, match="heads"):
        NPAttention(layout, 1, 1, heads=0)
    with pytest.raises(LayoutError, match="another spec"):
        NPAttention(layout, 1, 1)(random_values(weight_layout(SPECS["rnn"], permute_io=True)))
