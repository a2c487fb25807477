from dataclasses import dataclass

import pytest
import torch

from nfopt.editing import BatchNormStatistics, Gate, Method, adapt
from nfopt.errors import EditingError
from nfopt.meta.editor_contest import accuracy
from nfopt.meta.editor_streams import ORDERS, batches_of, stream_accuracy
from tests.editing.nets import bits_of
from tests.meta.test_editor_nets import nets, pictures


@dataclass(frozen=True)
class Fade(Method):
    """Halves the weights: edits that are carried on add up."""

    def fit(self, model, task):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.5)
        return {}


def test_both_orders_show_the_same_images_and_one_of_them_class_after_class():
    split = pictures(61)
    shown = {order: batches_of(split, 11, order, 0) for order in ORDERS}
    assert [len(batch) for batch in shown["sorted"]] == [11] * 5
    first, second = (torch.cat([b.images for b in shown[order]]).flatten(1) for order in ORDERS)
    assert sorted(first.tolist()) == sorted(second.tolist())
    labels = torch.cat([batch.labels for batch in shown["sorted"]])
    assert (labels.diff() >= 0).all()
    assert (torch.cat([batch.labels for batch in shown["shuffled"]]).diff() < 0).any()


def test_without_a_method_a_stream_is_judged_by_the_base():
    (net, _), batches = nets(2), batches_of(pictures(61), 7, "sorted", 1)
    joined = batches[0]
    for batch in batches[1:]:
        joined = type(batch)(
            torch.cat([joined.images, batch.images]), torch.cat([joined.labels, batch.labels])
        )
    for carried in (False, True):
        found = stream_accuracy(net, None, batches, 0, carried=carried, gate=Gate())
        assert found == pytest.approx((accuracy(net, joined), 0))


def test_edits_add_up_only_where_they_are_carried_on(monkeypatch):
    from nfopt.meta import editor_streams

    seen = []
    judge = editor_streams.evaluate
    monkeypatch.setattr(
        editor_streams,
        "evaluate",
        lambda net, *images: (seen.append(next(net.parameters()).abs().max().item()), judge(net, *images))[1],
    )
    net = nets(1)[0]
    before, size = bits_of(net), next(net.parameters()).abs().max().item()
    batches = batches_of(pictures(61), 11, "shuffled", 0)[:3]
    stream_accuracy(net, Fade(), batches, 0, carried=False)
    stream_accuracy(net, Fade(), batches, 0, carried=True)
    assert seen == pytest.approx([size / 2] * 3 + [size / 2, size / 4, size / 8])
    assert bits_of(net) == before


def test_a_stream_sorted_by_class_harms_statistics():
    net = nets(1)[0]
    found = {
        order: stream_accuracy(
            net, BatchNormStatistics(), batches_of(pictures(121), 11, order, 0), 0, carried=False
        )[0]
        for order in ORDERS
    }
    assert found["sorted"] < found["shuffled"]


@pytest.mark.parametrize("carried", [False, True])
def test_what_the_gate_refuses_leaves_the_net_as_it_was(carried):
    net, batches = nets(1)[0], batches_of(pictures(61), 11, "sorted", 0)
    plain = stream_accuracy(net, None, batches, 0, carried=carried)[0]
    refused = stream_accuracy(net, Fade(), batches, 0, carried=carried, gate=Gate(max_weight_change=0.1))
    assert refused == (plain, 1)
    accepted = stream_accuracy(net, Fade(), batches, 0, carried=carried, gate=Gate(max_weight_change=0.9))
    assert accepted == (stream_accuracy(net, Fade(), batches, 0, carried=carried)[0], 0)


@pytest.mark.parametrize("bound", [0.1, 0.11, 0.12, 0.2])
def test_the_gate_of_a_stream_is_that_of_adapt(bound):
    net, batches = nets(1)[0], batches_of(pictures(61), 11, "sorted", 0)
    gate = Gate(max_target_shift=bound, max_deep_shift=None, sure=0)
    edits = [adapt(net, batch.images, BatchNormStatistics(), gate=gate) for batch in batches]
    expected = sum(not edit.accepted for edit in edits) / len(edits)
    found = stream_accuracy(net, BatchNormStatistics(), batches, 0, carried=False, gate=gate)
    assert found[1] == expected


def test_a_stream_of_less_than_one_batch_is_refused():
    with pytest.raises(EditingError, match="has 11 images, but there are 7"):
        batches_of(pictures(7), 11, "sorted", 0)
