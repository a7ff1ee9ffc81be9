"""What a checkpoint, or the lines between two steps, leave of tensors: a step with them is torch's, or is refused; no memory but theirs is touched."""

import sys
from collections import defaultdict

import malformed
import pytest
import torch
from malformed import IN_PLACE, OF_PARAMETERS, REPLACED, SETTINGS, SPARSE, Program, agree, outcome

from stepcheck import fast

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are fenced, and processes forked, as on Linux")


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What a first step imports and loads, no child has to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a child has no others
    for setting in SETTINGS:
        for family in (fast, torch.optim):
            Program(getattr(family, setting.name), setting).run(1)
    yield
    torch.set_num_threads(threads)


def told(setting, program, mended=None):
    """What is wrong with what the fast class makes of a program, or nothing."""
    ours = outcome(lambda: program(getattr(fast, setting.name)))
    if ours.raised.startswith("Impossible"):
        return f"there is no such program: {ours.raised}"
    if ours.raised:
        return ""
    if ours.signal:
        return ours.signal
    tolerance = 5e-2 if setting.name == "Muon" else 1e-3
    theirs = outcome(lambda: program(getattr(torch.optim, setting.name)))
    if agree(ours, theirs, tolerance):
        return ""
    # torch refuses what has but one meaning: a number in the place of a tensor, a buffer that the options ask for anew.
    if mended and agree(ours, outcome(lambda: mended(getattr(torch.optim, setting.name))), tolerance):
        return ""
    return f"other numbers, where torch {theirs.signal or theirs.raised or 'steps'}"


def buffers():
    return [(s, key) for s in SETTINGS for key in malformed.keys(s)]


@pytest.mark.sampled(20)
@pytest.mark.parametrize("setting, key", buffers(), ids=str)
def test_spoilt_state_is_refused_or_stepped_as_torch_does(setting, key):
    wrong = {}
    for how in ("missing", *REPLACED, *IN_PLACE):
        for moment in ("assigned",) if how in IN_PLACE else ("assigned", "loaded"):

            def program(make, how=how, moment=moment, **mended):
                return malformed.stepped(make, setting, key, how, moment, **mended)

            wrong[how, moment] = told(setting, program, lambda make, program=program: program(make, mended=True))
    assert not {case: said for case, said in wrong.items() if said}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_spoilt_gradients_and_parameters_are_refused_or_stepped_as_torch_does(setting):
    wrong = {}
    for how in SPARSE if setting.sparse else IN_PLACE:
        wrong["gradient", how] = told(setting, lambda make, how=how: malformed.with_gradient(make, setting, how))
    for how in OF_PARAMETERS:
        wrong["parameter", how] = told(setting, lambda make, how=how: malformed.with_parameter(make, setting, how))
    assert not {case: said for case, said in wrong.items() if said}


def test_a_fence_ends_who_goes_beyond():
    """Or all of the above could not fail."""
    tensor = malformed.fenced(torch.ones(5))
    assert outcome(lambda: [torch.as_strided(tensor, (5,), (1,)) + 0]).parameters == ((1.0,) * 5,)

    def beyond():
        (malformed.ctypes.c_float * 6).from_address(tensor.data_ptr())[5]
        return []

    assert outcome(beyond).signal == "SIGSEGV"


@pytest.mark.parametrize("setting", [s for s in SETTINGS if not s.sparse], ids=str)
def test_a_scaled_gradient_of_another_shape_is_refused_before_it_is_unscaled(setting):
    program = Program(getattr(fast, setting.name), setting)
    program.run(2)
    program.give()
    p = program.parameters[0]
    p.data = malformed.fenced(torch.cat([p.data, p.data]))
    program.optimizer.grad_scale, program.optimizer.found_inf = torch.tensor([4.0]), torch.tensor([0.0])
    before = p.grad.clone()
    with pytest.raises(RuntimeError, match="a gradient is"):
        program.step()
    assert torch.equal(p.grad, before)


def same_as_torch(setting, change):
    """That both classes end alike after three steps, a change of the program, and two steps more; the programs."""
    programs = [Program(getattr(family, setting.name), setting) for family in (fast, torch.optim)]
    for program in programs:
        program.run(3)
        change(program)
        program.run(2)
    tolerance = 5e-2 if setting.name == "Muon" else 1e-4
    for ours, theirs in zip(*(program.parameters for program in programs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-4)
    return programs


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_state_that_is_replaced_whole_is_the_state(setting):
    """``optimizer.state = defaultdict(dict)`` is how a program starts anew."""

    def anew(program):
        program.optimizer.state = defaultdict(dict)
        if setting.name == "Adagrad":  # whose state is made by its constructor
            for p in program.parameters:
                program.optimizer.state[p] = {"step": torch.tensor(0.0), "sum": torch.full_like(p, 0.1)}

    ours, _ = same_as_torch(setting, anew)
    assert any(ours.optimizer.state_dict()["state"].values()) or str(setting) == "SGD()"


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_setstate_between_steps_is_the_state(setting):
    def another(program):
        source = Program(program.make, setting)
        source.run(4)
        pairs = zip(program.parameters, source.parameters, strict=True)
        program.optimizer.__setstate__(
            {"state": defaultdict(dict, {p: dict(source.optimizer.state[q]) for p, q in pairs})}
        )

    same_as_torch(setting, another)
