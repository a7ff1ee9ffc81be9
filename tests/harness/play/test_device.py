"""Lives on another device: the same tensors there, the same readings here. What stands for the device is ``cpu:0``, which is taken for one."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life import memory
from stepcheck.harness.life.events import Gradient, Group, Objective, Parameter, Scalar, Sparse, Step
from stepcheck.harness.life.memory import Allocation, SparseAllocation
from stepcheck.harness.life.schedules import as_given, place
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play import profiles
from stepcheck.harness.play.families import fast_subject, no_cuda
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import workers
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.workers import Listener
from stepcheck.harness.telling import repro

THERE = "cpu:0"


def on(name, device=THERE, mode=""):
    return dataclasses.replace(fast_subject(name, mode), device=device)


def values(shape, dtype):
    return np.arange(float(np.prod(memory.room(shape, "contiguous")) * 2))[: int(np.prod(shape))].reshape(shape) + 0.1


CASES = [
    (shape, dtype, layout)
    for dtype in ("float16", "bfloat16", "float32", "float64")
    for shape, layout in (
        ((2, 3), "contiguous"), ((2, 3), "transposed"), ((2, 3), "sliced"), ((2, 3), "expanded"), ((), "contiguous"),
        ((0, 3), "contiguous"), ((1, 2, 2, 3), "channels_last"),
    )
]  # fmt: skip


@pytest.mark.parametrize("shape, dtype, layout", CASES)
def test_a_tensor_there_has_the_strides_the_offset_and_the_values_that_it_has_here(shape, dtype, layout):
    made = [Allocation(shape, dtype, layout, device=device) for device in ("cpu", THERE)]
    for allocation in made:
        allocation.fill(values(shape, dtype) / 7)
    here, there = made
    assert here._array is not None
    assert there._array is None
    assert here.view.stride() == there.view.stride()
    assert here.view.storage_offset() == there.view.storage_offset()
    assert here.memory() == there.memory()
    assert memory.identical(memory.copy(here.view), memory.copy(there.view))


def test_a_conjugated_tensor_there_is_one():
    made = [Allocation((3,), "complex64", "conjugated", device=device) for device in ("cpu", THERE)]
    for allocation in made:
        allocation.fill(np.arange(6.0).reshape(3, 2))
        assert allocation.view.is_conj()
        assert allocation.view.tolist() == [1j, 2 + 3j, 4 + 5j]
    assert made[0].memory() == made[1].memory()


def test_tensors_that_share_a_storage_here_share_it_there():
    first = Allocation((2, 3), "float32", "sliced", device=THERE)
    second = Allocation((2, 3), "float32", "sliced", within=first, device=THERE)
    second.fill(np.ones((2, 3)))
    assert second.view.untyped_storage().data_ptr() == first.view.untyped_storage().data_ptr()
    assert second.view.storage_offset() == first.view.storage_offset() + 1
    assert first.memory() == second.memory()


def test_what_is_written_beside_a_tensor_there_is_seen():
    allocation = Allocation((3,), "float32", "contiguous", device=THERE)
    outside = memory.beside(len(allocation.buffer), (((3,), "contiguous", allocation.start),))
    allocation.view.fill_(1.0)
    assert not allocation.written_at(outside)
    allocation.buffer[0] = 1.0
    assert allocation.written_at(outside)


@pytest.mark.parametrize("coalesced", [True, False])
def test_a_sparse_gradient_there_has_the_same_entries_in_the_same_order(coalesced):
    entries = (0, 2) if coalesced else (2, 0, 2)
    made = [
        SparseAllocation(
            (3, 2), "float32", Sparse(entries, 1, coalesced), np.arange(2.0 * len(entries)).reshape(-1, 2), device
        )
        for device in ("cpu", THERE)
    ]
    here, there = (memory.copy_gradient(a.view) for a in made)
    assert made[1].view.is_coalesced() is coalesced
    assert here.elements.tolist() == there.elements.tolist()
    assert here.values.tolist() == there.values.tolist()
    assert made[0].memory() == made[1].memory()


def test_half_of_the_tensors_that_are_options_stand_on_the_device():
    lrs = [Scalar(n / 1000) for n in range(1000)]
    there = [lr for lr in lrs if place(lr, "cuda") == "cuda"]
    assert 400 < len(there) < 600
    assert all(place(lr, "cpu") == "cpu" for lr in lrs)
    assert as_given(0.5, "meta") == 0.5
    assert {as_given(lr, "meta").device.type for lr in lrs} == {"cpu", "meta"}


@pytest.mark.parametrize("name", ["Adam", "SGD", "SparseAdam", "LBFGS"])
def test_lives_there_pass_all_checks(name):
    result = Campaign(on(name), Settings(examples=30)).run()
    assert not result.error
    assert not result.divergences
    assert result.traces


def test_what_is_recorded_there_is_what_is_recorded_here():
    parameters = (
        Parameter((2, 3), "bfloat16", "sliced", Values("log", 1, 0.25, 4.0)),
        Parameter((), "float32", values=Values("log", 2, 0.25, 4.0)),
    )
    gradients = {
        0: Gradient(Values("log", 3, 0.25, 4.0), "transposed"),
        1: Gradient(Values("log", 4, 0.25, 4.0)),
    }
    trace = Trace("AdamW", parameters, (Group((0, 1), {"lr": Scalar(0.125)}),), (Step(gradients), Step({})))
    here, there = (Player(on("AdamW", device), trace).play() for device in ("cpu", THERE))
    assert here.raised is None
    assert len(here.steps) == len(there.steps) == 2
    for one, other in zip(here.steps, there.steps, strict=True):
        for a, b in zip(one.parameters, other.parameters, strict=True):
            assert memory.identical(a.value_after, b.value_after)
            assert a.state_after.keys() == b.state_after.keys()
            assert all(memory.identical(a.state_after[k], b.state_after[k]) for k in a.state_after)


# --- Scripts


def test_a_script_makes_all_tensors_there_and_runs():
    parameters = (
        Parameter((2, 3), "float32", "sliced", Values("log", 1, 0.25, 4.0)),
        Parameter((2,), "complex64", values=Values("log", 2, 0.25, 4.0)),
    )
    gradients = {
        0: Gradient(Values("log", 3, 0.25, 4.0), sparse=None),
        1: Gradient(Values("log", 4, 0.25, 4.0)),
    }
    lr = next(s for s in (Scalar(n / 8) for n in range(1, 99)) if place(s, "cuda") == "cuda")
    trace = Trace("Adam", parameters, (Group((0, 1), {"lr": lr}),), (Step(gradients),))
    finding = Finding("completes", "nothing", 0, "a life")
    text = repro.script(on("Adam"), trace, finding)
    assert text.count(f".to({THERE!r})") == 4
    assert f"torch.tensor({lr.value}, device={THERE!r})" in text
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "cpu:0" not in repro.script(fast_subject("Adam"), trace, finding)


def test_a_script_evaluates_objectives_there():
    trace = Trace(
        "LBFGS", (Parameter((3,), "float32", values=Values("log", 1, 0.25, 4.0)),), (Group((0,), {}),),
        (Step({}, objective=Objective("quadratic", Values("log", 5, 0.25, 4.0), 1.0)),),
    )  # fmt: skip
    text = repro.script(on("LBFGS"), trace, Finding("completes", "nothing", 0, "a life"))
    assert text.count(f".to({THERE!r})") == 2
    assert "device=x.device" in text


# --- Subjects and workers


def test_without_a_gpu_the_subject_says_why_it_is_unsupported(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert no_cuda() == "no CUDA device: torch was built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert no_cuda() == "no CUDA device: no GPU is visible"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert no_cuda() == ""


def test_the_subject_is_the_class_itself_and_asks_for_its_profile_late(monkeypatch):
    subject = fast_subject("Adam", "cuda")
    assert subject.make is fast_subject("Adam").make
    assert subject.device == "cuda"
    assert subject.imports == "from stepcheck.fast import Adam"
    asked = []
    late = dataclasses.replace(subject, computes=lambda: asked.append(1) or profiles.ANY_CLASS)
    assert not asked
    assert late.profile is late.profile is profiles.ANY_CLASS
    assert len(asked) == 1


def test_a_subject_on_a_device_is_played_by_a_process_that_is_not_forked(monkeypatch):
    # Told the name alone, that process plays the subject of this name.
    results = workers.run([on("SGD"), fast_subject("SGD")], Settings(examples=20), Listener())
    there, here = results
    assert (there.traces, there.elements, there.verdict) == (here.traces, here.elements, here.verdict)
    assert not there.error


def test_somebodys_class_keeps_the_profile_that_it_is_given():
    subject = class_subject(torch.optim.SGD, "SGD", profile=profiles.TORCH_CPU)
    assert subject.profile is profiles.TORCH_CPU
