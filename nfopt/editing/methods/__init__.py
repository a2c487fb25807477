"""Methods of editing: plug-ins that say how a model's state changes for a target."""

# The methods enter themselves.
from nfopt.editing.methods.bn import BatchNormStatistics
from nfopt.editing.methods.bn_eb import EmpiricalBayesStatistics
from nfopt.editing.methods.eata import Eata
from nfopt.editing.methods.finetune import Finetune
from nfopt.editing.methods.mean_delta import MeanDelta
from nfopt.editing.methods.method import METHODS, Method, Task, edit_method
from nfopt.editing.methods.nf import NeuralFunctionalEdit
from nfopt.editing.methods.nf_bn import LearnedStatistics
from nfopt.editing.methods.shot_im import ShotIM
from nfopt.editing.methods.tent import Tent

__all__ = [
    "METHODS",
    "BatchNormStatistics",
    "Eata",
    "EmpiricalBayesStatistics",
    "Finetune",
    "LearnedStatistics",
    "MeanDelta",
    "Method",
    "NeuralFunctionalEdit",
    "ShotIM",
    "Task",
    "Tent",
    "edit_method",
]
