"""``process:COMMAND``: a program that speaks JSON lines is checked, told of and replayed as a class is."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from in_process import stepcheck
from processes import BAD, EXAMPLES, NODE, changed, command, written

JAVASCRIPT = pytest.mark.skipif(not NODE, reason="no node")
CLIENTS = ["adam.py", pytest.param("adam.mjs", marks=JAVASCRIPT)]
#: Of each client, eps where it must stand and inside the root.
EPS = {
    "adam.py": (
        'root = math.sqrt(v / (1 - beta2**t)) + options["eps"]',
        'root = math.sqrt(v / (1 - beta2**t) + options["eps"])',
    ),
    "adam.mjs": ("Math.sqrt(v / (1 - beta2 ** t)) + eps;", "Math.sqrt(v / (1 - beta2 ** t) + eps);"),
}


@pytest.fixture
def check(tmp_path, capfd):
    """``stepcheck check`` of a command, in an empty folder."""

    def checked(words, *options):
        return stepcheck("check", f"process:{words}", "--json", "out.json", *options, cwd=tmp_path, capfd=capfd)

    checked.results = lambda: json.loads((tmp_path / "out.json").read_text())["subjects"]
    checked.folder, checked.capfd = tmp_path, capfd
    return checked


@pytest.mark.parametrize("client", CLIENTS)
def test_the_examples_are_short_and_know_nothing_of_stepcheck(client):
    text = (EXAMPLES / client).read_text()
    assert len(text.splitlines()) <= 40
    assert "stepcheck" not in text
    assert "torch" not in text


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("examples", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_the_examples_are_right(client, examples, check):
    done = check(command(EXAMPLES / client), "--like", "Adam", "--examples", str(examples))
    assert done.returncode == 0, done.stdout
    (result,) = check.results()
    assert result["verdict"] == "pass"
    verdicts = {c["check"]: c["verdict"] for c in result["checks"]}
    # What stepcheck answers for it is not green.
    assert verdicts["agreement"] == verdicts["save-load-continue"] == "pass"
    assert verdicts["storage-stays"] == verdicts["closure"] == verdicts["random-state"] == "unsupported"
    assert "unsupported: memory-beside, gradient-unwritten, storage-stays: a process is sent numbers" in done.stdout
    assert done.stderr == ""
    assert "cost too much" not in done.stdout
    assert examples < 200 or "left out: lives of more than 8,192 elements" in done.stdout


@pytest.mark.sampled(2)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_one_fails_and_its_script_needs_no_stepcheck_and_says_when_it_is_mended(client, check):
    words = changed(check.folder, client, *EPS[client])
    done = check(
        words, "--like", "Adam", "--examples", "24"
    )  # which lives are drawn depends on where the client stands
    assert done.returncode == 1
    found, *_ = (d for c in check.results()[0]["checks"] for d in c["divergences"])
    assert "another convention?" in done.stdout
    assert "--dialect eps-inside-root" in done.stdout
    script = check.folder / found["repro"]
    assert "stepcheck" not in script.read_text().partition("\n")[2]
    assert len(script.read_text().splitlines()) <= 60

    def fails():
        return subprocess.run([sys.executable, script], capture_output=True, text=True, check=False).stderr

    def replayed():
        return stepcheck("replay", found["id"], cwd=check.folder, capfd=check.capfd)

    assert re.search(r"AssertionError: .* is not .* \+- ", fails())
    assert replayed().returncode == 1
    assert check(words, "--like", "Adam", "--dialect", "eps-inside-root", "--examples", "24").returncode == 0
    (check.folder / client).write_text((EXAMPLES / client).read_text())
    assert fails() == ""
    assert replayed().stdout.startswith("FIXED process:")


def test_one_that_knows_more_than_it_is_sent_is_found_out(check):
    """It steps everything with the first learning rate that it has ever seen."""
    remembers = 'def step(options, parameter, gradient, state, dtype, **_):\n    SEEN.append(options["lr"])\n    options["lr"] = SEEN[0]\n'
    words = changed(
        check.folder,
        "adam.py",
        "def step(options, parameter, gradient, state, dtype, **_):\n",
        f"SEEN = []\n\n\n{remembers}",
    )
    done = check(words, "--like", "Adam", "--examples", "24")
    assert done.returncode == 1
    assert "state leaks between optimizers" in done.stdout


def test_its_names_and_what_is_held_are_said_as_of_a_class(check):
    (check.folder / "pyproject.toml").write_text(f"""
[tool.stepcheck.subjects.{json.dumps("process:" + command(check.folder / "adam.py") + "[decayed]")}]
like = "Adam"
names = {{ betas = ["beta1", "beta2"], eps = "epsilon", exp_avg = "m" }}
set = {{ weight_decay = 0.5 }}
""")
    text = (EXAMPLES / "adam.py").read_text()
    for old, new in (
        ('"betas": [0.9, 0.999], "eps"', '"beta1": 0.9, "beta2": 0.999, "epsilon"'),
        ('(beta1, beta2), decay = options["betas"], ', 'beta1, beta2, decay = options["beta1"], options["beta2"], '),
        ('options["eps"]', 'options["epsilon"]'),
        ('{"step": t, "exp_avg": exp_avg,', '{"step": t, "m": exp_avg,'),
        ('"exp_avg": [0.0]', '"m": [0.0]'),
        ('state["exp_avg"]', 'state["m"]'),
    ):
        assert old in text
        text = text.replace(old, new)
    (check.folder / "adam.py").write_text(text)
    done = stepcheck("check", "--examples", "24", "--json", "out.json", cwd=check.folder, capfd=check.capfd)
    assert done.returncode == 0, done.stdout
    assert "missing" not in done.stdout
    names = ("--rename", "betas=beta1,beta2", "--rename", "eps=epsilon", "--rename", "exp_avg=m", "--like", "Adam")
    words = command(check.folder / "adam.py")
    assert check(words, *names, "--set", "weight_decay=0.5", "--examples", "24").returncode == 0
    assert check(words, *names, "--set", "decay=0.5", "--examples", "6").returncode == 2


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_one_fails_and_what_it_did_is_told_in_a_line(bad, check):
    does, told = BAD[bad]
    done = check(written(check.folder, does), "--like", "SGD", "--examples", "2")
    assert done.returncode == 1
    (found,) = (d for c in check.results()[0]["checks"] for d in c["divergences"])
    assert found["summary"] == f"step() raises {told}"


def test_one_that_hangs_fails(check):
    done = check(written(check.folder, "time.sleep(1000)"), "--like", "SGD", "--examples", "3", "--patience", "0.2")
    assert done.returncode == 1
    assert "fails completes" in done.stdout
    assert "the subject is still busy after" in done.stdout


@pytest.mark.parametrize(
    "words, told",
    [
        ("  ", "name a command after the colon"),
        ("'", "the command cannot be read (No closing quotation)"),
        ("no-such-program", "cannot be started (no-such-program: No such file or directory)"),
        (
            shlex.join([sys.executable, "-c", "import no_such"]),
            "ends with exit status 1 instead of an answer: ModuleNotFoundError",
        ),
        (shlex.join([sys.executable, "-c", "print(1)"]), "answers '1', which is no JSON object"),
    ],
)
@pytest.mark.parametrize("verb", ["check", "suggest"])
def test_one_that_does_not_begin_is_bad_usage_in_one_line(verb, words, told, tmp_path, capfd):
    done = stepcheck(verb, f"process:{words}", cwd=tmp_path, capfd=capfd)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_it_cannot_be_asked_is_unsupported_and_not_green(check):
    words = command(EXAMPLES / "adam.py")
    assert check(words, "--like", "Adam", "--only", "refuses-invalid", "--examples", "3").returncode == 3
    assert check(words, "--like", "LBFGS", "--examples", "3").returncode == 3
    assert check(words, "--like", "Adam", "--tensor-lr").returncode == 2
    assert check(words, "--like", "Adam", "--dtype", "bfloat16").returncode == 2


@pytest.mark.slow  # of classes, tests/harness/search/test_suggest.py asks it on every commit
def test_what_to_declare_of_it_can_be_found_out(tmp_path, capfd):
    words = changed(tmp_path, "adam.py", *EPS["adam.py"])
    done = stepcheck("suggest", f"process:{words}", cwd=tmp_path, capfd=capfd)
    assert done.returncode == 0
    assert 'like = "Adam"\ndialects = ["eps-inside-root"]' in done.stdout
