"""Editing: trained models adapted to a new domain by edits that are values, gated and revertible."""

from nfopt.editing.adapt import adapt
from nfopt.editing.corruptions import CORRUPTIONS, Domain, corrupt, corruption
from nfopt.editing.edit import Edit, compose, edit_between
from nfopt.editing.editor import EditorConfig, WeightEditor, editor_checkpoint, read_editor
from nfopt.editing.evidence import Answers, Evidence
from nfopt.editing.gate import Gate
from nfopt.editing.gate_score import GateScore, Outcome, gate_score
from nfopt.editing.history import Check, EditStep
from nfopt.editing.methods import (
    METHODS,
    BatchNormStatistics,
    Eata,
    EmpiricalBayesStatistics,
    Finetune,
    LearnedStatistics,
    MeanDelta,
    Method,
    NeuralFunctionalEdit,
    ShotIM,
    Task,
    Tent,
    edit_method,
)

__all__ = [
    "CORRUPTIONS",
    "METHODS",
    "Answers",
    "BatchNormStatistics",
    "Check",
    "Domain",
    "Eata",
    "Edit",
    "EditStep",
    "EditorConfig",
    "EmpiricalBayesStatistics",
    "Evidence",
    "Finetune",
    "Gate",
    "GateScore",
    "LearnedStatistics",
    "MeanDelta",
    "Method",
    "NeuralFunctionalEdit",
    "Outcome",
    "ShotIM",
    "Task",
    "Tent",
    "WeightEditor",
    "adapt",
    "compose",
    "corrupt",
    "corruption",
    "edit_between",
    "edit_method",
    "editor_checkpoint",
    "gate_score",
    "read_editor",
]
