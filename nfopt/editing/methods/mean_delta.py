"""Method `mean-delta`: the mean of the changes that adapting other networks of the same shape came to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.editing.bits import shortened
from nfopt.editing.edit import Edit
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.model_state import state_of
from nfopt.errors import EditingError


@edit_method("mean-delta")
@dataclass(frozen=True, eq=False)
class MeanDelta(Method):
    """Adds the mean of the deltas of a zoo: what can be had without looking at the network or at the images.

    Source: the baseline of Navon et al. 2023, "Equivariant architectures for learning in deep weight spaces"
    (arXiv:2301.12780), section 7, domain adaptation.

    Attributes:
        deltas: for each network of the zoo the change of each changed tensor, as `Edit.delta` gives it; a
            tensor that one network does not name did not change there.
        scale: factor on the mean.
    """

    deltas: tuple[Mapping[str, Tensor], ...] = ()
    scale: float = 1.0

    @classmethod
    def of_zoo(
        cls, zoo: list[tuple[nn.Module | Mapping[str, Tensor], Edit]], scale: float = 1.0
    ) -> "MeanDelta":
        """Return the method from pairs of a base and its edit; raises EditingError where they do not fit."""
        return cls(tuple(edit.delta(base) for base, edit in zoo), scale)

    def options(self) -> dict[str, Any]:
        """Return the options without the tensors."""
        return {"deltas": len(self.deltas), "scale": self.scale}

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the tensors that the deltas name."""
        return list(dict.fromkeys(name for delta in self.deltas for name in delta))

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Add the mean delta."""
        if not self.deltas:
            raise EditingError("mean-delta needs deltas=(...), one of each network of a zoo; see Edit.delta.")
        state = state_of(model)
        names = list(dict.fromkeys(name for delta in self.deltas for name in delta))
        faults = [f"{name} is not in the model" for name in names if name not in state]
        faults += [
            f"a delta of {name} has shape {list(delta[name].shape)}, not {list(state[name].shape)}"
            for name in names
            for delta in self.deltas
            if name in state and name in delta and delta[name].shape != state[name].shape
        ]
        if faults:
            raise EditingError(f"the deltas are those of other networks: {shortened(faults)}.")
        with torch.no_grad():
            for name in names:
                found = [delta[name].double().cpu() for delta in self.deltas if name in delta]
                mean = self.scale * torch.stack(found).sum(0) / len(self.deltas)
                state[name].copy_((state[name].cpu().double() + mean).to(state[name].dtype))
        return {"networks": len(self.deltas), "tensors": len(names)}
