"""The learned optimizer: a pure update rule, and the torch.optim.Optimizer around it."""

from nfopt.optim.guard_report import GuardReport
from nfopt.optim.nfoptimizer import NFOptimizer
from nfopt.optim.rule import LearnedUpdateRule, RuleConfig
from nfopt.optim.spec_source import NfoptWarning

__all__ = ["GuardReport", "LearnedUpdateRule", "NFOptimizer", "NfoptWarning", "RuleConfig"]
