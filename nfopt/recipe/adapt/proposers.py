"""What recipes say about proposers of edits from weights alone: kind, alignment, learning rates."""

from dataclasses import asdict, replace
from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import nn

from nfopt.editing.editor import EditorConfig
from nfopt.errors import NfoptError
from nfopt.experiments import READERS, Question, align
from nfopt.meta.editor_from_weights import ProposerTraining
from nfopt.meta.editor_proposers import (
    ConstantProposer,
    EditorProposer,
    FlatProposer,
    NetworkProposer,
    Proposer,
    input_atoms,
)
from nfopt.nn import NeuralFunctional, NeuralFunctionalConfig
from nfopt.progress import ProgressCallback
from nfopt.recipe.records import record
from nfopt.recipe.strict import Count, Positive, Strict
from nfopt.seeds import generator
from nfopt.zoo import Zoo

EDIT_SCALE = 0.01
"""What a fresh network proposes is that small, as in Zhou et al. 2023."""


class ProposerOptions(Strict):
    """A proposer of changes.

    Attributes:
        kind: "editor" (role-tied), "layers" (spec-bound, with the options of a NeuralFunctional), "flat" (a
            perceptron of all weights), "constant" (one learned change for all nets), "reader" (a baseline of
            `nfopt.experiments.READERS`).
        editor: configuration of an editor.
        layers: configuration of layers; the head is made equivariant.
        reader: name of a reader.
        hidden: width of a flat one or a reader.
        aligned: whether the neurons of every net are first renumbered to match those of one training net.
        training: how it is trained.
        lrs: learning rates to try in the place of that of the training; the validation nets choose.
    """

    kind: Literal["editor", "layers", "flat", "constant", "reader"]
    editor: Annotated[EditorConfig, record(EditorConfig)] = Field(
        default_factory=lambda: EditorConfig(rounds=1, free=0.5, rescale=0.5, operators=1.0)
    )
    layers: Annotated[NeuralFunctionalConfig, record(NeuralFunctionalConfig)] = Field(
        default_factory=lambda: NeuralFunctionalConfig(
            layer="dws", head="equivariant", channels=8, depth=3, output_scale=EDIT_SCALE
        )
    )
    reader: str = "transformer"
    hidden: Count = 64
    aligned: bool = False
    training: Annotated[ProposerTraining, record(ProposerTraining)] = Field(default_factory=ProposerTraining)
    lrs: tuple[Positive, ...] = ()

    @field_validator("reader")
    @classmethod
    def _edits(cls, reader: str) -> str:
        # Alignment and permutation are keys of the proposer, whatever its kind.
        able = [
            name
            for name in READERS
            if "equivariant" in READERS[name].heads
            and READERS[name].prepare == "none"
            and not READERS[name].permutes
        ]
        if reader not in able:
            raise ValueError(f"{reader!r} is no reader that can edit; those are {', '.join(able)}.")
        return reader

    def trainings(self) -> list[ProposerTraining]:
        """Return one training for each learning rate."""
        return [replace(self.training, lr=lr) for lr in self.lrs] or [self.training]

    def build(self, zoo: Zoo, module: nn.Module, image_shape: tuple[int, ...], seed: int) -> Proposer:
        """Return the proposer for the nets of a zoo."""
        draw = generator(seed, "proposer")
        if self.kind == "constant":
            return ConstantProposer(zoo)
        if self.kind == "flat":
            return FlatProposer(zoo, self.hidden, draw)
        if self.kind == "editor":
            return EditorProposer(zoo, module, self.editor, image_shape, draw)
        if self.kind == "reader":
            question = Question(zoo.spec, "equivariant", output_scale=EDIT_SCALE)
            return NetworkProposer(zoo, READERS[self.reader].build(question, self.hidden, draw))
        # One weight for each pair of pixels would be too many: their positions tell them apart.
        wide = {"also_permuted": input_atoms(zoo.spec), "position": self.layers.position or "sinusoidal"}
        config = NeuralFunctionalConfig(**{**asdict(self.layers), **wide, "head": "equivariant"})
        return NetworkProposer(zoo, NeuralFunctional(zoo.spec, config, generator=draw))


def aligned(zoo: Zoo, progress: ProgressCallback) -> Zoo:
    """Return the zoo with the neurons of every net renumbered to match those of its first training net.

    Raises:
        NfoptError: there is no training net.
    """
    if not len(zoo.of("train")):
        raise NfoptError("alignment needs a net of the training side to align to; the zoo has none.")
    found = align(zoo.spec, zoo.tensors, zoo.of("train").net(0), progress=progress)
    return replace(zoo, tensors=found.tensors)
