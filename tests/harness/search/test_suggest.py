"""What to declare of a class is found out by trying."""

import own_names
import pytest
import torch
from in_process import stepcheck
from right.groups import CountedByGroupAsK

from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.search import suggest
from stepcheck.reference import SPECS


@pytest.fixture(scope="module")
def of_own_names():
    return suggest.suggest(own_names.OwnNames, "own:OwnNames")


def test_names_reference_and_dialect_are_found(of_own_names):
    assert of_own_names.declaration == Declaration("Adam", ("eps-inside-root",), own_names.NAMES)
    assert (of_own_names.found, of_own_names.agreeing) == (True, of_own_names.lives)
    assert of_own_names.left == ("amsgrad", "maximize")


def test_the_table_and_the_command_say_the_same(of_own_names):
    import tomllib

    table = tomllib.loads("\n".join(suggest.table(of_own_names)))["tool"]["stepcheck"]["subjects"]["own:OwnNames"]
    assert table["like"] == "Adam"
    assert table["dialects"] == ["eps-inside-root"]
    assert table["names"]["betas"] == ["beta1", "beta2"]
    words = suggest.options(of_own_names.declaration)
    assert words[:4] == ["--like", "Adam", "--dialect", "eps-inside-root"]
    assert sorted(words[5::2]) == sorted(own_names.RENAMED[1::2])


def test_the_name_of_a_count_of_the_whole_group_is_found():
    trial = suggest._trial(CountedByGroupAsK, "right.groups:CountedByGroupAsK", Declaration("Adam"))
    assert trial.declaration.names == {"step": "k"}


@pytest.mark.slow
def test_a_count_of_the_whole_group_is_found_out():
    found = suggest.suggest(CountedByGroupAsK, "right.groups:CountedByGroupAsK")
    assert found.declaration == Declaration("Adam", ("step-by-group",), {"step": "k"})
    assert found.found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["RMSprop", "Adadelta", "NAdam"])
def test_torch_s_own_are_like_themselves(name):
    found = suggest.suggest(getattr(torch.optim, name), f"torch.optim:{name}")
    assert found.declaration == Declaration(name)
    assert found.found


def test_a_wrong_one_is_nearest_to_what_it_is_meant_to_be():
    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            for group in self.param_groups:
                group["betas"] = (group["betas"][0], group["betas"][0])
            return super().step(closure)

    found = suggest.suggest(Adam, "some:Adam")
    assert (found.declaration.like, found.found) == ("Adam", False)
    assert next(suggest.lines(found)).startswith(
        "# the nearest that was found, not more: judged as declared here, it deviates from Adam in "
    )


def test_one_like_none_is_asked_for_the_invariants():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.data.sub_(group["lr"] * p.grad.tanh() * (1 + p.data.cos()))

    found = suggest.suggest(Odd, "some:Odd")
    assert found.declaration == Declaration()
    assert suggest.table(found) == ['[tool.stepcheck.subjects."some:Odd"]']
    assert "no reference" in next(suggest.lines(found))


def test_a_flag_of_its_own_with_which_it_agrees():
    class Adam(torch.optim.Adam):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, *, halved=True):
            super().__init__(params, lr, betas, eps)
            self.factor = 0.5 if halved else 1.0

        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] *= self.factor
            loss = super().step(closure)
            for group in self.param_groups:
                group["lr"] /= self.factor
            return loss

    assert suggest.suggest(Adam, "some:Adam").declaration == Declaration("Adam", held={"halved": False})


def test_what_has_the_reference_s_name_is_not_called_otherwise():
    def factory(params, lr=1e-3, alpha=0.99, rho=0.5):
        return torch.optim.RMSprop(params, lr, alpha)

    assert suggest.names(factory, SPECS["RMSprop"]) == {}


def test_the_command(of_own_names, tmp_path, capfd, monkeypatch):
    asked = []
    monkeypatch.setattr(suggest, "suggest", lambda make, name, progress: asked.append(make) or of_own_names)
    (tmp_path / "own.py").write_text(own_names.SOURCE)
    done = stepcheck("suggest", "own:OwnNames", cwd=tmp_path, capfd=capfd)
    assert [make.__name__ for make in asked] == ["OwnNames"]
    assert done.returncode == 0
    assert '[tool.stepcheck.subjects."own:OwnNames"]\nlike = "Adam"\n' in done.stdout
    assert "\n# or: stepcheck check own:OwnNames --like Adam --dialect eps-inside-root --rename " in done.stdout


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("torch:Adam", "is no class of somebody's"),
        ("nothing", "is no class of somebody's"),
        ("no_such_module:X", "cannot import no_such_module"),
        ("own:SOURCE", "own has no SOURCE"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, capfd, subject, told):
    (tmp_path / "own.py").write_text(own_names.SOURCE)
    done = stepcheck("suggest", subject, cwd=tmp_path, capfd=capfd)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr
