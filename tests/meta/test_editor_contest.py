from dataclasses import dataclass

import torch

from nfopt.editing import BatchNormStatistics, Finetune, Method
from nfopt.errors import EditingError
from nfopt.meta.editor_contest import Arena, Stream, contest, gap_share, oracle_net, target_images, tuned
from tests.editing.nets import bits_of
from tests.meta.test_editor_nets import nets, pictures


def arena():
    split = pictures(61)
    half, rest = split[torch.arange(30)], split[torch.arange(30, 61)]
    return Arena(nets(2), {"clean": half, "dark": half}, {"clean": rest, "dark": rest})


def test_methods_of_a_contest_see_the_same_images_and_leave_the_nets_alone():
    field = arena()
    before = [bits_of(net) for net in field.nets]
    methods = {"source": None, "bn": BatchNormStatistics(), "again": BatchNormStatistics()}
    trials = contest(field, methods, ["dark", "clean"], Stream(11), 0)
    assert len(trials) == 3 * 2 * 2 and [bits_of(net) for net in field.nets] == before
    found = {(t.method, t.domain, t.net): (t.target, t.clean) for t in trials}
    for domain in ("dark", "clean"):
        for net in (0, 1):
            assert found["bn", domain, net] == found["again", domain, net]
    first, second = (target_images(field, "dark", net, Stream(11), 0) for net in (0, 1))
    assert not torch.equal(first.images, second.images)


def test_a_one_sided_stream_shows_few_classes():
    seen = target_images(arena(), "dark", 0, Stream(7, classes=1), 0)
    assert len(seen.labels.unique()) == 1


def test_the_best_setting_is_chosen():
    grid = {"ruin": Finetune(lr=10.0, steps=9, statistics="keep"), "learn": Finetune(lr=1e-2, steps=30)}
    chosen, means = tuned(arena(), grid, ["dark"], Stream(23, shots=23), 0)
    assert chosen == "learn" and means["learn"] > means["ruin"]


@dataclass(frozen=True)
class Wild(Method):
    """Ruins the weights, then notices."""

    def fit(self, model, task):
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        raise EditingError("wild diverged.")


def test_a_method_that_diverges_leaves_the_net_as_it_was():
    trials = contest(arena(), {"source": None, "wild": Wild()}, ["dark"], Stream(11), 0)
    scores = {(t.method, t.net): t.target for t in trials}
    assert scores["wild", 0] == scores["source", 0] and scores["wild", 1] == scores["source", 1]


def test_the_oracle_learns_from_all_labels_and_spans_the_gap():
    field = arena()
    net = oracle_net(field.nets[0], field.seen["dark"], 0)
    right = (net(field.seen["dark"].images).argmax(1) == field.seen["dark"].labels).float().mean()
    assert right > 0.8
    assert gap_share(0.5, 0.25, 0.75) == 0.5 and gap_share(0.5, 0.8, 0.8) is None
