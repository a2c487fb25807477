import pytest
import torch

from nfopt.errors import PruningError
from nfopt.pruning import PruningPlan, prune_channels
from tests.pruning.channels.nets import Residual, build


@pytest.fixture
def pruning():
    model, x = build("residual")
    return prune_channels(model, x, 0.5)


def test_a_plan_of_another_model_is_refused(pruning):
    other, _ = build("flatten")
    with pytest.raises(PruningError, match=r"names or shapes than those of Flat\. Apply it"):
        pruning.plan.apply(other)
    with pytest.raises(PruningError, match="Apply it to a model made as the original"):
        pruning.plan.apply(pruning.model)


@pytest.mark.parametrize("kept", [[], [0, 0], [7], [-1]])
def test_indices_that_are_none_of_the_group_are_refused(pruning, kept):
    with pytest.raises(PruningError, match="group 'inner' of 7 channels"):
        PruningPlan({"inner": torch.tensor(kept, dtype=torch.long)}, pruning.plan.spec, pruning.plan.model)
    with pytest.raises(PruningError, match="group 'outer' of 0 channels"):
        PruningPlan({"outer": torch.tensor([0])}, pruning.plan.spec, pruning.plan.model)


def test_a_file_that_is_no_plan_is_refused(tmp_path, pruning):
    (tmp_path / "x").write_bytes(b"no tensors here")
    with pytest.raises(PruningError, match="cannot be read as a pruning plan"):
        PruningPlan.load(tmp_path / "x")
    from nfopt.pruning import prune

    prune(Residual(), 0.5).save(tmp_path / "mask")
    with pytest.raises(PruningError, match="has the format 'nfopt-pruning-mask-1'"):
        PruningPlan.load(tmp_path / "mask")


def test_momenta_shrink_as_their_parameters_do():
    model, x = build("residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    pruning = prune_channels(model, x, 0.5)
    momenta = {n: optimizer.state[p]["momentum_buffer"] for n, p in model.named_parameters()}
    smaller = pruning.plan.apply_to_tensors(momenta)
    parameters = dict(pruning.model.named_parameters())
    assert {n: t.shape for n, t in smaller.items()} == {n: p.shape for n, p in parameters.items()}
    weights = pruning.plan.apply_to_tensors(dict(model.named_parameters()))
    assert all(torch.equal(weights[n], parameters[n]) for n in weights)


def test_rows_and_text_say_how_many_of_each_group_remain(pruning):
    assert [(r.group, r.size, r.kept) for r in pruning.plan.rows()] == [("stem", 11, 6), ("inner", 7, 4)]
    assert "stem: 6 of 11" in str(pruning.plan)
