"""What an older torch lacks is unsupported, in words, and no life asks for it."""

import math

import pytest
import torch
from packaging.version import Version

from stepcheck import cli, fast
from stepcheck.fast.muon import adjustment
from stepcheck.harness.play.families import TORCH_MODES, _modes, existing, fast_subject, resolve, torch_subject
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.generate import tables
from stepcheck.harness.search.settings import Settings
from stepcheck.reference import SPECS
from stepcheck.reference.muon import adjusted_lr

HERE = Version(Version(torch.__version__).base_version)


def test_a_class_that_this_torch_lacks_is_unsupported_and_says_since_when_there_is_one(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    monkeypatch.delattr(fast, "Muon")
    assert _modes(SPECS["Muon"]) == ("forloop",)
    for subject in (torch_subject.__wrapped__("Muon", "forloop"), fast_subject.__wrapped__("Muon")):
        why = f"torch {torch.__version__} has no torch.optim.Muon, which came with torch 2.9"
        assert subject.unsupported == why
        result = Campaign(subject, Settings(examples=5)).run()
        assert result.verdict == "unsupported"
        assert result.notes == [f"unsupported: {why}"]


@pytest.mark.parametrize("command", ["power", "census", "bench Muon"])
def test_what_needs_a_class_that_this_torch_lacks_says_so_in_one_line(command, monkeypatch, tmp_path, capsys):
    monkeypatch.delattr(torch.optim, "Muon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stepcheck", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = f"stepcheck: torch {torch.__version__} has no torch.optim.Muon, which came with torch 2.9; install a later torch\n"
    assert capsys.readouterr().err == told
    assert "Muon" not in existing()


def test_every_optimizer_stands_in_the_tables_whether_this_torch_has_it_or_not():
    assert set(TORCH_MODES) == set(SPECS)


@pytest.mark.parametrize("subject", resolve("torch"), ids=lambda s: s.name)
def test_no_life_sets_what_the_subject_does_not_have(subject):
    if subject.unsupported:
        pytest.skip(subject.unsupported)
    of = tables(subject, subject.dtypes)
    for options, _ in of.options:
        assert set(options) <= subject.options
        assert not [name for name, value in options.items() if subject.refuses(name, value)]


def test_a_choice_that_this_torch_does_not_know_is_declared():
    (muon,), (lbfgs,) = resolve("torch:Muon[forloop]"), resolve("torch:LBFGS[forloop]")
    if muon.unsupported:
        pytest.skip(muon.unsupported)
    old = Version("2.14") > HERE
    assert muon.refuses("adjust_lr_fn", "spectral_unclamped") == old
    assert ("adjust_lr_fn='spectral_unclamped'" in muon.missing_options) == old
    assert not muon.refuses("adjust_lr_fn", "original")
    assert ("maximize" in lbfgs.missing_options) == old


class OlderMuon(torch.optim.Optimizer):
    """One that was written before there was a third choice, and takes any name in silence."""

    def __init__(self, params, lr=1e-3, adjust_lr_fn=None):
        super().__init__(params, {"lr": lr, "adjust_lr_fn": adjust_lr_fn})

    def step(self, closure=None):
        raise NotImplementedError


def test_a_choice_that_came_later_is_not_asked_of_somebody_s_class():
    subject = class_subject(OlderMuon, "Muon")
    assert subject.refuses("adjust_lr_fn", "spectral_unclamped")
    assert "adjust_lr_fn='spectral_unclamped'" in subject.missing_options
    if hasattr(torch.optim, "Muon"):
        derived = class_subject(type("Derived", (torch.optim.Muon,), {}), "Muon")
        assert derived.refuses("adjust_lr_fn", "spectral_unclamped") == (Version("2.14") > HERE)


class HandsOn(fast.LBFGS):
    """Takes any keyword, and hands all on to a constructor that names its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)


class OlderLBFGS(torch.optim.Optimizer):
    def __init__(self, params, lr=1, max_iter=20):
        super().__init__(params, {"lr": lr, "max_iter": max_iter})

    def step(self, closure):
        raise NotImplementedError


class HandsOnToOlder(OlderLBFGS):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)


class Keeps(torch.optim.Optimizer):
    def __init__(self, params, **options):
        super().__init__(params, {"lr": 1, "max_iter": 20} | options)

    def step(self, closure):
        raise NotImplementedError


def anything(params, **options):
    return OlderLBFGS(params, **options)


def test_who_takes_any_keyword_takes_what_the_next_constructor_takes():
    assert "maximize" in class_subject(HandsOn, "LBFGS").options
    assert class_subject(HandsOnToOlder, "LBFGS").options == {"lr", "max_iter"}
    # A factory is tried. Of a class that keeps them itself nothing more is known: but what came later than other options it need not know.
    assert class_subject(anything, "LBFGS").options == {"lr", "max_iter"}
    later = {h.name for h in SPECS["LBFGS"].hyper if h.since}
    assert later == {"maximize"}
    assert class_subject(Keeps, "LBFGS").options == {h.name for h in SPECS["LBFGS"].hyper} - later


@pytest.mark.parametrize(("rows", "columns"), [(2, 8), (8, 2), (3, 3)])
def test_the_unclamped_ratio_of_muon_is_that_of_the_sides(rows, columns):
    hyper = SPECS["Muon"].hyper_values(lr=0.5, adjust_lr_fn="spectral_unclamped")
    assert adjusted_lr((rows, columns), hyper) == 0.5 * math.sqrt(rows / columns)
    assert adjustment(torch.Size((rows, columns)), "spectral_unclamped") == math.sqrt(rows / columns)


class Descends(fast.LBFGS):
    """An L-BFGS that minimizes, whatever it is told."""

    def step(self, closure):
        for group in self.param_groups:
            group["maximize"] = False
        return super().step(closure)


def test_an_lbfgs_that_never_maximizes_is_caught():
    looking = Campaign(class_subject(Descends, "LBFGS"), Settings(examples=60, first=True))
    looking.run()
    assert looking.suspects.new
    right = Campaign(fast_subject("LBFGS"), Settings(examples=60)).run()
    assert not right.divergences
    assert right.tallies["maximize-mirrors"].ran


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_to_maximize_is_to_minimize_the_negative(line_search_fn):
    def led(sign, *, maximize):
        p = torch.tensor([3.0, -2.0], dtype=torch.float64, requires_grad=True)
        optimizer = fast.LBFGS([p], lr=0.1, max_iter=3, line_search_fn=line_search_fn, maximize=maximize)

        def closure():
            optimizer.zero_grad()
            loss = sign * (p**4).sum()
            loss.backward()
            return loss

        returned = [float(optimizer.step(closure).detach()) for _ in range(3)]
        return p.detach(), returned

    (down, losses), (up, gains) = led(1.0, maximize=False), led(-1.0, maximize=True)
    assert torch.equal(down, up)
    assert losses == [-gain for gain in gains], "what is returned is what the closure returned"


def test_lbfgs_without_parameters_returns_what_its_closure_does():
    assert fast.LBFGS([{"params": []}]).step(lambda: 7.0) == 7.0


@pytest.mark.parametrize("betas", [(0.9, 0.99, 0.5), (0.9,), 0.9])
def test_betas_of_another_length_are_refused_before_torch_cuts_them(betas):
    p = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"AdamW: betas must be 2 numbers, got "):
        fast.AdamW([p], betas=betas)
    with pytest.raises(ValueError, match=r"AdamW: betas must be 2 numbers, got "):
        fast.AdamW([p], 0.5, betas)
