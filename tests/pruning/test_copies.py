"""Copies trained side by side are the nets trained alone."""

import copy
from math import cos, pi

import pytest
import torch
from torch.nn import functional

from nfopt.data import load_data
from nfopt.errors import PruningError
from nfopt.models import build_model
from nfopt.pruning import apply_mask, keep_masked, prune
from nfopt.pruning.copies import CopiesConfig, MaskedCopies, score_copies, train_copies
from nfopt.training import batch_indices

CONFIG = CopiesConfig(6, 13, lr=1e-2, weight_decay=0.1, save_every=2)


def digits():
    return load_data("digits", n_train=101, n_val=53)


def nets(kind, count=3):
    options = {"hidden": [7, 5]} if kind == "mlp" else {"channels": [5, 7]}
    return [build_model(kind, (1, 8, 8), 10, seed=seed, options=options).train() for seed in range(count)]


def double(data):
    splits = {part: getattr(data, part) for part in ("train", "val", "test")}
    return type(data)(
        data.name,
        *(type(s)(s.images.double(), s.labels) for s in splits.values()),
        classes=data.classes,
    )


def trained_alone(net, mask, data, config):
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if mask is not None:
        keep_masked(optimizer, net, mask)
    for step in range(config.total_steps):
        index = batch_indices(step, images=len(data.train), batch_size=config.batch_size, seed=config.seed)
        batch = data.train[index]
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 + cos(pi * step / config.total_steps)) / 2
        optimizer.zero_grad()
        functional.cross_entropy(net(batch.images), batch.labels).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_copy_takes_the_steps_that_adamw_takes_on_it_alone_under_its_mask(kind):
    data, starts = double(digits()), [net.double() for net in nets(kind)]
    masks = [prune(starts[0], 0.3), None, prune(starts[2], 0.6, "random")]
    found = train_copies(MaskedCopies.of(starts, masks), data, CONFIG)
    for i, (net, mask) in enumerate(zip(starts, masks, strict=True)):
        expected = trained_alone(net, mask, data, CONFIG).state_dict()
        for name, value in found.state_of(i).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)


def test_pruned_weights_are_exactly_zero_after_training_and_others_moved():
    starts = nets("mlp")
    masks = [prune(net, 0.2, "random") for net in starts]
    found = train_copies(MaskedCopies.of(starts, masks), digits(), CONFIG)
    for name, kept in found.kept.items():
        assert bool((found.params[name][~kept] == 0).all())
    moved = found.params["1.weight"][0] != starts[0].get_parameter("1.weight")
    assert bool(moved[masks[0].kept["1.weight"]].any())


def test_scores_are_those_of_each_net_alone():
    data, starts = digits(), nets("cnn")
    copies = MaskedCopies.of(starts, [None] * 3)
    for net, score in zip(starts, score_copies(copies, data.test), strict=True):
        with torch.no_grad():
            outputs = net.eval()(data.test.images)
        assert score.loss == pytest.approx(
            float(functional.cross_entropy(outputs, data.test.labels)), rel=1e-5
        )
        assert score.accuracy == pytest.approx(float((outputs.argmax(1) == data.test.labels).float().mean()))


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.done == 5:
            raise StoppedError

    starts, data = nets("cnn", 2), digits()
    copies = MaskedCopies.of(starts, [prune(net, 0.5) for net in starts])
    whole = train_copies(copies, data, CONFIG)
    with pytest.raises(StoppedError):
        train_copies(copies, data, CONFIG, state_file=tmp_path / "state", progress=stop)
    assert (tmp_path / "state").is_file()
    resumed = train_copies(copies, data, CONFIG, state_file=tmp_path / "state")
    for i in range(2):
        for name, value in whole.state_of(i).items():
            assert torch.equal(value, resumed.state_of(i)[name]), name


def test_the_net_s_mode_and_the_random_state_stay_and_dropout_is_the_seed_s():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Dropout(0.5))
    model[2].eval()
    copies, state = MaskedCopies.of([model] * 2, [None] * 2), torch.get_rng_state()
    first, second = (train_copies(copies, digits(), CONFIG) for _ in range(2))
    score_copies(first, digits().val)
    assert torch.equal(first.params["1.weight"], second.params["1.weight"])
    assert not torch.equal(first.params["1.weight"][0], first.params["1.weight"][1])
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and not model[2].training


def test_bad_copies_are_refused():
    starts = nets("mlp")
    held = copy.deepcopy(starts[0])
    apply_mask(held, prune(held, 0.5))
    with pytest.raises(PruningError, match="call remove_mask"):
        MaskedCopies.of([held], [None])
    with pytest.raises(PruningError, match="as many masks as starts"):
        MaskedCopies.of(starts, [None])
    with pytest.raises(PruningError, match="another model"):
        MaskedCopies.of(nets("cnn", 1), [prune(starts[0], 0.5)])
    with pytest.raises(PruningError, match="lr above 0"):
        CopiesConfig(5, lr=0.0)
