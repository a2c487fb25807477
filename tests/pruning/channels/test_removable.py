"""The search for what can be removed, on a prover that knows the answer."""

from math import inf

import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.progress import silent
from nfopt.pruning.channels.proof import RemovalProof
from nfopt.pruning.channels.removable import removable_groups

GROUPS = [f"group{i}" for i in range(13)]
KEPT = {group: torch.tensor([0]) for group in GROUPS}


class Oracle:
    """Groups in `held` can never go, and of each pair in `rivals` only one."""

    def __init__(self, held=(), rivals=()):
        self.held, self.rivals, self.asked = set(held), [set(pair) for pair in rivals], []

    def prove(self, kept, *, explain=True):
        self.asked.append(set(kept))
        bad = self.held & set(kept) or any(pair <= set(kept) for pair in self.rivals)
        return RemovalProof(inf, "a norm looks at it") if bad else RemovalProof(0.0)


some = st.sets(st.sampled_from(GROUPS))
pairs = st.lists(st.tuples(st.sampled_from(GROUPS), st.sampled_from(GROUPS)).filter(lambda p: p[0] != p[1]))


@given(held=some, rivals=pairs)
def test_what_is_free_was_proved_together_and_nothing_held_could_join_it(held, rivals):
    oracle = Oracle(held, rivals)
    free, reasons = removable_groups(oracle, KEPT, silent)
    assert free.keys() | reasons.keys() == set(GROUPS) and not free.keys() & reasons.keys()
    assert not free or set(free) in oracle.asked
    assert not free or oracle.prove(free).passed
    assert not any(oracle.prove({**free, group: KEPT[group]}).passed for group in reasons)
    for group, reason in reasons.items():
        assert reason.startswith("not together") == (group not in held)


@given(held=some.filter(lambda s: len(s) <= 1))
def test_one_held_group_among_many_is_found_in_few_proofs(held):
    oracle = Oracle(held)
    _, reasons = removable_groups(oracle, KEPT, silent)
    assert set(reasons) == held
    assert len(oracle.asked) <= (12 if held else 1)


def test_progress_ends_at_the_number_of_groups():
    heard = []
    removable_groups(Oracle(["group3"]), KEPT, heard.append)
    assert [heard[0].done, heard[-1].done, heard[-1].total] == [0, 13, 13]
    assert [p.done for p in heard] == sorted(p.done for p in heard)
