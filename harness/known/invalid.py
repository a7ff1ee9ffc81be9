"""Known of what is invalid and is not refused."""

from __future__ import annotations

import math

from stepcheck.harness.known.entry import ALL, Kind
from stepcheck.harness.known.seen import Seen
from stepcheck.harness.life.events import Refuse

KIND = Kind()


@KIND.enter(
    "groups-are-not-validated",
    "options are validated as keywords of the constructor, and never in a group: not in its list of groups, nor in add_param_group",
    ALL,
    "refuses-invalid",
)
def accepts_in_a_group(seen: Seen) -> bool:
    return seen.finding.cause in ("in group", "in add_param_group")


@KIND.enter(
    "infinite-options-are-accepted",
    "numbers are compared with their lower bound alone, which infinity passes",
    ALL,
    "refuses-invalid",
)
def accepts_infinity(seen: Seen) -> bool:
    e = seen.event
    if not isinstance(e, Refuse) or e.place != "construction" or e.kind != "inf":
        return False
    hyper = next(h for h in seen.evidence.subject.spec.hyper if h.name == e.option)
    entries = e.value if isinstance(e.value, tuple) else (e.value,)
    # Only where the domain has no end on that side.
    return all(
        (domain.high if x > 0 else domain.low) == x
        for x, domain in zip(entries, hyper.entry_domains, strict=True)
        if isinstance(x, float) and math.isinf(x)
    )


@KIND.enter(
    "sgd-accepts-nan",
    "lr, momentum and weight_decay are tested with `x < 0.0`, which NaN passes; dampening is not tested at all",
    "SGD",
    "refuses-invalid",
)
def accepts_nan(seen: Seen) -> bool:
    e = seen.event
    return isinstance(e, Refuse) and (
        e.option == "dampening" or (e.kind == "nan" and e.option in ("lr", "momentum", "weight_decay"))
    )


@KIND.enter(
    "tuples-of-any-length-are-accepted",
    "the entries of a tuple are tested one by one, its length is not: step() fails to unpack it",
    "Adam AdamW Adamax NAdam RAdam SparseAdam Adafactor Rprop Adadelta Muon",
    "refuses-invalid",
)
def accepts_any_length(seen: Seen) -> bool:
    return isinstance(seen.event, Refuse) and seen.event.kind == "wrong length"


#: Options that a constructor does not look at.
_UNCHECKED = {
    "ASGD": ("lambd", "alpha", "t0"), "Rprop": ("step_sizes",), "Muon": ("eps", "ns_steps", "ns_coefficients"),
    "LBFGS": ("max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"),
}  # fmt: skip
#: Options of which it overlooks one kind of fault.
_HALF_CHECKED = {("RMSprop", "alpha"): ("too large", "inf"), ("LBFGS", "lr"): ("conflict",)}


@KIND.enter(
    "options-that-are-not-looked-at",
    "some options are not looked at: "
    + "; ".join(f"{who}: {', '.join(names)}" for who, names in _UNCHECKED.items())
    + "; RMSprop: alpha from 1 on; LBFGS: lr=0 with strong_wolfe",
    " ".join((*_UNCHECKED, "RMSprop")),
    "refuses-invalid",
)
def looks_at_no_value(seen: Seen) -> bool:
    e, name = seen.event, seen.evidence.subject.spec.name
    if not isinstance(e, Refuse) or e.place != "construction":
        return False
    return e.option in _UNCHECKED.get(name, ()) or e.kind in _HALF_CHECKED.get((name, e.option), ())
