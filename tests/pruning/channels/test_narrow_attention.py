"""Attention after pruning is torch's own as long as nothing has been removed, whatever the call."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nfopt.pruning.channels.narrow_attention import NarrowAttention

OPTIONS = st.fixed_dictionaries(
    {"bias": st.booleans(), "add_bias_kv": st.booleans(), "add_zero_attn": st.booleans()},
    optional={"kdim": st.just(7), "vdim": st.just(11)},
)


def both(batch_first=False, **options):
    torch.manual_seed(0)
    ours = nn.MultiheadAttention(15, 5, batch_first=batch_first, **options).double().eval()
    torchs = copy.deepcopy(ours)
    NarrowAttention.take_over(ours, 5)
    assert type(ours) is NarrowAttention
    return ours, torchs


@settings(max_examples=40, deadline=None)
@given(
    options=OPTIONS,
    batch_first=st.booleans(),
    batched=st.booleans(),
    average=st.booleans(),
    attention=st.sampled_from([None, "one", "per head"]),
    padding=st.booleans(),
    numbers=st.booleans(),
)
def test_with_all_its_heads_it_is_torchs(options, batch_first, batched, average, attention, padding, numbers):
    ours, torchs = both(batch_first, **options)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = [draw(2, 3, 15), draw(2, 7, ours.kdim), draw(2, 7, ours.vdim)]
    inputs = [x[0] for x in inputs] if not batched else inputs
    if batched and not batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    shapes = {None: None, "one": (3, 7), "per head": (10 if batched else 5, 3, 7)}
    mask = None if attention is None else draw(*shapes[attention])
    holes = None if not padding else draw(2, 7) if batched else draw(7)
    if not numbers:
        mask, holes = (None if each is None else each > 1 for each in (mask, holes))
    call = {"attn_mask": mask, "key_padding_mask": holes, "average_attn_weights": average}
    found, expected = ours(*inputs, **call), torchs(*inputs, **call)
    # A position from which everything is masked is not a number in torch, and here.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert ours(*inputs, **call, need_weights=False)[1] is None


def test_an_encoder_layer_in_evaluation_computes_what_it_does_in_training():
    layer = nn.TransformerEncoderLayer(14, 2, 13, dropout=0.0, batch_first=True).double()
    NarrowAttention.take_over(layer.self_attn, 2)
    layer.self_attn.out_proj.weight.data.mul_(3)
    x = torch.randn(2, 3, 14, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), layer.train()(x), rtol=1e-12, atol=1e-12)


def test_dropout_works_in_training_only():
    ours, _ = both(dropout=0.5)
    x = torch.randn(3, 2, 15, dtype=torch.float64)
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    ours.train()
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize("packed", [True, False])
def test_sizes_are_read_from_the_weights(packed):
    ours, _ = both(**({} if packed else {"kdim": 7}))
    assert (ours.embed_dim, ours.num_heads, ours.head_dim, ours.kdim) == (15, 5, 3, 15 if packed else 7)
