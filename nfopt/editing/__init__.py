"""Editing: trained models adapted to a new domain by edits that are values, gated and revertible."""

from nfopt.editing.adapt import adapt
from nfopt.editing.corruptions import CORRUPTIONS, Domain, corrupt, corruption
from nfopt.editing.edit import Edit, compose, edit_between
from nfopt.editing.evidence import Answers, Evidence
from nfopt.editing.gate import Gate
from nfopt.editing.gate_score import GateScore, Outcome, gate_score
from nfopt.editing.history import Check, EditStep
from nfopt.editing.methods import (
    METHODS,
    BatchNormStatistics,
    Eata,
    Finetune,
    MeanDelta,
    Method,
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
    "Evidence",
    "Finetune",
    "Gate",
    "GateScore",
    "MeanDelta",
    "Method",
    "Outcome",
    "ShotIM",
    "Task",
    "Tent",
    "adapt",
    "compose",
    "corrupt",
    "corruption",
    "edit_between",
    "edit_method",
    "gate_score",
]
