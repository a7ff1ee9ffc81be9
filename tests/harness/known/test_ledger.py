"""The ledger explains the behaviours that it names, and nothing beside them."""

import json
import math
from dataclasses import replace

import pytest
import torch

from stepcheck import cli
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.known import ledger
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.known.ledger import LEDGER, explanation
from stepcheck.harness.life import events
from stepcheck.harness.life.events import (
    Gradient,
    Group,
    Hook,
    Objective,
    Parameter,
    Refuse,
    Reload,
    SetOption,
    Sparse,
    Step,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve, torch_subject
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.readers import report
from stepcheck.harness.readers.scripts import to_json
from stepcheck.harness.record import store
from stepcheck.harness.record.run import Run
from stepcheck.harness.search import workers
from stepcheck.harness.search.asking import findings
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.tell import tell

QUARTERS = Values("quarters", 1, 2.0**-7, 2.0)


def life(optimizer, *parameters, layout="contiguous", events=None, **options):
    gradients = {i: Gradient(QUARTERS, layout) for i in range(len(parameters))}
    return Trace(optimizer, parameters, (Group(tuple(gradients), options),), events or (Step(gradients),))


def forged(
    subject, trace, field, *, check="agreement", cause=None, parameter=0, event=0, index=(0,), got=9.0, expected=1.0
):
    """What the ledger says of a finding that nobody made, in a life that was really led."""
    evidence = Evidence(subject, trace)
    record = next(s for s in evidence.recording.steps if s.event == event)
    deviation = None
    if check == "agreement":
        deviation = Deviation(record.event, parameter, field, index, got, expected, 1e-9, 1e9, element=index[0])
    finding = Finding(check, cause or field, event, "it is wrong", parameter, 1e9, deviation)
    return explanation(evidence, finding)


def test_every_entry_is_complete_and_has_a_life_of_its_own():
    for name, entry in LEDGER.items():
        assert entry.name == name == name.lower()
        assert entry.statement
        assert not entry.statement.endswith(".")
        assert entry.link.startswith("https://github.com/pytorch/pytorch/") or not entry.link
        subject = entry.subject
        assert entry.concerns(subject)
        assert entry.saved.check in entry.checks
        assert entry.saved.trace.problem(subject.spec) is None
    assert {p.stem for p in store.KNOWN_FOLDER.glob("*.json")} == set(LEDGER)


VECTOR = Parameter((33,))


@pytest.mark.parametrize(
    ("subject", "trace", "field", "more"),
    [
        # The fused kernels: row-major memory, or the same gapless memory for all.
        ("torch:Adam[fused]", life("Adam", VECTOR), "exp_avg", {}),
        ("torch:Adam[fused]", life("Adam", replace(VECTOR, shape=(3, 2), layout="transposed"), layout="transposed"),
         "exp_avg", {"index": (0, 1)}),
        ("torch:Adam[foreach]", life("Adam", replace(VECTOR, layout="sliced")), "exp_avg", {}),
        ("torch:Adam[fused]", life("Adam", VECTOR), "layout", {"check": "memory-beside", "cause": "sliced"}),
        ("torch:Adam[fused]", life("Adam", VECTOR, amsgrad=True), "max_exp_avg_sq", {}),
        # SGD's narrow vectors: elements that moved, and those after the last vector.
        ("torch:SGD[fused]", life("SGD", replace(VECTOR, dtype="float16")), "parameter", {}),
        ("torch:SGD[fused]", life("SGD", replace(VECTOR, dtype="float16")), "parameter", {"index": (32,), "got": 0.0}),
        ("torch:SGD[fused]", life("SGD", VECTOR), "parameter", {"got": 0.0}),
        # SGD, foreach: it does not write to the gradient unless by Nesterov's momentum.
        ("torch:SGD[foreach]", life("SGD", VECTOR, momentum=0.5), "gradient", {"check": "gradient-unwritten"}),
        ("torch:SGD[foreach]", life("SGD", VECTOR, momentum=0.5, nesterov=True, weight_decay=0.5), "gradient",
         {"check": "gradient-unwritten"}),
        # RAdam: a finite number, a second moment that is not 0.
        ("torch:RAdam[foreach]", life("RAdam", VECTOR), "parameter", {"got": torch.nan}),
        ("torch:RAdam[foreach]", life("RAdam", replace(VECTOR, dtype="float16")), "parameter", {}),
        # One dtype, or an epsilon that was given.
        ("torch:Adafactor[forloop]", life("Adafactor", VECTOR, VECTOR), "parameter", {"parameter": 1}),
        ("torch:Adafactor[forloop]", life("Adafactor", VECTOR, replace(VECTOR, dtype="float64"), eps=(1e-3, 1e-3)),
         "parameter", {"parameter": 1}),
        ("torch:Adafactor[forloop]", life("Adafactor", VECTOR, replace(VECTOR, dtype="float64")), "variance",
         {"parameter": 1}),
        ("torch:Muon[forloop]", life("Muon", Parameter((2, 2), "bfloat16")), "momentum_buffer", {"index": (0, 1)}),
        ("torch:Muon[forloop]", life("Muon", Parameter((2, 2)), nesterov=False), "momentum_buffer", {"index": (0, 1)}),
        ("torch:Rprop[forloop]", life("Rprop", VECTOR), "prev", {"got": 0.0}),
        ("torch:Adagrad[forloop]", life("Adagrad", VECTOR), "sum", {}),
        ("torch:Adagrad[forloop]", life("Adagrad", Parameter((3,), "complex64")), "sum", {"index": (0, 0)}),
        ("torch:SGD[forloop]", life("SGD", replace(VECTOR, layout="offset")), "parameter", {}),
    ],
)  # fmt: skip
def test_a_fault_of_another_cause_is_not_explained(subject, trace, field, more):
    (subject,) = resolve(subject)
    assert forged(subject, trace, field, **more) is None


def test_the_same_forgery_is_explained_where_the_cause_is_there():
    fused, trace = resolve("torch:Adam[fused]")[0], life("Adam", replace(VECTOR, layout="sliced"))
    assert forged(fused, trace, "exp_avg").name == "fused-cpu-ignores-strides"
    sgd, trace = resolve("torch:SGD[fused]")[0], life("SGD", replace(VECTOR, dtype="float16"))
    assert forged(sgd, trace, "parameter", got=0.0).name == "fused-sgd-never-stores-narrow-vectors"


GO, ELSEWHERE = Step({}, Objective("quadratic")), Step({}, Objective("rosenbrock"))


@pytest.mark.parametrize(
    ("options", "later", "entry"),
    [
        ({"max_iter": 3}, [SetOption(0, "max_iter", 20)], "lbfgs-derives-max-eval-from-the-keyword"),
        ({"max_iter": 20}, [SetOption(0, "max_iter", 3)], "lbfgs-derives-max-eval-from-the-keyword"),
        # As many evaluations as before, or as many as were asked for.
        ({"max_iter": 3}, [SetOption(0, "max_iter", 3)], None),
        ({"max_iter": 3, "max_eval": 3}, [SetOption(0, "max_iter", 20)], None),
        ({"max_iter": 3}, [SetOption(0, "lr", 0.5)], None),
        ({"max_iter": 4}, [SetOption(0, "history_size", 1)], "lbfgs-history-size-lowered-later"),
        ({"max_iter": 4}, [SetOption(0, "history_size", 3)], None),
        ({"max_iter": 4, "history_size": 1}, [], None),
    ],
)
def test_options_of_lbfgs_that_are_set_later_explain_what_they_change_alone(options, later, entry):
    (subject,) = resolve("torch:LBFGS[forloop]")
    # A step that leaves two pairs or more, and the one at which something is found.
    parameter = replace(VECTOR, shape=(3,), values=QUARTERS)
    trace = life("LBFGS", parameter, events=(GO, *later, ELSEWHERE), lr=0.1, **options)
    found = forged(subject, trace, "parameter", event=len(trace.events) - 1)
    assert (found and found.name) == entry


@pytest.mark.parametrize(("first", "then"), [(3, 20), (20, 2)])
def test_the_budget_of_a_max_iter_that_is_set_later_is_known(first, then):
    (subject,) = resolve("torch:LBFGS[forloop]")
    parameter = replace(VECTOR, shape=(3,), values=QUARTERS)
    trace = life("LBFGS", parameter, events=(GO, SetOption(0, "max_iter", then), GO), lr=0.01, max_iter=first)
    found = [f for check in ("agreement", "option-effect") for f in findings(subject, trace, check)]
    assert found
    assert {known and known.name for _, known in found} == {"lbfgs-derives-max-eval-from-the-keyword"}


@pytest.mark.parametrize(("dtype", "cause"), [("float32", "state mu_product"), ("float16", "state exp_avg")])
def test_a_round_trip_that_loses_something_else_is_not_explained(dtype, cause):
    (subject,) = resolve("torch:NAdam[forloop]")
    step = Step({0: Gradient(QUARTERS)})
    evidence = Evidence(subject, life("NAdam", Parameter((1,), dtype), events=(step, Reload())))
    assert explanation(evidence, Finding("save-load-continue", cause, 1, "it is lost", 0)) is None


@pytest.mark.parametrize("name", [n for n, e in LEDGER.items() if e.saved.check == "completes" and "compiled" not in n])
def test_another_exception_in_the_same_life_is_not_explained(name):
    entry = LEDGER[name]
    evidence = Evidence(entry.subject, entry.saved.trace)
    finding = Finding("completes", "", evidence.recording.raised.event, "")
    assert explanation(evidence, finding) is entry
    evidence.recording.raised = replace(evidence.recording.raised, kind="RuntimeError", message="of another kind")
    assert explanation(evidence, finding) is None


class Loads(torch.optim.Adam):
    def load_state_dict(self, state_dict):
        self.state.update(state_dict["state"])


class LoadsBySuper(torch.optim.Adam):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)


class Steps(torch.optim.Adam):
    def step(self, closure=None):
        return None


class StepsBySuper(torch.optim.Adam):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)

    @torch.no_grad()
    def step(self, closure=None):
        return super().step(closure)


def factory(params, lr):
    return torch.optim.Adam(params, lr)


def test_somebody_s_class_is_excused_by_what_it_inherits_alone():
    own = Entry("x", "", ("Adam",), ("agreement",), lambda seen: True)
    inherited = replace(own, inherited="load_state_dict")
    assert own.concerns(class_subject(torch.optim.Adam, "Adam"))
    assert own.concerns(class_subject(StepsBySuper, "Adam"))
    assert not own.concerns(class_subject(Steps, "Adam"))
    assert not own.concerns(class_subject(factory, "Adam"))
    assert inherited.concerns(class_subject(torch.optim.Adam, "Adam"))
    assert not inherited.concerns(class_subject(Loads, "Adam"))
    assert inherited.concerns(class_subject(LoadsBySuper, "Adam"))
    assert not inherited.concerns(class_subject(factory, "Adam"))
    ours = replace(torch_subject("Adam", "forloop"), name="fast:Adam")
    assert not own.concerns(ours)
    assert not inherited.concerns(ours)


def test_a_class_that_steps_as_torchs_is_not_charged_with_what_is_known_of_that():
    class Derived(torch.optim.Adagrad):
        pass

    settings = Settings(examples=60, only=("agreement", "groups-independent"))
    result = Campaign(class_subject(Derived, "Adagrad"), settings).run()
    assert result.verdict == "pass"
    assert {d.owner for d in result.known} == {"torch.optim.Adagrad"}


def test_known_divergences_pass_and_are_told_by_the_ledger_s_life(tmp_path):
    (subject,) = resolve("torch:AdamW[fused]")
    result = Campaign(subject, Settings(examples=60), found=lambda d: store.save(tmp_path, d)).run()
    assert (result.verdict, result.divergences) == ("known", [])
    known = {(d.entry, d.check): d for d in result.known}
    strides = known["fused-cpu-ignores-strides", "agreement"]
    assert strides.trace == replace(LEDGER[strides.entry].saved.trace, optimizer="AdamW")
    assert store.load(store.trace_path(tmp_path, strides)).trace == strides.trace
    data = to_json(Run("run", results=[result]), tmp_path)
    told = [d for c in data["subjects"][0]["checks"] for d in c["divergences"]]
    assert told
    assert all(d["known"] is True and d["ledger"] in LEDGER for d in told)
    lines = report.known([result])
    assert any(line.startswith("known: fused-cpu-ignores-strides, in ") for line in lines)
    assert "known" in report.where(result)


def test_shrinking_does_not_slide_into_what_is_known():
    (subject,) = resolve("torch:Adam[fused]")
    looking = Campaign(subject, Settings())
    trace = LEDGER["fused-cpu-ignores-strides"].saved.trace
    (finding, _), *_ = findings(subject, trace, "agreement")
    assert looking.recheck(trace, (finding.check, finding.cause)) is None


def check(monkeypatch, tmp_path, *words):
    monkeypatch.setattr("sys.argv", ["stepcheck", *words, "--out", str(tmp_path), "--json", str(tmp_path / "j.json")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, json.loads((tmp_path / "j.json").read_text())


def test_known_divergences_exit_0_and_an_entry_that_is_mended_1(monkeypatch, tmp_path, capsys):
    words = ("check", "torch:AdamW[fused]", "--examples", "40", "--seed", "1")
    name = "fused-amsgrad-drops-nan"
    entry = LEDGER[name]
    # Its life is one of Adam; as one of AdamW it is played because that is among the subjects.
    saved = replace(entry.saved, subject="torch:AdamW[fused]", trace=replace(entry.saved.trace, optimizer="AdamW"))
    mine = replace(entry)
    mine.__dict__["saved"] = saved
    monkeypatch.setitem(LEDGER, name, mine)
    code, data = check(monkeypatch, tmp_path, *words)
    assert code == 0
    shown = {e["name"]: e["reproduces"] for e in data["ledger"]}
    assert shown[name]
    assert all(shown.values())
    told = {"name", "statement", "link", "versions", "first_seen", "fixed_in", "carried", "reproduces"}
    assert set(data["ledger"][0]) == told

    # The same without the NaN: nothing is wrong with it any more.
    mine.__dict__["saved"] = replace(saved, trace=life("AdamW", Parameter((1,)), amsgrad=True))
    code, data = check(monkeypatch, tmp_path, *words)
    assert code == 1
    assert [e["name"] for e in data["ledger"] if not e["reproduces"]] == [name]
    assert f"known issue {name} no longer reproduces on torch {torch.__version__}: FIXED" in capsys.readouterr().out


def test_a_life_that_kills_its_process_is_told():
    import os
    import signal

    told = workers.in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), 10.0)
    assert told == "its life ends the process (SIGKILL)"


def test_a_known_life_replays_by_its_name(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("fused-amsgrad-drops-nan", str(store.KNOWN_FOLDER / "fused-amsgrad-drops-nan.json")):
        monkeypatch.setattr("sys.argv", ["stepcheck", "replay", name])
        with pytest.raises(SystemExit):
            cli.main()
        assert "FAILS torch:Adam[fused] agreement" in capsys.readouterr().out


class TwoFields(torch.optim.Adam):
    """One mistake, two fields: exp_avg_sq is doubled, and the parameter is doubled down with it in the same step."""

    def step(self, closure=None):
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        for p, old in zip(self.param_groups[0]["params"], before, strict=True):
            if p.grad is not None and p.numel():
                p.data += p.data - old
                # Where the first moment is wrong as well, it is told first.
                if self.param_groups[0]["lr"] != 1e-3:
                    self.state[p]["exp_avg"] *= 2


def test_one_cause_in_two_fields_is_told_once():
    result = Campaign(class_subject(TwoFields, "Adam"), Settings(examples=30, only=("agreement",))).run()
    causes = [d.cause for d in result.divergences]
    assert len([c for c in causes if c in ("parameter", "exp_avg")]) == 1, causes
    assert any("also: " in line for d in result.divergences for line in d.life)


def accepting(name, option, kind, value):
    """What the ledger says of a constructor of torch that accepts something: it is told so, whatever it does."""
    subject = torch_subject(name, "forloop")
    trace = life(name, Parameter((2, 3)), events=(Refuse(option, kind, value, "construction"),))
    finding = Finding("refuses-invalid", f"{option} {kind}", 0, "")
    return ledger.explanation(Evidence(subject, trace), finding)


@pytest.mark.parametrize(
    ("name", "option", "kind", "value", "entry"),
    [
        ("RMSprop", "alpha", "too large", 2.0, "options-that-are-not-looked-at"),
        ("RMSprop", "alpha", "negative", -1.0, None),
        ("Adam", "lr", "inf", math.inf, "infinite-options-are-accepted"),
        ("Adam", "betas", "inf", (math.inf, 0.999), None),
        ("Adam", "lr", "nan", math.nan, None),
        ("LBFGS", "lr", "negative", -1.0, None),
        ("LBFGS", "max_iter", "negative", -1, "options-that-are-not-looked-at"),
    ],
)
def test_an_entry_about_validation_explains_its_own_options_alone(name, option, kind, value, entry):
    found = accepting(name, option, kind, value)
    assert (found and found.name) == entry


class StepsTwice(torch.optim.NAdam):
    def step(self, closure=None):
        super().step(closure)
        return super().step()


def test_a_deviation_is_known_by_what_it_comes_from_where_that_check_is_not_asked(monkeypatch, tmp_path, capsys):
    (subject,) = resolve("torch:NAdam[forloop]")
    step = Step({0: Gradient(QUARTERS)})
    trace = life("NAdam", replace(VECTOR, dtype="bfloat16"), events=(step, Reload(), step))
    told = {check: list(findings(subject, trace, check)) for check in ("save-load-continue", "agreement")}
    assert told["save-load-continue"]
    assert not told["agreement"]
    ((finding, entry),) = findings(subject, trace, "agreement", ("agreement",))
    assert (finding.check, finding.cause) == ("agreement", "mu_product, narrow")
    assert entry is LEDGER["load-state-dict-casts-scalars"]
    # So does a replay of that finding.
    divergence = tell(subject, trace, finding)
    store.save(tmp_path, divergence)
    monkeypatch.setattr("sys.argv", ["stepcheck", "replay", str(store.trace_path(tmp_path, divergence))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "FAILS torch:NAdam[forloop] agreement: mu_product is" in capsys.readouterr().out
    # A deviation that stays without the round trip does not come from it.
    wrong = class_subject(StepsTwice, "NAdam")
    assert {entry for _, entry in findings(wrong, trace, "agreement", ("agreement",))} == {None}


def test_a_compiled_step_may_lose_what_it_writes_to_a_double_scalar_but_not_write_something_else():
    (subject,) = resolve("torch:SGD[compiled]")
    known = LEDGER["compiled-drops-writes-to-double-scalars"]
    scalar, vector, single = (Parameter(*p) for p in (((), "float64"), ((1,), "float64"), ((), "float32")))
    trace = life("SGD", scalar, vector, single, momentum=0.5)
    told = list(findings(subject, trace, "agreement"))
    assert {(f.parameter, f.cause, entry) for f, entry in told} == {(0, "parameter", known)}
    for parameter in (1, 2):
        assert forged(subject, trace, "parameter", parameter=parameter) is None
    (right,) = resolve("torch:SGD[forloop]")
    assert forged(right, trace, "parameter") is None


@pytest.mark.parametrize("name", ["SGD", "Adafactor", "Muon"])
def test_hooks_that_run_twice_because_of_super_are_known(name):
    class Own(getattr(torch.optim, name)):
        def step(self, closure=None):
            return super().step(closure)

    getattr(torch.optim, name)([torch.zeros(1, 1, requires_grad=True)])  # its step is patched by its first instance
    events = (Hook("step_pre"), Step({0: Gradient(QUARTERS)}))
    ((finding, entry),) = findings(
        class_subject(Own, name), life(name, Parameter((2, 2)), events=events), "hooks-run-once"
    )
    assert finding.summary == "step() runs its step_pre hook 2 times, not 1"
    assert entry is LEDGER["super-step-runs-hooks-again"]


def test_what_was_found_at_other_seeds_is_known():
    nan = Gradient(Values("listed", listed=(math.nan,) * 32))
    narrow = life(
        "SGD", Parameter((32,), "float16"), events=(Step({0: nan}), Step({0: Gradient(QUARTERS)})), momentum=1 / 3
    )
    beside = life(
        "SparseAdam",
        *(Parameter((1,), "float64", "sliced", within=within) for within in (None, 0)),
        events=(Step({0: None, 1: Gradient(QUARTERS, sparse=Sparse((0,)))}),),
    )
    # mu = 1 is the same in bfloat16, and what is stored there next is not.
    exact = life(
        "ASGD",
        Parameter((1,), "bfloat16"),
        events=(Step({0: Gradient(QUARTERS)}), Reload(), Step({0: Gradient(QUARTERS)})),
        t0=0.5,
    )
    # eta and mu, which a round trip makes float64, are never written again.
    reloaded = life("ASGD", Parameter((2,), "float64"), events=exact.events, lambd=3.0)
    for name, trace, check in (
        ("torch:SGD[fused]", narrow, "agreement"),
        ("torch:ASGD[forloop]", exact, "save-load-continue"),
        ("torch:ASGD[compiled]", reloaded, "agreement"),
        ("torch:SparseAdam[forloop]", beside, "memory-beside"),
    ):
        found = list(findings(*resolve(name), trace, check))
        assert found
        assert None not in [entry for _, entry in found]


@pytest.mark.parametrize(("steps", "known"), [(49, "asgd-power-overflows"), (3, None)])
def test_steps_that_nobody_looked_at_count(steps, known):
    trace = life(
        "ASGD",
        Parameter((1,)),
        events=(Step({0: Gradient(QUARTERS)}), events.Run(steps)),
        alpha=750.0,
        lambd=0.1,
        lr=1 / 3,
    )
    (subject,) = resolve("torch:ASGD[forloop]")
    found = findings(subject, trace, "completes")
    assert [entry and entry.name for _, entry in found] == ([known] if known else [])
