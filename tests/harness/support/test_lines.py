"""Programs that are asked a line at a time: whatever they do, there is an answer or one line of what they did."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from stepcheck.harness.support.lines import Client, ClientError, RefusedError

HELLO = {"hello": 1}
ECHOES = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
COUNTS = """\
import json, os, sys
for n, line in enumerate(sys.stdin): print(json.dumps({"n": n, "pid": os.getpid()}), flush=True)
"""


def client(text):
    return Client([sys.executable, "-c", text], HELLO)


def test_a_program_is_greeted_whenever_it_is_started_and_then_asked():
    counts = client(COUNTS)
    assert counts.greet(30.0)["n"] == 0
    assert [counts.ask({})["n"] for _ in range(2)] == [1, 2]
    counts.end()
    assert counts.ask({})["n"] == 1


def test_each_process_has_a_program_of_its_own():
    counts = client(COUNTS)
    here = counts.ask({})["pid"]
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send(counts.ask({})))
    child.start()
    there = receive.recv()
    child.join()
    assert there["n"] == 1
    assert there["pid"] != here
    assert counts.ask({}) == {"n": 2, "pid": here}


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_hangs_ends_with_the_process_that_asked_it_however_that_ends():
    hangs = client("import os, time\nprint('{\"pid\": %d}' % os.getpid(), flush=True)\ntime.sleep(1000)")
    receive, send = multiprocessing.Pipe(duplex=False)

    def asks():
        send.send(hangs.greet(30.0)["pid"])
        hangs.ask({})

    child = multiprocessing.get_context("fork").Process(target=asks)
    child.start()
    pid = receive.recv()
    assert is_there(pid)
    child.kill()
    child.join()
    for _ in range(100):
        if not is_there(pid):
            break
        time.sleep(0.05)
    assert not is_there(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_is_forgotten_is_ended():
    counts = client(COUNTS)
    pid = counts.ask({})["pid"]
    del counts
    assert not is_there(pid)


@pytest.mark.parametrize(
    "text, told",
    [
        ("print('well')", "answers 'well', which is no JSON"),
        ("print('[' * 100000)", "which is no JSON"),
        ("print(3)", "answers '3', which is no JSON object"),
        ("pass", "ends with exit status 0 instead of an answer"),
        (
            "import sys; print('a\\n b\\n', file=sys.stderr); sys.exit(3)",
            "ends with exit status 3 instead of an answer: b",
        ),
        ("print('half', end='')", "ends with exit status 0 instead of an answer: after 'half'"),
        ("import os; os.kill(os.getpid(), 9)", "ends with SIGKILL instead of an answer"),
        ("import os, time; os.close(1); time.sleep(9)", "closes its standard output instead of an answer"),
        ("print('x' * 500)", f"answers '{'x' * 120}...', which is no JSON"),
    ],
)
def test_what_is_no_answer_is_told_in_one_line(text, told):
    with pytest.raises(ClientError) as error:
        client(text).ask({})
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not isinstance(error.value, RefusedError)


def test_one_that_does_not_greet_back_is_not_waited_for_longer():
    start = time.monotonic()
    with pytest.raises(ClientError, match="does not answer within 1 s"):
        client("import time; time.sleep(1000)").greet(1.0)
    assert time.monotonic() - start < 20


def test_one_that_cannot_be_started_says_why():
    with pytest.raises(ClientError, match=r"cannot be started \(no-such-program: No such file or directory\)"):
        Client(["no-such-program"], HELLO).ask({})


def test_one_that_refuses_goes_on():
    refuses = client(COUNTS.replace('{"n"', '{**({"error": "not\\nthis"} if n == 1 else {}), "n"'))
    with pytest.raises(RefusedError, match=r"^not this$"):
        refuses.ask({})
    assert refuses.ask({})["n"] == 2


def test_an_answer_that_comes_too_late_is_none_to_the_next_question():
    twice = client("import sys\nfor line in sys.stdin: print(line + line, end='', flush=True)")
    with pytest.raises(ClientError, match="says more than one line to a request: "):
        twice.ask({"n": 1})
    echoes, asked = client(ECHOES), {"n": 0}
    echoes.greet(30.0)
    send = echoes._send

    def interrupted(data):
        send(data)
        raise KeyboardInterrupt

    echoes._send = interrupted
    with pytest.raises(KeyboardInterrupt):
        echoes.ask({"n": 9})
    echoes._send = send
    assert echoes.ask(asked) == asked


def test_a_request_and_an_answer_may_be_larger_than_a_pipe_holds():
    large = {"numbers": list(range(100_000))}
    assert client(ECHOES).ask(large) == large


def test_what_is_said_to_standard_error_is_nobody_s_business():
    noisy = client(
        "import sys\nfor line in sys.stdin: print('noise' * 50000, file=sys.stderr); print(line, end='', flush=True)"
    )
    assert [noisy.ask({"n": n}) for n in range(3)] == [{"n": n} for n in range(3)]


def test_ctrl_c_is_not_heard_by_a_program():
    of_its_own = client(COUNTS.replace("os.getpid()", "os.getsid(0)"))
    assert of_its_own.ask({})["pid"] != os.getsid(0)
