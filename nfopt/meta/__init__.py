"""Meta-training: how the learned update rule learns, on many small inner trainings side by side."""

from nfopt.meta.backprop import TruncatedBackprop
from nfopt.meta.estimator import ES, PES
from nfopt.meta.family import TaskFamily
from nfopt.meta.mixture import TaskMixture
from nfopt.meta.nets import Architecture
from nfopt.meta.objective import Objective
from nfopt.meta.outer import OuterConfig
from nfopt.meta.selection import Selection, longer_tasks
from nfopt.meta.slot import SlotSettings
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.trainer import MetaTrained, MetaTrainer, TrainerConfig
from nfopt.meta.unroll import TruncatedUnroll

__all__ = [
    "ES",
    "PES",
    "Architecture",
    "MetaTrained",
    "MetaTrainer",
    "Objective",
    "OuterConfig",
    "Selection",
    "SlotSettings",
    "Task",
    "TaskConfig",
    "TaskFamily",
    "TaskMixture",
    "ThetaLayout",
    "TrainerConfig",
    "TruncatedBackprop",
    "TruncatedUnroll",
    "longer_tasks",
]
