"""Update rules for tasks: the learned one, built from the traced symmetry of a task's network."""

from functools import lru_cache

from torch import Tensor

from nfopt.meta.nets import Architecture
from nfopt.meta.task import Task
from nfopt.meta.theta import ThetaLayout
from nfopt.optim import LearnedUpdateRule, RuleConfig
from nfopt.seeds import generator
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.trace import trace_permutation_spec


class LearnedRules:
    """Builds the learned update rule for a task; a rule factory of `slot.RuleFactory`'s kind.

    Args:
        config: constants and network size of the rule.
    """

    def __init__(self, config: RuleConfig) -> None:
        self.config = config
        self._rule = lru_cache(maxsize=256)(self._build)

    def __call__(self, task: Task) -> LearnedUpdateRule:
        """Return the rule for the parameters of `task`."""
        return self._rule(task.config.architecture)

    def _build(self, architecture: Architecture) -> LearnedUpdateRule:
        spec = trace_permutation_spec(architecture.build(), architecture.example_inputs())
        return LearnedUpdateRule(spec, self.config)

    def init_theta(self, seed: int) -> tuple[Tensor, ThetaLayout]:
        """Draw the nominal theta, whose output layers are zero, and return it as a vector with its layout."""
        rule = LearnedUpdateRule(PermutationSpec.uncoupled({"w": (3, 5)}), self.config)
        theta = rule.init_theta(generator(seed, "theta"))
        layout = ThetaLayout.of(theta)
        return layout.flatten(theta), layout
