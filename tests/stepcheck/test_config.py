"""[tool.stepcheck] of pyproject.toml, and the same things said on the command line."""

import json

import own_names
import pytest
from in_process import stepcheck

from stepcheck import config
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.support.usage import UsageError

pytestmark = pytest.mark.usefixtures("no_dialect")

OWN = """
[tool.stepcheck.subjects."own:OwnNames"]
like = "Adam"
dialects = "eps-inside-root"
names = { lr = "learning_rate", betas = ["beta1", "beta2"], eps = "epsilon", weight_decay = "decay", step = "t" }
"""


@pytest.fixture
def project(tmp_path):
    """A project with these classes in ``src``, and a way to write its table."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "own.py").write_text(own_names.SOURCE)

    def says(text):
        (tmp_path / "pyproject.toml").write_text(text)
        return tmp_path

    return says


def test_without_arguments_a_project_s_subjects_are_checked(project, capfd):
    folder = project(
        '[tool.stepcheck]\nexamples = 12\npythonpath = "src"\n'
        + OWN
        + OWN.replace("OwnNames", "OwnNames[decoupled]").replace('"Adam"', '"AdamW"')
        + "set = { decoupled = true }\n"
        + OWN.replace("OwnNames", "WrongBeta")
        + 'expected_failures = { agreement = "beta1 is taken for beta2" }\n'
    )
    inside = folder / "src"  # a folder further down finds the table as well
    done = stepcheck("check", "--only", "agreement", "--json", "out.json", cwd=inside, capfd=capfd)
    results = json.loads((inside / "out.json").read_text())["subjects"]
    assert [(r["subject"], r["like"], r["verdict"]) for r in results] == [
        ("own:OwnNames", "Adam[eps-inside-root]", "pass"),
        ("own:OwnNames[decoupled]", "AdamW[eps-inside-root]", "pass"),
        ("own:WrongBeta", "Adam[eps-inside-root]", "known"),
    ]
    assert done.returncode == 0


def test_a_class_is_asked_for_the_dtypes_that_it_takes(project, capfd):
    folder = project('[tool.stepcheck]\nexamples = 6\npythonpath = "src"\n' + OWN + 'dtypes = "float32"\n')
    words = ("check", "own:OwnNames", "--only", "agreement")
    done = stepcheck(*words, "--json", "out.json", cwd=folder, capfd=capfd)
    (result,) = json.loads((folder / "out.json").read_text())["subjects"]
    assert result["verdict"] == "pass"
    assert "own:OwnNames: parameters of float32 alone, as it is declared" in done.stdout
    other = stepcheck(*words, "--dtype", "float64", cwd=folder, capfd=capfd)
    assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)


def test_a_subject_that_is_named_is_as_the_project_declares_it_but_for_what_the_command_says(project, capfd):
    folder = project('[tool.stepcheck]\nexamples = 10\npythonpath = "src"\n' + OWN)
    words = ("check", "own:OwnNames", "--only", "agreement")
    assert stepcheck(*words, cwd=folder, capfd=capfd).returncode == 0
    assert stepcheck(*words, "--like", "NAdam", cwd=folder, capfd=capfd).returncode == 1


def test_the_same_on_the_command_line_and_a_replay_of_it(project, capfd):
    folder = project("") / "src"
    said = ("--like", "Adam", "--dialect", "eps-inside-root", *own_names.RENAMED)
    words = ("check", "own:WrongBeta", *said, "--examples", "12", "--only", "agreement", "--json", "out.json")
    assert stepcheck(*words, cwd=folder, capfd=capfd).returncode == 1
    (name,) = {
        d["id"]
        for c in json.loads((folder / "out.json").read_text())["subjects"][0]["checks"]
        for d in c["divergences"]
    }
    saved = json.loads((folder / ".stepcheck" / f"{name}.json").read_text())
    assert saved["declared"] == {"names": {k: v.replace(" ", "") for k, v in own_names.NAMES.items()}}
    fails = stepcheck("replay", name, cwd=folder, capfd=capfd)
    assert (fails.returncode, fails.stdout[:20]) == (1, "FAILS own:WrongBeta ")
    right = stepcheck("replay", name, "--subject", "own:OwnNames", cwd=folder, capfd=capfd)
    assert (right.returncode, right.stdout[:19]) == (0, "FIXED own:OwnNames ")


def test_a_reference_of_one_s_own(project, capfd):
    folder = project("") / "src"
    (folder / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from stepcheck.reference import SPECS\n"
        "from stepcheck.reference.dialects import in_dialects\n"
        'OWN = replace(in_dialects(SPECS["Adam"], ["eps-inside-root"]), name="Own", dialects=())\n'
    )
    words = (
        "check",
        "own:OwnNames",
        *own_names.RENAMED,
        "--examples",
        "12",
        "--only",
        "agreement",
        "--json",
        "out.json",
    )
    done = stepcheck(*words, "--spec", "mine:OWN", cwd=folder, capfd=capfd)
    (result,) = json.loads((folder / "out.json").read_text())["subjects"]
    assert (done.returncode, result["like"], result["verdict"]) == (0, "mine:OWN", "pass")
    wrong = stepcheck(
        *(w.replace("OwnNames", "WrongBeta") for w in words), "--spec", "mine:OWN", cwd=folder, capfd=capfd
    )
    assert wrong.returncode == 1
    name = next((folder / ".stepcheck").glob("*.py")).stem
    assert stepcheck("replay", name, cwd=folder, capfd=capfd).stdout.startswith("FAILS own:WrongBeta ")
    # What came from elsewhere does not choose what is imported.
    elsewhere = folder.parent / "sent.json"
    elsewhere.write_text((folder / ".stepcheck" / f"{name}.json").read_text())
    refused = stepcheck("replay", str(elsewhere), "--subject", "own:OwnNames", cwd=folder, capfd=capfd)
    assert refused.returncode == 2
    assert "names the reference mine:OWN" in refused.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rename", "eps"], "'eps' is not of the form OURS=THEIRS"),
        (["--like", "Adam", "--rename", "nothing=n"], "Adam has no 'nothing' to be called n"),
        (["--like", "Adam", "--rename", "lr=rate"], "has no option 'rate', which is declared"),
        (["--like", "Adam", "--set", "decoupled"], "'decoupled' is not of the form OPTION=VALUE"),
        (["--like", "Adam", "--set", "warp=9"], "has no option 'warp', which is declared"),
        (["--like", "Adam", "--spec", "mine:OWN"], "are two references; name one"),
        (["--spec", "Adam"], "it is MODULE:NAME; what stepcheck has is --like"),
        (["--spec", "no_such_module:OWN"], "cannot import no_such_module"),
        (["--spec", "own:OwnNames"], "is no reference, but of type type"),
        (["--rename", "lr=rate"], "those of a reference: say of which, with --like or --spec"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_bad_words_are_one_line(project, capfd, words, told):
    done = stepcheck("check", "own:OwnNames", *words, cwd=project("") / "src", capfd=capfd)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["--rename", "lr=rate"], ["--set", "lr=1"], ["--ignore", "m"]])
def test_torch_s_own_are_declared_already(project, capfd, words):
    done = stepcheck("check", "torch:Adam", *words, cwd=project(""), capfd=capfd)
    assert done.returncode == 2
    assert f"{words[0]} is for somebody's class alone" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tool = [", "cannot be read"),
        ("[tool]\nstepcheck = 3", "must be a table, got 3"),
        ("[tool.stepcheck]\nspeed = 1", "no key 'speed'; there is subjects, examples, pythonpath"),
        ("[tool.stepcheck]\nexamples = true", "examples must be a whole number, got True"),
        ("[tool.stepcheck]\nexamples = 0", "examples must be at least 1"),
        ("[tool.stepcheck]\npythonpath = [1]", "pythonpath must be a text or a list of texts"),
        ("[tool.stepcheck]\nsubjects = 3", "subjects must be a table of subjects"),
        (
            '[tool.stepcheck.subjects."a:B"]\nlikes = "Adam"',
            "no key 'likes'; there is like, spec, set, dialects, names",
        ),
        ('[tool.stepcheck.subjects."a:B"]\nlike = "Adam"\nspec = "m:S"', "like and spec are two references"),
        ('[tool.stepcheck.subjects."a:B"]\nspec = "Adam"', "it is MODULE:NAME, and what stepcheck has is like"),
        ('[tool.stepcheck.subjects."a:B"]\nnames = { lr = 3 }', "names: lr must be a name or a list of names, got 3"),
        ('[tool.stepcheck.subjects."a:B"]\nsparse = 1', "sparse must be true or false, got 1"),
    ],
)
def test_a_table_that_makes_no_sense(project, text, told):
    with pytest.raises(UsageError) as raised:
        config.read(project(text))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_that_a_table_can_say(project):
    read = config.read(
        project(
            '[tool.stepcheck.subjects."a:B"]\nspec = "m:S"\ndialects = ["d"]\nnames = { betas = ["a", "b"] }\nignore = ["extra"]\n'
            "set = { betas = [0.9, 0.99], flag = true }\nprofile = { wider = false }\nsparse = true\ntensor_lr = true\n"
            'expected_failures = { agreement = "why" }\n'
        )
    )
    (declared,) = read.subjects.values()
    held = {"betas": (0.9, 0.99), "flag": True}
    assert declared.declaration == Declaration("m:S", ("d",), {"betas": "a, b"}, ("extra",), held, {"wider": False})
    assert (declared.sparse, declared.tensor_lr, declared.expected) == (True, True, {"agreement": "why"})


def test_a_label_stands_for_a_declared_subject_alone(project, capfd):
    done = stepcheck("check", "own:OwnNames[fast]", cwd=project("") / "src", capfd=capfd)
    assert done.returncode == 2
    assert "declares no subject of that name" in done.stderr


def test_the_nearest_table_counts_and_another_s_pyproject_is_passed_by(project):
    folder = project('[tool.stepcheck.subjects."a:B"]\nlike = "Adam"\n')
    (folder / "src" / "pyproject.toml").write_text('[project]\nname = "inner"\n')
    assert list(config.read(folder / "src").subjects) == ["a:B"]


def test_without_a_table_nothing_is_declared(project):
    assert config.read(project("[project]\nname = 'x'\n")).subjects == {}
