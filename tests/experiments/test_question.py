import pytest
import torch

from nfopt.errors import UnknownNameError
from nfopt.experiments.question import ExperimentError, Question, flatten, unflatten
from nfopt.symmetry import PermutationSpec
from tests.experiments.toys import conv_question, random_nets, siren_zoo


@pytest.mark.parametrize("question", [Question(siren_zoo(3).spec), conv_question()])
def test_a_net_as_one_vector_and_back_is_the_net(question):
    nets = random_nets(question.spec, 7)
    flat = flatten(question, nets)
    again = unflatten(question, flat)
    assert flat.shape[0] == 7 and again.keys() == nets.keys()
    assert all(torch.equal(again[name], nets[name]) for name in nets)


def test_tensors_of_another_architecture_are_refused_by_name():
    question = Question(siren_zoo(3).spec)
    nets = random_nets(question.spec, 3)
    with pytest.raises(ExperimentError, match=r"2\.bias is missing"):
        flatten(question, {n: t for n, t in nets.items() if n != "2.bias"})
    with pytest.raises(ExperimentError, match=r"2\.bias is of shape \(3, 2\)"):
        flatten(question, {**nets, "2.bias": nets["2.bias"][:, :2]})


def test_a_question_without_an_answer_is_refused():
    spec = siren_zoo(3).spec
    with pytest.raises(UnknownNameError, match="Did you mean 'invariant'"):
        Question(spec, head="invarant")
    with pytest.raises(ExperimentError, match="outputs is 0"):
        Question(spec, outputs=0)
    with pytest.raises(ExperimentError, match="finite"):
        Question(spec, output_scale=float("nan"))
    with pytest.raises(ExperimentError, match="no tensor"):
        Question(PermutationSpec({}))
