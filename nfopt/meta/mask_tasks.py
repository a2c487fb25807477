"""What the mask network learns from: small nets, their batches, and how long each weight outlives IMP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.data import ImageData
from nfopt.errors import NfoptError
from nfopt.meta.sources import load_source, require_trainable
from nfopt.models import build_model
from nfopt.progress import ProgressCallback, silent
from nfopt.pruning import PruningMask, find_targets, select
from nfopt.pruning.copies import CopiesConfig, MaskedCopies, train_copies
from nfopt.pruning.scores import ScoreContext
from nfopt.pruning.scores.score import Batch
from nfopt.seeds import derive_seed
from nfopt.symmetry import PermutationSpec, trace_permutation_spec
from nfopt.training import batch_indices


@dataclass(frozen=True, slots=True)
class MaskTask:
    """A net on a data set, to make masks for.

    Attributes:
        source: a name of `sources.source_names()`.
        model: a name of `nfopt.models`.
        options: options of the model.
        side: height and width of the images.
        training: how its masked copies are trained.
        score_batches: batches that a score sees, each of `training.batch_size` images times `batch_factor`.
        batch_factor: images of a score's batch over those of a training step.
    """

    source: str
    model: str = "mlp"
    options: Mapping[str, Any] = field(default_factory=dict)
    side: int = 8
    training: CopiesConfig = field(default_factory=lambda: CopiesConfig(200))
    score_batches: int = 10
    batch_factor: int = 2

    def __post_init__(self) -> None:
        if min(self.side, self.score_batches, self.batch_factor) < 1:
            raise NfoptError(f"a task of masks needs side, score_batches and batch_factor >= 1, not {self}.")

    def data(self) -> ImageData:
        """Return the images; raises DataError for those that are held out for evaluation."""
        return load_source(require_trainable(self.source), self.side)

    def net(self, seed: int) -> nn.Module:
        """Return the net of a seed, in training mode."""
        data = self.data()
        drawn = derive_seed("mask", self.source, seed) % 2**31
        return build_model(self.model, data.in_shape, data.classes, seed=drawn, options=self.options).train()

    def batches(self, seed: int) -> list[Batch]:
        """Return the batches that a score sees of the net of a seed."""
        train = self.data().train
        images = self.training.batch_size * self.batch_factor
        found = []
        for step in range(self.score_batches):
            part = train[batch_indices(step, images=len(train), batch_size=images, seed=seed)]
            found.append((part.images, part.labels))
        return found

    def spec(self) -> PermutationSpec:
        """Return the symmetry of the task's nets."""
        return trace_permutation_spec(self.net(0), self.batches(0)[0][0][:2])

    def context(self, seed: int, spec: PermutationSpec) -> ScoreContext:
        """Return what a score sees of the net of a seed."""
        model, batches = self.net(seed), self.batches(seed)
        parameters = {name: model.get_parameter(name) for name in find_targets(model).names}
        kept = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in parameters.items()}
        generator = torch.Generator().manual_seed(seed)
        return ScoreContext(
            model, parameters, kept, generator, batches, example_inputs=batches[0][0], spec=spec
        )


def surviving_rounds(
    task: MaskTask,
    seeds: Sequence[int],
    densities: Sequence[float],
    *,
    progress: ProgressCallback = silent,
) -> list[dict[str, Tensor]]:
    """Return for the net of each seed how many rounds of iterative magnitude pruning each weight outlives.

    The nets of all seeds are trained side by side, on the same batches; each round begins at the first
    weights under the mask so far (Frankle and Carbin, arXiv:1803.03635) and prunes over all tensors together.

    Args:
        task: net and data.
        seeds: one net each.
        densities: kept fraction after each round, falling.
        progress: hears of every training.

    Returns:
        For each seed and tensor whole numbers in 0 .. len(densities), of the tensor's shape.
    """
    nets = [task.net(seed) for seed in seeds]
    names = find_targets(nets[0]).names
    kept = [{n: torch.ones(net.get_parameter(n).shape, dtype=torch.bool) for n in names} for net in nets]
    survived = [{n: torch.zeros(mask.shape, dtype=torch.long) for n, mask in each.items()} for each in kept]
    for number, density in enumerate(densities):
        masks = [PruningMask.for_model(net, each) for net, each in zip(nets, kept, strict=True)]
        config = replace(task.training, seed=derive_seed("mask", "imp", number) % 2**31)
        trained = train_copies(
            MaskedCopies.of(nets, masks), task.data(), config, progress=progress, task=f"IMP {task.source}"
        )
        for i, mask in enumerate(kept):
            worth = {n: trained.params[n][i].abs().masked_fill(~mask[n], float("-inf")) for n in names}
            chosen = select(worth, density)
            for n in names:
                mask[n] = chosen[n] & mask[n]
                survived[i][n] += mask[n]
    return survived
