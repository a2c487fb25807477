import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.errors import UnknownNameError
from nfopt.zoo import SIDES, Zoo, ZooError, join_zoos, stack_nets
from tests.zoo.toy_zoos import toy_zoo


def changed(zoo, **fields):
    values = {name: getattr(zoo, name) for name in ("spec", "tensors", "facts", "side", "card")}
    return Zoo(**values | fields)


def test_the_sides_share_no_net_and_leave_none_out():
    zoo = toy_zoo(11)
    parts = [zoo.of(side) for side in SIDES]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat([part.tensors["0.weight"] for part in parts]).sum((1, 2)).sort().values,
                       zoo.tensors["0.weight"].sum((1, 2)).sort().values)  # fmt: skip
    assert all((part.side == i).all() for i, part in enumerate(parts))
    with pytest.raises(UnknownNameError, match=r"Did you mean 'train'\?"):
        zoo.of("trein")


@given(order=st.permutations(range(5)))
def test_a_subset_holds_the_asked_nets_in_the_asked_order(order):
    zoo = toy_zoo(5)
    part = zoo.subset(order)
    for place, i in enumerate(order):
        assert all(torch.equal(part.net(place)[name], tensor) for name, tensor in zoo.net(i).items())
        assert part.facts["label"][place] == zoo.facts["label"][i]
        assert part.side[place] == zoo.side[i]
    assert part.card == zoo.card and part.spec == zoo.spec


def test_the_digest_changes_with_any_number_and_with_nothing_else():
    zoo = toy_zoo()
    assert zoo.digest == toy_zoo().digest == changed(zoo, card={}).digest
    digests = {
        zoo.digest,
        zoo.subset([1, 0, 2, 3, 4, 5, 6]).digest,
        changed(zoo, side=zoo.side.flip(0)).digest,
    }
    for kind in ("tensors", "facts"):
        for name, value in getattr(zoo, kind).items():
            other = value.clone()
            other.flatten()[-1] += 1
            digests.add(changed(zoo, **{kind: {**getattr(zoo, kind), name: other}}).digest)
    assert len(digests) == 3 + len(zoo.tensors) + len(zoo.facts)


def with_nan(tensor):
    broken = tensor.clone()
    broken[3, 0] = torch.nan
    return broken


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda z: {"tensors": {"0.weight": z.tensors["0.weight"]}}, "missing .*'0.bias'"),
        (lambda z: {"tensors": {**z.tensors, "9.weight": z.side}}, "unknown .*'9.weight'"),
        (lambda z: {"tensors": {**z.tensors, "0.weight": torch.zeros(7, 2, 3)}}, r"shape \(7, 3, 2\)"),
        (lambda z: {"tensors": {**z.tensors, "0.bias": torch.zeros(6, 3)}}, r"shape \(7, 3\)"),
        (lambda z: {"tensors": {**z.tensors, "0.bias": torch.zeros(7, 3, dtype=torch.int64)}}, "int64"),
        (lambda z: {"tensors": {**z.tensors, "0.bias": with_nan(z.tensors["0.bias"])}}, r"1 of 7 .*\[3\]"),
        (lambda z: {"facts": {"label": z.side[:3]}}, "the fact 'label' .* 7 nets"),
        (lambda z: {"facts": {"loss": with_nan(z.tensors["0.bias"])}}, "fact loss is NaN or infinite"),
        (lambda z: {"side": z.side + 1}, r"sides are 0 to 2 \(train, val, test\)"),
        (lambda z: {"side": z.side.float()}, "one whole number per net"),
    ],
)
def test_what_is_no_zoo_is_refused_with_the_reason(damage, message):
    zoo = toy_zoo()
    with pytest.raises(ZooError, match=message):
        changed(zoo, **damage(zoo))


def test_single_nets_stack_to_the_zoo_that_they_came_from():
    zoo = toy_zoo()
    stacked = stack_nets([zoo.net(i) for i in range(len(zoo))])
    assert all(torch.equal(stacked[name], tensor) for name, tensor in zoo.tensors.items())


def test_nets_of_two_architectures_make_no_zoo():
    zoo = toy_zoo()
    other = {**zoo.net(1), "0.weight": torch.zeros(5, 2)}
    with pytest.raises(ZooError, match=r"net 1 is of another architecture.*'0.weight' has shape \(5, 2\)"):
        stack_nets([zoo.net(0), other])
    with pytest.raises(ZooError, match="no net"):
        stack_nets([])


def test_joined_parts_are_the_whole():
    zoo = toy_zoo()
    assert join_zoos([zoo.subset(slice(0, 3)), zoo.subset(slice(3, None))]).digest == zoo.digest
    with pytest.raises(ZooError, match="zoo 1 knows"):
        join_zoos([zoo, changed(zoo, facts={})])
    with pytest.raises(ZooError, match="no zoo"):
        join_zoos([])


def test_a_fact_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UnknownNameError, match=r"'lable' in this zoo. Did you mean 'label'\?"):
        toy_zoo().fact("lable")


def test_another_dtype_changes_the_nets_and_not_the_facts():
    zoo = toy_zoo().to(dtype=torch.float64)
    assert zoo.tensors["0.weight"].dtype == torch.float64
    assert zoo.facts["image"].dtype == torch.float32
