"""Whether torch may use more threads: a process that was forked from one that did would wait for ever."""

import subprocess
import sys

import pytest

from stepcheck.harness.support.processes import forks
from stepcheck.harness.support.threads import spreads

_FORKED = """
import os, torch
from stepcheck.harness.support import threads
threads._SECONDS = float("{seconds}")
torch.set_num_threads({before})
torch.ones(1 << 18).add_(1)
torch.set_num_threads(1)
assert threads.spreads() or not threads.forks()
child = os.fork()
if not child:
    there = threads.spreads()
    grandchild = os.fork()
    if not grandchild:
        os._exit(3 if threads.spreads() == there else 4)
    status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
    os._exit((10 if there else 20) + status)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def forked(before, seconds):
    """What a child says, and whether its own child says the same: 13 of both that they can, 23 that they cannot."""
    script = _FORKED.format(before=before, seconds=seconds)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(not forks(), reason="nothing is forked here")
def test_a_child_of_a_process_that_used_one_thread_may_use_several():
    assert forked(1, 30.0) == 13


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP may begin anew in a child")
def test_a_child_of_a_process_that_used_several_would_wait_for_those_for_ever():
    assert forked(2, 1.0) == 23


_TOLD = """
import os, time, torch
from stepcheck.harness.support import threads
threads._SECONDS = 1.0
torch.set_num_threads(2)
torch.ones(1 << 18).add_(1)
torch.set_num_threads(1)
assert not threads.children_spread()
start = time.monotonic()
child = os.fork()
if not child:
    os._exit(threads.spreads() or time.monotonic() - start > 0.9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP may begin anew in a child")
def test_a_child_that_would_wait_knows_it_from_its_parent():
    done = subprocess.run([sys.executable, "-c", _TOLD], capture_output=True, check=True, text=True)
    assert int(done.stdout) == 0


def test_here_it_is_found_out_once():
    assert spreads() == spreads()
