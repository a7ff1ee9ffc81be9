"""References by their names: shipped, of a module, published by a package, given as they are."""

import importlib.metadata
from dataclasses import replace

import pytest

from stepcheck.harness.play import references
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS
from stepcheck.reference.dialects import title

OWN = replace(SPECS["SGD"], name="Own")
NO_SPEC = 3


@pytest.fixture
def published(monkeypatch):
    """What installed packages publish."""
    group = references.REFERENCES
    entries = [importlib.metadata.EntryPoint(name, f"{__name__}:{value}", group)
               for name, value in {"Own": "OWN", "Broken": "NO_SPEC", "Gone": "NOTHING", "Adam": "OWN"}.items()]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)


def test_a_package_publishes_references_under_names(published):
    spec = references.spec_of("Own")
    assert (spec.name, spec.update) == ("Own", OWN.update)
    assert references.known() == [*SPECS, "Own", "Broken", "Gone"]


def test_what_is_shipped_is_not_replaced(published):
    assert references.spec_of("Adam") is SPECS["Adam"]


def test_one_of_a_module_is_found_again_by_its_title():
    spec = references.spec_of(f"{__name__}:OWN[lr-inside-momentum]")
    assert title(spec) == f"{__name__}:OWN[lr-inside-momentum]"
    assert references.spec_of(title(spec)).dialects == spec.dialects


def test_one_that_is_given_as_it_is_has_the_name_under_which_its_module_has_it():
    assert references.name_of("Adam") == "Adam"
    assert references.name_of(SPECS["Adam"]) == "Adam"
    local = replace(OWN, name="Local")
    name = references.name_of(local)
    assert name.endswith(":Local")
    assert references.spec_of(name).update is local.update


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Nobody", "no reference named 'Nobody'; there is ASGD, Adadelta"),
        ("Broken", "Broken is no reference, but of type int"),
        ("Gone", "Gone: cannot be loaded (AttributeError"),
        (f"{__name__}:NOTHING", "has no NOTHING"),
        ("no_such_module:SPEC", "cannot import no_such_module"),
        ("Adam[", "no reference named 'Adam['"),
    ],
)
def test_what_there_is_not(published, name, told):
    with pytest.raises(UsageError) as raised:
        references.spec_of(name)
    assert told in str(raised.value)
