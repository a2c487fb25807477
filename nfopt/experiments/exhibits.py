"""Exhibits: what a picture of a fitted reader shows, as JSON values."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.experiments.tasks.editing import Editing, as_images
from nfopt.experiments.tasks.embedding import Embedding
from nfopt.experiments.tasks.regression import Ranking, Regression
from nfopt.experiments.tasks.task import Network, Task, answers
from nfopt.zoo import SIDES, Zoo

POINTS = 400
IMAGES = 6
_DIGITS = 4

Exhibit = dict[str, list]


@torch.no_grad()
def exhibit(network: Network, task: Task, zoo: Zoo, targets: Mapping[str, Tensor]) -> Exhibit:
    """Return what is worth seeing of a reader on the first nets of the test side; empty if nothing is.

    Regression and ranking: "found" and "wanted"; embedding: "points" [nets, 2], the two principal components,
    and "facts" [nets, facts]; editing: "before", "after" and "target" [nets, height, width].
    """
    here = (zoo.side == SIDES.index("test")).nonzero().flatten()[:POINTS]
    if not len(here):
        return {}
    nets = {name: tensor[here] for name, tensor in zoo.tensors.items()}
    match task:
        case Regression():
            units = targets["scale"][here], targets["mean"][here]
            found = answers(network, nets)[:, 0] * units[0] + units[1]
            return _listed(found=found, wanted=targets["value"][here] * units[0] + units[1])
        case Ranking():
            found = answers(network, nets)[:, 0].sigmoid()
            return _listed(found=found, wanted=targets["value"][here])
        case Embedding():
            embedded = answers(network, nets).double()
            centred = embedded - embedded.mean(0)
            directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
            shown = _listed(points=centred @ directions.mT, facts=targets["facts"][here])
            return {**shown, "names": list(task.facts)} if shown else {}
        case Editing():
            few = {name: tensor[:IMAGES] for name, tensor in nets.items()}
            return _listed(
                before=as_images(task.render(few)),
                after=as_images(task.render_edited(network, few)),
                target=as_images(targets["image"][here[:IMAGES]]),
            )
    return {}


def _listed(**tensors: Tensor) -> Exhibit:
    """Return tensors as lists with four digits behind the point; nothing if a number is not finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return {}
    return {name: tensor.double().cpu().round(decimals=_DIGITS).tolist() for name, tensor in tensors.items()}
