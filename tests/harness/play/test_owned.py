"""What has parameters of its own, dressed as an optimizer of torch's: of no framework, so that none need be there."""

import copy
import inspect
import pickle

import owners
import pytest
import torch

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.play import owned as room
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support.lines import ClientError
from stepcheck.harness.support.usage import UsageError

NAMES = {"lr": "learning_rate", "betas": "beta_1, beta_2", "eps": "epsilon", "exp_avg": "m", "exp_avg_sq": "v"}


@pytest.fixture(autouse=True)
def own(monkeypatch):
    framework = room.Framework("an optimizer of ours", "owners", owners.Owner, ("float32", "float64"), names=NAMES)
    monkeypatch.setitem(room.FRAMEWORKS, "ours", framework)


def parameters(*values):
    made = [torch.tensor(v, requires_grad=True) for v in values]
    for p in made:
        p.grad = torch.ones_like(p).detach()
    return made


def test_its_options_are_those_of_a_class_and_the_learning_rate_alone_is_a_group_s():
    cls = room.owned("ours", owners.Adam)
    assert list(inspect.signature(cls).parameters) == ["params", "learning_rate", "beta_1", "beta_2", "epsilon"]
    p, q = parameters([1.0, 2.0], 3.0)
    optimizer = cls([p, q], learning_rate=0.5, epsilon=0.0)
    assert optimizer.param_groups[0].keys() == {"params", "learning_rate"}
    optimizer.step()
    assert (p.tolist(), q.item()) == (pytest.approx([0.5, 1.5]), pytest.approx(2.5))
    optimizer.param_groups[0]["learning_rate"] = 0.25
    optimizer.step()
    assert p.tolist() == pytest.approx([0.25, 1.25])
    with pytest.raises(NotImplementedError, match="one group"):
        optimizer.add_param_group({"params": parameters(1.0)})


def test_its_count_of_steps_is_one_for_all_parameters():
    p, q = parameters([1.0], [1.0])
    optimizer = room.owned("ours", owners.Adam)([p, q])
    q.grad = None
    optimizer.step()
    assert [optimizer.state[x]["step"] for x in (p, q)] == [1, 1]
    assert q.item() == 1.0
    p.grad = None
    optimizer.step()  # without any gradient, nothing is asked of it
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("way", ["loaded", "copied", "pickled"])
def test_it_goes_on_from_its_state(way):
    cls = room.owned("ours", owners.Adam)
    p, q = parameters([1.0], [2.0])
    optimizer = cls([p, q], beta_1=0.5)
    optimizer.step()
    if way == "loaded":
        others = copy.deepcopy([p, q])
        other = cls(others, beta_1=0.5)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        room.__dict__.update(Adam=cls)  # where it can be found by pickle
        cls.__module__, cls.__qualname__ = room.__name__, "Adam"
        other = copy.deepcopy(optimizer) if way == "copied" else pickle.loads(pickle.dumps(optimizer))
        others = other.param_groups[0]["params"]
        del room.__dict__["Adam"]
    for x, g in zip((p, q, *others), (0.5, -1.0) * 2, strict=True):
        x.grad = torch.full_like(x, g).detach()
    optimizer.step()
    other.step()
    assert [x.item() for x in others] == [p.item(), q.item()]
    assert other.state[others[0]] == optimizer.state[p]


def test_without_a_parameter_that_it_had_it_goes_on_with_the_others():
    p, q = parameters([1.0], [2.0])
    optimizer = room.owned("ours", owners.Adam)([p, q])
    optimizer.step()
    optimizer.param_groups[0]["params"].remove(p)
    before = p.item()
    optimizer.step()
    assert p.item() == before
    assert optimizer.state[q]["step"] == 2
    assert q.item() < 2 - 1.9e-3


def test_what_it_must_not_do_is_told_in_a_line():
    (p,) = parameters([1.0])
    with pytest.raises(ClientError, match=r"has a parameter of shape \(1, 1\), which was \(1,\)"):
        room.owned("ours", owners.Grows)([p]).step()
    p.grad = torch.ones(1).to_sparse()
    with pytest.raises(NotImplementedError, match="dense gradients"):
        room.owned("ours", owners.Adam)([p]).step()


def test_what_it_calls_things_is_known_and_what_is_declared_counts_for_more():
    cls = room.owned("ours", owners.Adam)
    subject = class_subject(cls, "Adam")
    assert subject.name == "ours:owners:Adam"
    assert subject.options == {"lr", "betas", "eps"}
    assert subject.terms.buffers == {"m": "exp_avg", "v": "exp_avg_sq"}
    assert subject.one_group
    assert subject.constructor_only == {"betas", "eps"}
    declared = class_subject(cls, Declaration("Adam", names={"exp_avg": "other"}))
    assert declared.terms.buffers == {"other": "exp_avg", "v": "exp_avg_sq"}
    # Of SGD it has an option less, and no buffers.
    assert class_subject(cls, "SGD").options == {"lr"}


def test_what_it_cannot_be_asked_is_unsupported():
    subject = class_subject(room.owned("ours", owners.Adam), "Adam")
    asked = [name for name, check in CHECKS.items() if not check.without_meaning(subject)]
    assert asked == ["completes", "save-load-continue", "agreement", "order-of-parameters", "option-effect",
                     "random-state", "settings-kept"]  # fmt: skip
    assert "takes no closure" in class_subject(room.owned("ours", owners.Adam), "LBFGS").unsupported


def checked(make, examples):
    return Campaign(class_subject(room.owned("ours", make), "Adam"), Settings(examples=examples)).run()


@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_right_ones_pass(examples):
    result = checked(owners.Adam, examples)
    assert result.verdict == "pass", result.unexplained
    assert result.tallies["save-load-continue"].ran


@pytest.mark.parametrize(
    ("make", "checks"),
    [(owners.Crossed, {"agreement", "order-of-parameters"}), (owners.Forgets, {"save-load-continue"})],
)
def test_wrong_ones_fail(make, checks):
    assert {d.check for d in checked(make, 30).unexplained} & checks


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keras:no_such:Adam", "cannot import no_such"),
        ("mlx:owners:nothing", "owners has no nothing"),
        ("paddle:paddle", "cannot import paddle"),
    ],
)
def test_what_is_not_there_is_bad_usage_in_a_line(text, told):
    with pytest.raises(UsageError) as error:
        resolve(text, "Adam")
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_framework_that_is_not_there_or_has_no_learning_rate_is_bad_usage(monkeypatch):
    monkeypatch.setitem(room.FRAMEWORKS, "gone", room.Framework("one", "no_such_framework", owners.Owner, ()))
    for word, make, told in (
        ("gone", owners.Adam, "cannot import no_such_framework"),
        ("ours", lambda rate=1.0: rate, "has no option 'learning_rate'"),
        ("nobody", owners.Adam, "no framework 'nobody'; there is keras"),
    ):
        with pytest.raises(UsageError, match=told):
            room.owned(word, make)
