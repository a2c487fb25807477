"""Experiments over zoos of nets: every reader of weights on the same questions."""

from nfopt.experiments.alignment import Aligned, align
from nfopt.experiments.bench import Bench
from nfopt.experiments.canonical import canonical_relu, canonical_siren
from nfopt.experiments.fitting import Fit, FitConfig, fit
from nfopt.experiments.question import ExperimentError, Question
from nfopt.experiments.readers import READERS, Reader, WeightReader, parameter_count, reader
from nfopt.experiments.tasks import (
    IMAGE_EDITS,
    Classification,
    Editing,
    Embedding,
    Ranking,
    Regression,
    Task,
)
from nfopt.spread import Spread, paired, spread

__all__ = [
    "IMAGE_EDITS",
    "READERS",
    "Aligned",
    "Bench",
    "Classification",
    "Editing",
    "Embedding",
    "ExperimentError",
    "Fit",
    "FitConfig",
    "Question",
    "Ranking",
    "Reader",
    "Regression",
    "Spread",
    "Task",
    "WeightReader",
    "align",
    "canonical_relu",
    "canonical_siren",
    "fit",
    "paired",
    "parameter_count",
    "reader",
    "spread",
]
