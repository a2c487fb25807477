"""The learned optimizer: a pure update rule, and the torch.optim.Optimizer around it."""

from nfopt.optim.rule import LearnedUpdateRule, RuleConfig

__all__ = ["LearnedUpdateRule", "RuleConfig"]
