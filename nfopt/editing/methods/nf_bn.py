"""Method `nf-bn`: BatchNorm statistics chosen by the learned statistics editor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nfopt.editing.editor import NetForward, read_statistics_editor
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.model_state import state_of
from nfopt.editing.norms import statistics_of


@edit_method("nf-bn")
@dataclass(frozen=True)
class LearnedStatistics(Method):
    """A `StatisticsEditor` chooses, channel by channel, between source and target statistics, and beyond.

    One forward pass over the target images, all at once; nothing but running statistics is changed.

    Attributes:
        checkpoint: "statistics", which comes with the package; "nominal" (blended statistics, variances by
            their logarithms, the source's worth 8 images); or the path of one that `kind: train_editor`
            wrote with the key `statistics`.
    """

    checkpoint: str = "nominal"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __post_init__(self) -> None:
        read_statistics_editor(self.checkpoint)

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the statistics."""
        return statistics_of(model)

    @torch.no_grad()
    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Let the editor choose, and put its statistics in place."""
        loaded = read_statistics_editor(self.checkpoint)
        state = state_of(model)
        held = {name: tensor.detach().clone() for name, tensor in state.items() if tensor.is_floating_point()}
        editor = loaded.editor.to(task.images.device)
        edited = editor.edited(NetForward(model), held, task.images)
        for name in statistics_of(model):
            state[name].copy_(edited[name])
        return {"editor": loaded.digest, "layers": len(statistics_of(model)) // 2}
