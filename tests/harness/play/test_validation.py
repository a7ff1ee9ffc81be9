"""What is invalid, who refuses it, and what torch.optim 2.13 does about it."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from scripted import run_here

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.life.events import PLACES, Group, Parameter, SetOption
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.play.validation import Cell, Outcome, attempt, cells, life, matrix, parameter_cells, table, told
from stepcheck.harness.telling import repro
from stepcheck.reference import SPECS
from stepcheck.reference.spec import Domain, Hyper, Spec

KINDS = {
    "negative", "zero", "too small", "too large", "nan", "inf", "wrong type", "wrong length", "not an integer", "not a choice",
    "conflict",
}  # fmt: skip


def all_cells(spec):
    return cells(spec, [h.name for h in spec.hyper])


def forloop(name):
    return resolve(f"torch:{name}[forloop]")[0]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_each_cell_is_invalid_by_the_spec_and_its_control_valid(spec):
    for cell in all_cells(spec):
        with pytest.raises(ValueError, match=spec.name):
            spec.hyper_values({**cell.beside, cell.option: cell.value})
        spec.hyper_values(cell.beside)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_each_option_has_cells_in_each_place(spec):
    places = set(PLACES) - ({"add_param_group"} if spec.closure else set())
    found = {(c.option, c.place) for c in all_cells(spec)}
    assert found == {(h.name, place) for h in spec.hyper for place in places}


def test_every_kind_and_place_occurs():
    found = [c for spec in SPECS.values() for c in all_cells(spec)]
    assert {c.kind for c in found} == KINDS
    assert {c.place for c in found} == set(PLACES)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_no_cell_occurs_twice(spec):
    assert max(Counter(all_cells(spec)).values()) == 1


def test_each_entry_of_a_tuple_is_wrong_by_itself():
    found = [c for c in all_cells(SPECS["Adam"]) if c.option == "betas" and c.place == "construction"]
    shown = [(c.kind, c.entry, c.value) for c in found if c.kind != "nan"]
    assert shown == [
        ("negative", 0, (-1.0, 0.999)),
        ("too large", 0, (1.0, 0.999)),
        ("too large", 0, (2.0, 0.999)),
        ("inf", 0, (math.inf, 0.999)),
        ("wrong type", 0, (None, 0.999)),
        ("negative", 1, (0.9, -1.0)),
        ("too large", 1, (0.9, 1.0)),
        ("too large", 1, (0.9, 2.0)),
        ("inf", 1, (0.9, math.inf)),
        ("wrong type", 1, (0.9, None)),
        ("wrong length", None, (0.9,)),
        ("wrong length", None, (0.9, 0.999, 0.999)),
        ("wrong type", None, 0.999),
        ("wrong type", None, "0.999"),
        ("wrong type", None, None),
    ]
    assert [[math.isnan(x) for x in c.value] for c in found if c.kind == "nan"] == [[True, False], [False, True]]


def test_conflicts_are_found_from_what_the_spec_declares():
    found = {
        (name, c.option, repr(c.value), repr(c.beside))
        for name, spec in SPECS.items()
        for c in all_cells(spec)
        if c.kind == "conflict"
    }
    assert found == {
        ("SGD", "nesterov", "True", "{}"),
        ("SGD", "dampening", "0.5", "{'momentum': 0.5, 'nesterov': True}"),
        ("LBFGS", "lr", "0.0", "{'line_search_fn': 'strong_wolfe'}"),
        ("Rprop", "step_sizes", "(50.0, 1e-06)", "{}"),
    }


def test_a_new_spec_has_its_matrix_for_free():
    odd = Hyper("odd", -1.0, "1", Domain(low=-2.0, high=3.0, low_included=False, high_included=True))
    whole = Hyper("whole", 4, "1", Domain(low=2.0, high=9.0), integer=True)
    spec = Spec("New", lambda *_: None, (odd, whole), (), source="")
    found = [(c.option, c.kind, repr(c.value)) for c in all_cells(spec) if c.place == "group"]
    assert found == [
        ("odd", "too small", "-3.0"),
        ("odd", "too small", "-2.0"),
        ("odd", "too large", "4.0"),
        ("odd", "nan", "nan"),
        ("odd", "inf", "inf"),
        ("odd", "wrong type", "'-1.0'"),
        ("odd", "wrong type", "None"),
        ("whole", "negative", "-1"),
        ("whole", "zero", "0"),
        ("whole", "too small", "1"),
        ("whole", "too large", "9"),
        ("whole", "too large", "10"),
        ("whole", "nan", "nan"),
        ("whole", "inf", "inf"),
        ("whole", "not an integer", "3.5"),
        ("whole", "wrong type", "'4'"),
        ("whole", "wrong type", "None"),
    ]


def test_options_that_a_subject_lacks_are_left_out():
    assert {c.option for c in cells(SPECS["Adam"], {"lr"})} == {"lr"}
    # Without momentum there is no conflict to be had with it.
    beside = [c.beside for c in cells(SPECS["SGD"], {"lr", "nesterov", "dampening"}) if c.kind == "conflict"]
    assert beside == [{}] * len(PLACES)


def test_flags_and_what_is_loaded_are_not_judged():
    for cell in all_cells(SPECS["Adam"]):
        assert cell.judged == (cell.option not in {"amsgrad", "maximize", "decoupled_weight_decay"}) * (
            cell.place != "load_state_dict"
        )


def test_cells_are_told_apart_by_what_python_calls_equal():
    nan = Cell("lr", "nan", math.nan, "group")
    assert nan == Cell("lr", "nan", float("nan"), "group")
    assert hash(nan) == hash(Cell("lr", "nan", float("nan"), "group"))
    assert Cell("lr", "x", 1, "group") != Cell("lr", "x", True, "group")


def test_values_survive_a_trace():
    values = [c.value for spec in SPECS.values() for c in all_cells(spec)]
    trace = Trace("Adam", (Parameter((1,)),), (Group((0,)),), tuple(SetOption(0, "lr", v) for v in values))
    again = Trace.from_json(json.loads(json.dumps(trace.to_json())))
    assert [repr(e.value) for e in again.events] == list(map(repr, values))


# Subjects -----------------------------------------------------------------------------------------------------------------


class Free(torch.optim.Optimizer):
    """Validates nothing."""

    def __init__(self, params, **options):
        super().__init__(params, options)


def strict(spec, *, late=False):
    """A class that refuses what its Spec does, before it changes anything or too late."""

    def check(group):
        spec.hyper_values({k: v for k, v in group.items() if k not in {"params", "param_names"}})
        if len(set(group["params"])) != len(group["params"]):
            raise ValueError("the same parameter twice")

    class Strict(Free):
        def add_param_group(self, group):
            if not late:
                check({**self.defaults, **group, "params": list(group["params"])})
            super().add_param_group(group)
            check(self.param_groups[-1])

        def load_state_dict(self, state_dict):
            for group in [] if late else state_dict["param_groups"]:
                check(group)
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                check(group)

    return Strict


def subject_of(make, like):
    return class_subject(make, like, "mine")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_full_validation_refuses_everything(spec):
    subject = subject_of(strict(spec), spec.name)
    found = matrix(subject)
    # It takes any keyword, and so is not asked for those that came with a later torch.
    asked = [h.name for h in spec.hyper if not h.since]
    assert set(found) == {*cells(spec, asked), *parameter_cells(subject)}
    assert [c for c, o in found.items() if not o.refused or o.changed or o.control_failed] == []
    first, *rest = told(found)
    judged = Counter(c.place for c in found if c.judged and c.option != "params")
    assert first.startswith(f"refuses {judged['group']} of {judged['group']} invalid options at construction")
    assert all(line.startswith("recorded, not judged") for line in rest)


@pytest.mark.parametrize("like", ["Adam", "LBFGS", "Muon"])
def test_no_validation_refuses_nothing(like):
    found = matrix(subject_of(Free, like))
    options = {c: o for c, o in found.items() if c.option != "params"}
    assert set(options.values()) == {Outcome()}
    assert told(found)[0].startswith("refuses 0 of ")
    # The base class looks at the parameters.
    shown = {(c.kind, c.place): (o.refused, bool(o.warned)) for c, o in found.items() if c.option == "params"}
    assert shown.pop(("duplicate", "construction")) == (False, True)
    assert set(shown.values()) == {(True, False)}


def test_a_refused_call_that_leaves_changes_behind():
    spec = SPECS["Adam"]
    found = matrix(subject_of(strict(spec, late=True), "Adam"))
    assert all(o.refused for o in found.values())
    changed = {c.place for c, o in found.items() if o.changed}
    unchanged = {c.place for c, o in found.items() if not o.changed and c.option != "params"}
    assert changed == {"add_param_group", "load_state_dict"}
    assert unchanged == {"construction", "group"}
    assert "changes the groups although it refuses in load_state_dict: all that it refuses" in told(found)


def test_groups_that_cannot_be_read_any_more_are_changed():
    class Ruinous(Free):
        def add_param_group(self, group):
            super().add_param_group(group)
            if group["lr"] != 1e-3:
                self.param_groups.append(None)
                raise ValueError

    cell = Cell("lr", "negative", -1.0, "add_param_group")
    assert attempt(subject_of(Ruinous, "Adam"), cell) == Outcome(True, "ValueError", "", changed=True)


def test_a_control_that_fails_is_no_refusal():
    class NoGroups(Free):
        def __init__(self, params, **options):
            params = list(params)
            if isinstance(params[0], dict):
                raise TypeError("parameters alone")
            super().__init__(params, **options)

    found = matrix(subject_of(NoGroups, "Adam"))
    in_group = {o for c, o in found.items() if c.place == "group"}
    assert in_group == {Outcome(control_failed="TypeError: parameters alone")}
    assert (
        told(found)[-1] == "not tried, because what is valid is refused too: in a group (TypeError: parameters alone)"
    )
    assert not any(o.control_failed for c, o in found.items() if c.place != "group")


def test_somebody_s_class_is_given_every_option_everywhere():
    class Required(Free):
        def __init__(self, params, *, lr, betas, eps):
            super().__init__(params, lr=lr, betas=betas, eps=eps)

        def add_param_group(self, group):
            if isinstance(self.param_groups, list) and self.param_groups:
                assert set(group) == {"params", "lr", "betas", "eps"}
            super().add_param_group(group)

    found = matrix(subject_of(Required, "Adam"))
    assert {c.option for c in found} == {"lr", "betas", "eps", "params"}
    assert not any(o.control_failed for o in found.values())


def test_a_subject_without_groups_to_add():
    def make(params, lr):
        nothing = dict.fromkeys(("step", "zero_grad", "load_state_dict"))
        return SimpleNamespace(param_groups=[{"params": params, "lr": lr}], state_dict=dict, **nothing)

    found = matrix(subject_of(make, "Adam"))
    assert "AttributeError" in {o.control_failed.split(":")[0] for o in found.values()}
    assert not any(o.refused for o in found.values())


def test_a_warning_is_recorded_and_is_not_the_control_s_own():
    class Talkative(Free):
        def __init__(self, params, **options):
            torch.warnings.warn("deprecated", stacklevel=2)
            if options["lr"] < 0:
                torch.warnings.warn("lr is negative", stacklevel=2)
            super().__init__(params, **options)

    found = matrix(subject_of(Talkative, "SparseAdam"))
    warned = {(c.option, c.kind, o.warned) for c, o in found.items() if o.warned and c.option != "params"}
    assert warned == {("lr", "negative", "lr is negative")}


# torch.optim --------------------------------------------------------------------------------------------------------------


def test_torch_refuses_a_negative_learning_rate():
    outcome = attempt(forloop("Adam"), Cell("lr", "negative", -1.0, "construction"))
    assert outcome == Outcome(refused=True, exception="ValueError", message="Invalid learning rate: -1.0")


def test_one_attempt_is_as_in_the_matrix():
    subject = forloop("Rprop")
    found = matrix(subject)
    assert {cell: attempt(subject, cell) for cell in found} == found


def test_rows_are_json():
    found = matrix(forloop("SGD"))
    rows = json.loads(json.dumps(table(found), allow_nan=False))
    assert len(rows) == len(found)
    here = {(r["option"], r["kind"]): r for r in rows if r["place"] == "construction"}
    nan, negative = here["lr", "nan"], here["lr", "negative"]
    assert (nan["value"], nan["judged"], nan["refused"], nan["exception"]) == ("nan", True, False, "")
    assert (negative["value"], negative["refused"], negative["exception"]) == ((-1.0).hex(), True, "ValueError")
    assert here["nesterov", "wrong type"]["value"] == {"text": "False"}


#: What torch 2.13 refuses of what is judged, at construction, in a group and in add_param_group, and of all in load_state_dict.
TORCH = {
    "ASGD": "8/25 0/25 0/25 0/26",
    "Adadelta": "18/21 0/21 0/21 0/22",
    "Adafactor": "28/35 0/35 0/35 0/36",
    "Adagrad": "20/25 0/25 0/25 0/26",
    "Adam": "28/32 0/32 0/32 0/35",
    "AdamW": "28/32 0/32 0/32 0/34",
    "Adamax": "28/32 0/32 0/32 0/33",
    "LBFGS": "6/36 0/36 0/0 0/36",
    "Muon": "14/47 0/47 0/47 0/48",
    "NAdam": "32/37 0/37 0/37 0/39",
    "RAdam": "28/32 0/32 0/32 0/34",
    "RMSprop": "20/26 0/26 0/26 0/28",
    "Rprop": "20/37 0/37 0/37 0/38",
    "SGD": "11/22 0/22 0/22 0/24",
    "SparseAdam": "26/29 0/29 0/29 0/30",
}


@pytest.mark.parametrize("name", SPECS)
def test_what_torch_refuses(name):
    found = matrix(forloop(name))
    assert not any(o.control_failed or o.changed for o in found.values())
    counts = []
    for place in PLACES:
        here = [
            o.refused
            for c, o in found.items()
            if c.option != "params" and c.place == place and c.judged == (place != "load_state_dict")
        ]
        counts.append(f"{sum(here)}/{len(here)}")
    assert " ".join(counts) == TORCH[name]


def test_torch_in_words():
    assert told(matrix(forloop("Adam"))) == [
        "refuses 28 of 32 invalid options at construction, 0 of 32 in a group, 0 of 32 in add_param_group",
        "accepted at construction: lr, eps, weight_decay = inf; betas = (0.9, 0.999, 0.999)",
        "accepted in a group and in add_param_group, not at construction: all that is refused at construction",
        "only warns of: duplicate parameters = [p, p] at construction",
        "refused by accident at construction (IndexError): betas = (0.9,)",
        "recorded, not judged: refuses 0 of 35 invalid options in load_state_dict, 0 of 9 texts for a flag",
    ]


# Dictionaries of other parameters -----------------------------------------------------------------------------------------

OF_OTHERS = {"fewer", "more", "of fewer groups", "of more groups"}


def of_others(subject):
    return [cell for cell in parameter_cells(subject) if cell.place == "load_state_dict"]


@pytest.mark.parametrize("name", SPECS)
def test_who_is_torchs_or_fast_refuses_a_dictionary_of_other_parameters(name):
    for subject in (forloop(name), *resolve(f"fast:{name}")[:1]):
        tried = {cell.kind: attempt(subject, cell) for cell in of_others(subject)}
        assert set(tried) == ({"fewer", "more"} if subject.one_group else OF_OTHERS)
        assert {(o.refused, o.exception, o.changed) for o in tried.values()} == {(True, "ValueError", False)}


class LoadsAsFarAsItGoes(torch.optim.SGD):
    """Loads the groups and parameters that a dictionary has, and leaves the others."""

    def load_state_dict(self, state_dict):
        for mine, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            mine |= {k: v for k, v in theirs.items() if k != "params"}


class TakesAnyGroup(Free):
    """Takes a group more, whatever its parameters are."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

    def add_param_group(self, group):
        if getattr(self, "param_groups", None):
            self.param_groups.append({**self.defaults, **group})
        else:
            super().add_param_group(group)


@pytest.mark.parametrize(
    ("make", "place", "kinds"),
    [
        (LoadsAsFarAsItGoes, "load_state_dict", OF_OTHERS),
        (TakesAnyGroup, "add_param_group", {"duplicate", "not a tensor", "not a leaf"}),
    ],
)
def test_parameters_that_are_taken_wrongly_are_told_and_found(make, place, kinds):
    subject, found = class_subject(make, "SGD"), set()
    for cell in (c for c in parameter_cells(subject) if c.place == place):
        trace = life(subject, cell)
        assert list(CHECKS["refuses-invalid"].find(Evidence(forloop("SGD"), trace))) == []
        (finding,) = CHECKS["refuses-invalid"].find(Evidence(subject, trace))
        script = repro.script(subject, trace, finding)
        assert "is accepted in" in run_here(script), script
        assert not run_here(script.replace(make.__module__, "torch.optim").replace(make.__name__, "SGD")), script
        found.add(cell.kind)
    assert found == kinds
    assert any(line.startswith("accepts as parameters") and place in line for line in told(matrix(subject)))
