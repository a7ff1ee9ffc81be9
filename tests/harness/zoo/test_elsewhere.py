"""Faults that show elsewhere: right over the same tensors, and wrong over others of the same values, beside a copy, or from what torch's own saved."""

import copy
import functools
import io
import pickle
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.play import resume, torchs
from stepcheck.harness.zoo import elsewhere
from stepcheck.harness.zoo.catalogue import FAULTS
from stepcheck.reference import SPECS

STEPS, SIZE = 10, 9
#: The steps before which a life goes on otherwise; of the first, the momentum of a late gradient is a step old.
AT = (4, 7)


@dataclass
class Life:
    """An optimizer, its parameters, and all that went before and is still there."""

    make: type
    options: dict
    params: list
    optimizer: torch.optim.Optimizer
    beside: list = field(default_factory=list)
    saved: dict | None = None
    left: list = field(default_factory=list)
    like: str = ""


def placed(values, *, backwards=False):
    """Parameters in one piece of memory, in their order or the other."""
    memory = torch.zeros(len(values), SIZE)
    rows = [memory[-1 - n if backwards else n] for n in range(len(values))]
    return [row.copy_(torch.as_tensor(v)).requires_grad_() for row, v in zip(rows, values, strict=True)]


def built(make, options, params):
    """Three groups, as a life has from its second step on."""
    groups = [{"params": params[:2]}, {"params": params[2:3], "lr": 0.5}, {"params": params[3:]}]
    return make(groups, **options)


def gradients(params, n):
    """Of the first parameter one comes from the third step on, so that it is not the first to have a state."""
    drawn = torch.Generator().manual_seed(n)
    for i, p in enumerate(params):
        g = torch.randn(SIZE, generator=drawn)
        p.grad = g if i or n > 1 else None


def seen(like, params, optimizer):
    """The values of parameters, and of what the reference has for a state of them."""
    names = {b.name for b in SPECS[like].buffers}
    states = [{k: v for k, v in optimizer.state.get(p, {}).items() if k in names} for p in params]
    plain = [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()} for state in states]
    return [p.tolist() for p in params], plain


def lived(make, like, options, way):
    """What is seen of each step, up to the one that raises."""
    drawn = torch.Generator().manual_seed(0)
    params = placed([torch.randn(SIZE, generator=drawn) for _ in range(4)])
    life = Life(
        make, options, params, make([{"params": params[:2]}, {"params": params[2:3], "lr": 0.5}], **options), like=like
    )
    log = []
    try:
        for n in range(STEPS):
            if n == 1:
                life.optimizer.add_param_group({"params": params[3:]})
            if n == 2:
                life.saved = copy.deepcopy(life.optimizer.state_dict())
            if n in AT:
                way(life)
            for others, optimizer in (*life.beside, (life.params, life.optimizer)):
                gradients(others, n)
                optimizer.step()
            log.append(seen(like, life.params, life.optimizer))
    except Exception as error:  # noqa: BLE001 - to raise is to be wrong
        return [*log, type(error).__name__]
    return log


# Over the same tensors


def stays(life):
    pass


def reloaded(life):
    saved = copy.deepcopy(life.optimizer.state_dict())
    life.optimizer = built(life.make, life.options, life.params)
    life.optimizer.load_state_dict(saved)


def foreign(life):
    saved = resume.foreign(copy.deepcopy(life.optimizer.state_dict()))
    life.optimizer = built(life.make, life.options, life.params)
    life.optimizer.load_state_dict(saved)


def copied(life):
    life.optimizer = resume.copied(life.optimizer, life.params, life.params)


def unpickled(life):
    life.optimizer = resume.unpickled(life.optimizer, life.params, life.params)


def rolled_back(life):
    life.optimizer.load_state_dict(copy.deepcopy(life.saved))


def cleared(life):
    life.optimizer.state.clear()


def cleared_and_rolled_back(life):
    cleared(life)
    rolled_back(life)


def forgotten(life):
    del life.optimizer.state[life.params[1]]


def swapped(life):
    """All parameters in other memory, in the other order, and back to an earlier state."""
    for p, q in zip(life.params, placed([p.detach() for p in life.params], backwards=True), strict=True):
        p.data = q.data
    rolled_back(life)


def appended(life):
    """Out of its group, and in again behind the other."""
    params = life.optimizer.param_groups[0]["params"]
    params.append(params.pop(0))
    life.optimizer.load_state_dict(copy.deepcopy(life.optimizer.state_dict()))


HERE = (
    stays, reloaded, foreign, copied, unpickled, rolled_back, cleared, cleared_and_rolled_back, forgotten, swapped,
    appended,
)  # fmt: skip

# Over others


def loaded(life):
    """What a new process does with a checkpoint; the old tensors are kept, lest their memory be used again."""
    file = io.BytesIO()
    torch.save((life.optimizer.state_dict(), [p.detach() for p in life.params]), file)
    file.seek(0)
    saved, values = torch.load(file)
    life.left.append((life.params, life.optimizer))
    life.params = placed(values, backwards=True)
    life.optimizer = built(life.make, life.options, life.params)
    life.optimizer.load_state_dict(saved)


def deepcopied(life):
    life.left.append((life.params, life.optimizer))
    life.params, life.optimizer = copy.deepcopy((life.params, life.optimizer))


def pickled(life):
    life.left.append((life.params, life.optimizer))
    life.params, life.optimizer = pickle.loads(pickle.dumps((life.params, life.optimizer)))


def beside_deepcopied(life):
    """The copy goes on, and before each of its steps what it was copied from takes one."""
    deepcopied(life)
    life.beside.append(life.left[-1])


def beside_pickled(life):
    pickled(life)
    life.beside.append(life.left[-1])


def adopted(life):
    """Its own numbers as torch's own class saves them, over the same tensors."""
    copies = [p.detach().clone().requires_grad_() for p in life.params]
    theirs = built(getattr(torch.optim, life.like), life.options, copies)
    gradients(copies, AT[0])
    theirs.step()
    saved = torchs.formed_as(copy.deepcopy(life.optimizer.state_dict()), theirs.state_dict())
    life.optimizer = built(life.make, life.options, life.params)
    life.optimizer.load_state_dict(saved)


ELSEWHERE = (loaded, deepcopied, pickled, beside_deepcopied, beside_pickled, adopted)
COPIES = {deepcopied, pickled, beside_deepcopied, beside_pickled}

MOMENTUM = {"lr": 0.1, "momentum": 0.9}

#: Options in which each fault shows, and where.
CASES = {
    elsewhere.VelocityById: (MOMENTUM, {loaded, *COPIES}),
    elsewhere.CountsById: ({}, {loaded, *COPIES}),
    elsewhere.StartsUnknown: ({}, {loaded, *COPIES}),
    elsewhere.DecaysFromFirstSight: ({"lr_decay": 0.1}, {loaded, *COPIES}),
    elsewhere.FirstOptionsForLoaded: ({}, {loaded, *COPIES}),
    elsewhere.DecaysById: ({"lr": 0.1}, {loaded, adopted, *COPIES}),
    elsewhere.PreviousOnTensor: ({}, {loaded}),
    elsewhere.LoadsKnown: ({}, {loaded}),
    elsewhere.LoadsById: ({}, {loaded}),
    elsewhere.CountsAnewForOthers: ({}, {loaded}),
    elsewhere.SavesByAddress: ({}, {loaded}),
    elsewhere.SavesByFirstStep: ({}, {loaded}),
    elsewhere.LoadsBuffersByPlace: ({}, {adopted}),
    elsewhere.CountsTorchsFromOne: ({}, {adopted}),
    elsewhere.NoPenaltyWithFlags: ({"weight_decay": 0.1}, {adopted}),
    elsewhere.CopiesOverOwn: ({}, {deepcopied, beside_deepcopied}),
    elsewhere.CopiesIds: ({}, COPIES),
    elsewhere.SharesStateWithCopy: ({}, {beside_deepcopied}),
    elsewhere.SharesSlotWithCopy: (MOMENTUM, {beside_deepcopied, beside_pickled}),
}


def named(faults):
    return [pytest.param(fault, id=fault.name) for fault in faults]


def right(fault):
    """The right optimizer that a fault is put into."""
    return next(cls for cls in fault.make.__mro__ if cls.__name__.startswith("Right"))


@functools.cache
def lived_rightly(fault, way):
    return lived(right(fault), fault.like, CASES[fault.make][0], way)


def ways(cases):
    return pytest.mark.parametrize("way", cases, ids=lambda way: way.__name__)


@ways(HERE)
@pytest.mark.parametrize("fault", named(elsewhere.FAULTS))
def test_over_the_same_tensors_a_fault_is_right(fault, way):
    options, _ = CASES[fault.make]
    theirs = lived_rightly(fault, way)
    assert len(theirs) == STEPS
    assert isinstance(theirs[-1], tuple), theirs[-1]  # it never raises
    assert lived(fault.make, fault.like, options, way) == theirs


@ways(ELSEWHERE)
@pytest.mark.parametrize("fault", named(elsewhere.FAULTS))
def test_a_fault_is_wrong_where_it_is_said_to_be_and_there_alone(fault, way):
    options, where = CASES[fault.make]
    theirs = lived_rightly(fault, stays)
    assert lived_rightly(fault, way) == theirs  # as if it had stayed
    mine = lived(fault.make, fault.like, options, way)
    assert mine[: AT[0]] == theirs[: AT[0]]
    assert (mine != theirs) == (way in where)


@pytest.mark.parametrize("like", sorted({fault.like for fault in elsewhere.FAULTS}))
def test_there_is_something_to_lose(like):
    """A right optimizer that loses its state where it goes on is another from then on."""
    fault = next(fault for fault in elsewhere.FAULTS if fault.like == like)
    kept, lost = lived_rightly(fault, stays), lived_rightly(fault, cleared)
    assert kept[: AT[0]] == lost[: AT[0]]
    assert [params for params, _ in kept[AT[0] :]] != [params for params, _ in lost[AT[0] :]]


def resumed(make, options, saved, values):
    """The rest of a life, from a checkpoint, over tensors in their order in memory."""
    params = placed(values, backwards=True)
    optimizer = built(make, options, params)
    optimizer.load_state_dict(saved)
    for n in range(AT[0], STEPS):
        gradients(params, n)
        optimizer.step()
    return [p.tolist() for p in params]


def test_another_process_shows_what_is_said_of_it(tmp_path):
    """In one that begins with nothing but a checkpoint, the right ones go on as if they had stayed, and these faults do not."""
    checkpoints, expected = {}, {}
    for fault in elsewhere.FAULTS:
        options, where = CASES[fault.make]
        life = []

        def keep(now, life=life):
            life.append((copy.deepcopy(now.optimizer.state_dict()), [p.detach().clone() for p in now.params]))

        for make in (fault.make, right(fault)):
            params, _ = lived(make, fault.like, options, keep)[-1]
            checkpoints[make.__module__, make.__name__, fault.name] = (options, *life[0])
            expected[make.__module__, make.__name__, fault.name] = (params, make is right(fault) or loaded not in where)
            life.clear()
    torch.save(checkpoints, tmp_path / "checkpoints")
    subprocess.run([sys.executable, __file__, tmp_path / "checkpoints", tmp_path / "resumed"], check=True)
    ends = torch.load(tmp_path / "resumed")
    assert {key: ends[key] == params for key, (params, _) in expected.items()} == {
        key: same for key, (_, same) in expected.items()
    }


def test_each_fault_has_a_case_a_name_and_a_check():
    assert {fault.make for fault in elsewhere.FAULTS} == CASES.keys()
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.told.endswith(".") and set(fault.checks) <= set(CHECKS) for fault in elsewhere.FAULTS)
    assert {fault.kind for fault in elsewhere.FAULTS} == {"elsewhere"}
    assert sum(loaded in where for _, where in CASES.values()) >= 12


if __name__ == "__main__":
    made = {}
    for (module, name, fault), checkpoint in torch.load(sys.argv[1]).items():
        make = getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)
        made[module, name, fault] = resumed(make, *checkpoint)
    torch.save(made, sys.argv[2])
