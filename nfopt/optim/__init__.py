"""The learned optimizer: a pure update rule, and the torch.optim.Optimizer around it."""

from nfopt.errors import NfoptWarning
from nfopt.optim.guard_report import GuardReport
from nfopt.optim.nfoptimizer import NFOptimizer
from nfopt.optim.rule import LearnedUpdateRule, RuleConfig

__all__ = ["GuardReport", "LearnedUpdateRule", "NFOptimizer", "NfoptWarning", "RuleConfig"]
