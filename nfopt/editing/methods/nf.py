"""Method `nf`: the learned editor, from weights alone, with unlabelled images, or with a few labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nfopt.editing.editor import NetForward, Targets, edited_tensors, read_editor
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.model_state import state_of
from nfopt.editing.norms import statistics_of
from nfopt.errors import EditingError
from nfopt.progress import Progress
from nfopt.symmetry import trace_permutation_spec

Uses = Literal["weights", "images", "labels"]


@edit_method("nf")
@dataclass(frozen=True)
class NeuralFunctionalEdit(Method):
    """A `WeightEditor` looks at the weights, and at what target images do to them, and proposes the edit.

    The model's symmetry is traced, so that any model can be edited whose trace `nfopt inspect` shows.

    Attributes:
        checkpoint: a bundled editor's name, "nominal" (blended statistics; gradient steps without BatchNorm),
            or the path of one that `kind: train_editor` wrote.
        uses: "weights" looks at the weights alone, "images" at the target images too, "labels" at the labels
            that are given as well.
        scale: factor on the change of every parameter; 0 leaves the statistics of BatchNorm alone to change.
    """

    checkpoint: str = "nominal"
    uses: Uses = "images"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.uses not in ("weights", "images", "labels"):
            raise EditingError(f"uses of nf is 'weights', 'images' or 'labels', not {self.uses!r}.")
        if not 0 <= self.scale <= 10:
            raise EditingError(f"scale of nf is {self.scale}; it must be from 0 to 10.")
        known = read_editor(self.checkpoint)
        if self.uses not in known.uses:
            raise EditingError(
                f"the editor {known.name} was trained to look at {', '.join(known.uses)}, not at "
                f"{self.uses}. Give uses={known.uses[0]!r}, or another checkpoint."
            )
        if self.uses == "labels":  # labels that shape the edit cannot judge it
            object.__setattr__(self, "needs", frozenset({"labels"}))
            object.__setattr__(self, "trains_on_labels", True)

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the parameters, and the statistics unless weights alone are used."""
        names = [name for name, p in model.named_parameters() if p.is_floating_point()]
        return names if self.uses == "weights" else [*names, *statistics_of(model)]

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Trace the model, let the editor propose, and put its tensors in place."""
        loaded = read_editor(self.checkpoint)
        state = state_of(model)
        device = task.images.device
        editor = loaded.editor.to(device)
        spec = trace_permutation_spec(model, task.images[:2])
        tensors = {
            name: tensor.detach()
            for name, tensor in state.items()
            if name in spec.tensors and tensor.is_floating_point()
        }
        targets = None
        if self.uses != "weights":
            targets = Targets(task.images, task.labels if self.uses == "labels" else None)
        rounds = editor.config.rounds
        with torch.no_grad():
            edited = edited_tensors(
                editor,
                NetForward(model),
                spec,
                tensors,
                targets,
                tuple(task.images.shape[1:]),
                lambda done: task.progress(Progress(f"edit by {self.name}", done, rounds)),
            )
            touched = set(statistics_of(model))
            for name, value in edited.items():
                factor = 1.0 if name in touched else self.scale
                state[name].copy_(tensors[name] + factor * (value - tensors[name]))
        return {"editor": loaded.digest, "rounds": rounds, "unruled": len(spec.unruled)}
