"""Tasks: the experiments of the field over zoos of nets."""

from nfopt.experiments.tasks.classification import Classification
from nfopt.experiments.tasks.editing import Editing
from nfopt.experiments.tasks.embedding import Embedding
from nfopt.experiments.tasks.image_edits import IMAGE_EDITS
from nfopt.experiments.tasks.regression import Ranking, Regression
from nfopt.experiments.tasks.task import Task

__all__ = ["IMAGE_EDITS", "Classification", "Editing", "Embedding", "Ranking", "Regression", "Task"]
