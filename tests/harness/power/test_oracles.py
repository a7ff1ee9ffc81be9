"""The oracles that stepcheck is measured beside: fair to right optimizers, awake to blatant faults, and without traces."""

import random

import numpy as np
import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from stepcheck.harness.power import optim_db
from stepcheck.harness.power.oracles import ORACLES
from stepcheck.harness.power.torch_tests import TESTS
from stepcheck.harness.zoo import adam, life, muon, sgd, sparse_adam
from stepcheck.harness.zoo.catalogue import RIGHT, VARIANTS

BY_NAME = {oracle.name: oracle for oracle in ORACLES}
each_oracle = pytest.mark.parametrize("oracle", [pytest.param(o, id=o.name) for o in ORACLES])
#: Each has something that it is asked in its own way; the rest are as Adam is.
SPECIAL = "SGD", "Adam", "SparseAdam", "Muon"


def thorough(like):
    return () if like in SPECIAL else pytest.mark.slow


#: Right, and told wrong: torch computes it in bfloat16, so another order of the products is further away than float32 may be.
FALSE_ALARMS = {("assert_close", muon.RightMuon)}


def catches(oracle, make, like, seed=0):
    return BY_NAME[oracle].catches(make, like, seed)


#: What an author would ship; of the others, some take no learning rate that is a tensor, or are no torch.optim.Optimizer.
ASKED = [v for v in VARIANTS if v.make in RIGHT or (v.make.__module__.endswith("written") and v.like != "Muon")]


@pytest.mark.sampled(4)
@each_oracle
@pytest.mark.parametrize("right", [pytest.param(v, id=v.name, marks=thorough(v.like)) for v in ASKED])
def test_a_right_one_is_passed(oracle, right):
    assert bool(oracle.catches(right.make, right.like, 0)) == ((oracle.name, right.make) in FALSE_ALARMS)


@each_oracle
@pytest.mark.parametrize("like", [pytest.param(n, marks=thorough(n)) for n in sorted(optim_db.OPTIONS)])
def test_torch_s_own_are_passed(oracle, like):
    assert oracle.catches(getattr(torch.optim, like), like, 0) == ""


class Ascends(sgd.RightSGD):
    def gradient(self, p, group):
        return -super().gradient(p, group)


class AscendsSparse(sparse_adam.RightSparseAdam):
    def gradient(self, p, group):
        return -super().gradient(p, group)


class AscendsMatrices(muon.RightMuon):
    def gradient(self, p, group):
        return -super().gradient(p, group)


@each_oracle
@pytest.mark.parametrize(
    "make, like",
    [(Ascends, "SGD"), (AscendsSparse, "SparseAdam"), (AscendsMatrices, "Muon")],
    ids=lambda x: str(x)[-6:],
)
def test_a_wrong_sign_is_caught(oracle, make, like):
    assert oracle.catches(make, like, 0)


class AscendsUnderMaximize(adam.RightAdam):
    def options(self, group):
        return {**group, "maximize": False}


@each_oracle
def test_maximize_is_tried(oracle):
    assert oracle.catches(AscendsUnderMaximize, "Adam", 0)


class HundredfoldEps(adam.RightAdam):
    def options(self, group):
        return {**group, "eps": 100 * group["eps"]}


class DoubleEps(adam.RightAdam):
    def options(self, group):
        return {**group, "eps": 2 * group["eps"]}


def test_of_a_wrong_eps_only_torch_s_tests_see_any():
    assert catches("torch_tests", HundredfoldEps, "Adam").startswith("foreach_matches_forloop: AssertionError")
    assert not catches("loss_goes_down", HundredfoldEps, "Adam")
    assert not catches("assert_close", DoubleEps, "Adam")


@pytest.mark.parametrize(
    "make, like, test",
    [
        (adam.TakesAbsentForZeroAdam, "Adam", "foreach_matches_forloop"),
        (adam.ForgetsStateAdam, "Adam", "state_dict_deterministic"),
        (life.ForgetsOptionsSGD, "SGD", "can_load_from_to_named_state_dict"),
        (life.RunsHooksItselfSGD, "SGD", "step_hooks"),
        (sparse_adam.AppliesDuplicatesInTurn, "SparseAdam", "rosenbrock_sparse"),
    ],
)
def test_torch_s_tests_name_the_one_that_fails(make, like, test):
    assert catches("torch_tests", make, like).startswith(f"{test}: ")


class Raises(sgd.RightSGD):
    def update(self, p, g, state, group):
        raise KeyError("momentum")


class CannotBeMade:
    def __init__(self, params):
        raise RuntimeError


@each_oracle
def test_what_a_class_raises_counts(oracle):
    assert "KeyError: 'momentum'" in oracle.catches(Raises, "SGD", 0)
    assert oracle.catches(CannotBeMade, "SGD", 0).endswith("RuntimeError")


@each_oracle
def test_ctrl_c_is_no_fault(oracle):
    def interrupted(params):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oracle.catches(interrupted, "SGD", 0)


class Noisy(sgd.RightSGD):
    """Steps by chance, draws from everybody's generator and changes what holds for the whole process."""

    def walk(self):
        super().walk()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p) * (1 + random.random() + np.random.rand()))  # noqa: NPY002 - everybody's
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)


@each_oracle
def test_the_answer_follows_from_the_seed_alone(oracle):
    def told(seed):
        return oracle.catches(Noisy, "SGD", seed)

    first = told(0)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert told(0) == first != ""
    assert told(1) != first


@each_oracle
def test_a_seed_changes_the_data(oracle):
    assert oracle.catches(Ascends, "SGD", 0) != oracle.catches(Ascends, "SGD", 1)


@each_oracle
def test_nothing_is_left_changed(oracle):
    def everything():
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            [str(part) for part in np.random.get_state()],  # noqa: NPY002
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            len(_global_optimizer_pre_hooks),
            len(_global_optimizer_post_hooks),
        )

    before = everything()
    for make in (Noisy, life.BypassesHooksAdam, sgd.RightSGD):
        oracle.catches(make, "SGD", 0)
        assert everything() == before


def test_options_that_a_class_has_not_are_not_asked_of_it():
    assert optim_db.options(adam.PaperAdam, "Adam") == [{}, {"lr": 0.01}]
    assert optim_db.options(adam.FewOptions, "Adam") == [{}, {"lr": 0.01}, {"weight_decay": 0.1}]
    assert optim_db.options(adam.CountsAsideAdam, "Adam") == list(optim_db.OPTIONS["Adam"])


def test_each_of_torch_s_tests_is_there_once():
    assert len({test.__name__ for test in TESTS}) == len(TESTS)
