"""Numbers that modules outside torch keep follow the axes that they were the sizes of, and no others."""

import pytest
import torch
from torch import nn

from nfopt.pruning.channels.custom_sizes import (
    HEAD_NAMES,
    INNER_NAMES,
    SIZE_NAMES,
    WIDTH_NAMES,
    update_custom,
)
from nfopt.symmetry import Atom, Prod, Sum

HEADS, CHANNELS, STREAM = Atom("heads", 5), Atom("channels", 7), Atom("stream", 11)
AXES = [Prod((HEADS, CHANNELS)), STREAM, Atom("other", 13)]
FEWER_HEADS = {"heads": torch.tensor([0, 3])}


def after(kept, axes=AXES, around=(), **numbers):
    module = nn.Module()
    vars(module).update(numbers)
    update_custom(module, list(axes), list(around), kept)
    return {name: getattr(module, name) for name in numbers}


@pytest.mark.parametrize("name", sorted(HEAD_NAMES))
def test_heads_are_counted_anew(name):
    assert after(FEWER_HEADS, **{name: 5}) == {name: 2}


@pytest.mark.parametrize("name", sorted(INNER_NAMES))
def test_the_width_of_all_heads_follows_the_heads(name):
    assert after(FEWER_HEADS, num_heads=5, **{name: 35}) == {"num_heads": 2, name: 14}


@pytest.mark.parametrize("name", sorted(WIDTH_NAMES | SIZE_NAMES))
def test_a_width_follows_its_axis(name):
    assert after({"stream": torch.arange(4)}, **{name: 11}) == {name: 4}


def test_other_numbers_and_numbers_of_other_names_stay():
    assert after(FEWER_HEADS, stride=5, width=13, flag=True) == {"stride": 5, "width": 13, "flag": True}


def test_a_size_of_two_axes_that_shrink_apart_stays():
    axes = [STREAM, Atom("twin", 11)]
    assert after({"stream": torch.arange(4)}, axes, dim=11) == {"dim": 11}


def test_the_width_of_all_heads_does_not_follow_a_stream_that_is_another_product():
    stream = Prod((Atom("a", 7 * 5), Atom("b", 1)))
    assert after({"a": torch.arange(3)}, [*AXES, stream], num_heads=5, attn_dim=35)["attn_dim"] == 35


def test_pieces_follow_a_concatenation_here_or_around():
    whole = Sum((STREAM, CHANNELS))
    kept = {"stream": torch.arange(4), "channels": torch.arange(2)}
    assert after(kept, [whole], pieces=(11, 7)) == {"pieces": (4, 2)}
    assert after(kept, [CHANNELS], [whole], pieces=(11, 7)) == {"pieces": (4, 2)}
    assert after(kept, [whole], pieces=(9, 9)) == {"pieces": (9, 9)}
