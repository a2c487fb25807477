import torch
from torch.nn import functional

from nfopt.data import Split
from nfopt.editing.editor import NetForward
from nfopt.meta.editor_nets import descend_side_by_side, stacked_state, train_in_turn, train_side_by_side
from nfopt.models import build_model


def nets(count=3, name="cnn", options=None):
    options = options or {"channels": (3, 5)}
    return [build_model(name, (1, 7, 7), 3, seed=s, options=options).eval() for s in range(count)]


def pictures(count=41):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (count,), generator=generator)
    noise = torch.randn(count, 1, 7, 7, generator=generator)
    return Split(noise + labels[:, None, None, None], labels)


def test_each_net_is_trained_as_it_would_be_alone():
    modules = nets(3, "mlp", {"hidden": (5,)})
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(3, 11, 1, 7, 7, generator=generator), torch.randint(0, 3, (3, 11), generator=generator))
        for _ in range(4)
    ]
    forward = NetForward(modules[0], many=True)
    found = descend_side_by_side(forward, stacked_state(modules), batches, total_steps=4, lr=1e-2)
    for net, module in enumerate(modules):
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        for images, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(module(images[net]), labels[net]).backward()
            optimizer.step()
            schedule.step()
        for name, value in module.named_parameters():
            torch.testing.assert_close(found[name][net], value.detach(), rtol=1e-3, atol=1e-5)


def test_trained_nets_know_their_images_with_the_statistics_of_the_end():
    modules, split = nets(), pictures()
    tensors = train_side_by_side(
        modules[0], stacked_state(modules), split, total_steps=60, batch_size=23, lr=3e-2, seed=0
    )
    for net, module in enumerate(modules):
        module.load_state_dict({name: value[net] for name, value in tensors.items()}, strict=False)
        accuracy = (module(split.images).argmax(1) == split.labels).float().mean()
        assert accuracy > 0.8
    inputs = modules[0][0](split.images)
    torch.testing.assert_close(tensors["1.running_mean"][0], inputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_nets_trained_in_turn_know_their_images_and_their_modules_stay_fresh():
    modules, split = nets(2, "cnn", {"channels": (3, 5)}), pictures()
    before = stacked_state(modules)
    tensors = train_in_turn(modules, split, total_steps=120, batch_size=23, lr=3e-2, seed=0)
    for name, value in stacked_state(modules).items():
        assert torch.equal(value, before[name])
    assert tensors.keys() == before.keys()
    for net, module in enumerate(modules):
        module.load_state_dict({name: value[net] for name, value in tensors.items()}, strict=False)
        assert (module(split.images).argmax(1) == split.labels).float().mean() > 0.8
    inputs = modules[1][0](split.images)
    torch.testing.assert_close(tensors["1.running_mean"][1], inputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_a_net_trained_in_turn_does_not_depend_on_those_after_it():
    modules, split = nets(3, "cnn", {"channels": (3, 5)}), pictures()
    few = train_in_turn(modules[:1], split, total_steps=5, batch_size=11, lr=1e-2, seed=3)
    many = train_in_turn(modules, split, total_steps=5, batch_size=11, lr=1e-2, seed=3)
    for name, value in few.items():
        assert torch.equal(value[0], many[name][0])


def test_a_net_of_a_row_is_trained_alone_by_its_number():
    modules, split = nets(3, "cnn", {"channels": (3, 5)}), pictures()
    how = {"total_steps": 5, "batch_size": 11, "lr": 1e-2, "seed": 3}
    row = train_in_turn(modules, split, **how)
    alone = train_in_turn(modules[2:], split, first=2, **how)
    other = train_in_turn(modules[2:], split, **how)
    for name, value in alone.items():
        assert torch.equal(value[0], row[name][2])
    assert not torch.equal(other["0.weight"], alone["0.weight"])
