"""Proposers: networks of several kinds that propose a change of nets from weights alone."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nfopt.editing.editor import EditorConfig, NetForward, WeightEditor, edited_tensors
from nfopt.errors import NfoptError
from nfopt.symmetry import PermutationSpec
from nfopt.zoo import Zoo

Changes = dict[str, Float[Tensor, "nets ..."]]


class Proposer(nn.Module):
    """Proposes a change of every parameter from the weights of nets of one spec; starts near no change.

    Args:
        zoo: nets to standardise by.
    """

    def __init__(self, zoo: Zoo) -> None:
        super().__init__()
        self.names = list(zoo.tensors)
        for index, name in enumerate(self.names):
            self.register_buffer(f"scale{index}", zoo.tensors[name].square().mean().sqrt())

    def scaled(self, changes: Mapping[str, Tensor]) -> Changes:
        """Return changes in units of each tensor's rms over the zoo as changes."""
        return {name: getattr(self, f"scale{i}") * changes[name] for i, name in enumerate(self.names)}

    def forward(self, tensors: Mapping[str, Float[Tensor, "nets ..."]]) -> Changes:
        """Return the change of each tensor."""
        raise NotImplementedError


class ConstantProposer(Proposer):
    """The same change for every net, learned."""

    def __init__(self, zoo: Zoo) -> None:
        super().__init__(zoo)
        self.changes = nn.ParameterList(torch.zeros_like(zoo.tensors[name][0]) for name in self.names)

    def forward(self, tensors: Mapping[str, Tensor]) -> Changes:
        """Return the change, once for each net."""
        return self.scaled(
            {
                name: change.expand_as(tensors[name])
                for name, change in zip(self.names, self.changes, strict=True)
            }
        )


class FlatProposer(Proposer):
    """A multilayer perceptron of the flattened weights, blind to their symmetry.

    Args:
        zoo: nets to standardise by.
        hidden: width of its two hidden layers.
        generator: source of the initial weights.
    """

    def __init__(self, zoo: Zoo, hidden: int, generator: torch.Generator) -> None:
        super().__init__(zoo)
        count = sum(t[0].numel() for t in zoo.tensors.values())
        self.enter = nn.Parameter(torch.randn(count, hidden, generator=generator) / count**0.5)
        self.middle = nn.Parameter(torch.randn(hidden, hidden, generator=generator) / hidden**0.5)
        self.leave = nn.Parameter(torch.zeros(hidden, count))

    def forward(self, tensors: Mapping[str, Tensor]) -> Changes:
        """Return the change."""
        units = {name: tensors[name] / getattr(self, f"scale{i}") for i, name in enumerate(self.names)}
        flat = torch.cat([units[name].flatten(1) for name in self.names], dim=1)
        said = functional.silu(functional.silu(flat @ self.enter) @ self.middle) @ self.leave
        parts = said.split([units[name][0].numel() for name in self.names], dim=1)
        return self.scaled(
            {name: part.view_as(tensors[name]) for name, part in zip(self.names, parts, strict=True)}
        )


class NetworkProposer(Proposer):
    """A network over the weights of one spec that returns tensors of their shapes.

    Args:
        zoo: nets to standardise by.
        network: maps tensors by name, [nets, *shape], to tensors by name; has `fit_statistics`.
    """

    def __init__(self, zoo: Zoo, network: nn.Module) -> None:
        super().__init__(zoo)
        self.network = network
        self.network.fit_statistics(zoo.tensors)  # pyright: ignore[reportCallIssue]

    def forward(self, tensors: Mapping[str, Tensor]) -> Changes:
        """Return the change."""
        said = self.network(tensors)
        assert isinstance(said, dict)
        return self.scaled(said)


class EditorProposer(Proposer):
    """The role-tied `WeightEditor`.

    Args:
        zoo: nets to edit.
        module: their architecture.
        config: of the editor.
        image_shape: shape of one image.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        zoo: Zoo,
        module: nn.Module,
        config: EditorConfig,
        image_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        super().__init__(zoo)
        self.editor = WeightEditor(config, generator)
        # Kept from becoming parts of this module: they are not trained.
        self._nets = (NetForward(module, many=True), zoo.spec, image_shape)

    def forward(self, tensors: Mapping[str, Tensor]) -> Changes:
        """Return the change."""
        forward, spec, image_shape = self._nets
        edited = edited_tensors(self.editor, forward, spec, tensors, None, image_shape)
        return {name: edited[name] - tensors[name] for name in self.names}


def input_atoms(spec: PermutationSpec) -> tuple[str, ...]:
    """Return the fixed atom that the first matrix reads, whose indices are the pixels."""
    first = next((e for e in spec.tensors.values() if e.role == "linear"), None)
    if first is None:
        raise NfoptError(
            "the nets have no matrix that reads pixels; proposers here edit multilayer perceptrons."
        )
    names = [a.name for a in spec.atoms.values() if a.size == first.axes[1].size and a.name in spec.fixed]
    return tuple(names[:1])
