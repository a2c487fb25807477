"""Who does which work, and which rank has which slice."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.optim.sharded_exchange import share_out
from nfopt.optim.sharded_statistics import Shard


@given(costs=st.lists(st.floats(0.0, 1e9), max_size=40), ranks=st.integers(1, 17))
def test_the_largest_load_is_within_a_piece_of_the_average(costs: list[float], ranks: int) -> None:
    owners = share_out(costs, ranks)
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(ranks)]
    assert len(owners) == len(costs)
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0.0) + 1e-6 * sum(costs)


def test_equal_work_is_spread_over_all_ranks() -> None:
    assert sorted(share_out([3.0] * 7, 7)) == list(range(7))


@given(size=st.integers(1, 40), ranks=st.integers(1, 17))
def test_slices_are_those_of_chunk_and_empty_beyond(size: int, ranks: int) -> None:
    shard = Shard.even(1, size, ranks)
    chunks = torch.arange(size).chunk(ranks)
    assert len(shard.starts) == len(shard.lengths) == ranks
    for rank in range(ranks):
        found = torch.arange(size).narrow(0, shard.starts[rank], shard.lengths[rank])
        assert torch.equal(found, chunks[rank] if rank < len(chunks) else torch.arange(0))
