"""Known of LBFGS."""

from __future__ import annotations

import re

from stepcheck.harness.known.entry import Kind
from stepcheck.harness.known.seen import Seen, order
from stepcheck.harness.life.events import Scalar, SetOption, keywords, plain

KIND = Kind()


@KIND.enter(
    "lbfgs-views-strided-gradient",
    "a gradient that is not contiguous, as that of a transposed parameter, is flattened with view()",
    "LBFGS",
    "completes",
    link="https://github.com/pytorch/pytorch/issues/130346",
)
def views_a_strided_gradient(seen: Seen) -> bool:
    strided = any(order(p.shape, p.layout) != order(p.shape, "contiguous") for p in seen.trace.parameters)
    return strided and seen.message.startswith("RuntimeError: view size is not compatible with input")


@KIND.enter(
    "lbfgs-largest-of-no-elements",
    "parameters without any element have no largest gradient: max() raises",
    "LBFGS",
    "completes",
)
def has_no_largest_gradient(seen: Seen) -> bool:
    empty = all(p.numel == 0 for p in seen.trace.parameters)
    return empty and seen.message.startswith("RuntimeError: max(): Expected reduction dim")


@KIND.enter(
    "lbfgs-strong-wolfe-nan-loss",
    "a loss of NaN leaves a bracket of one trial, and the line search asks for the second",
    "LBFGS",
    "completes",
)
def seeks_a_second_trial(seen: Seen) -> bool:
    # The evaluations of a step that raises are not recorded, so that the loss itself cannot be asked for.
    searched = seen.options(0).line_search_fn == "strong_wolfe"
    return searched and seen.message == "IndexError: list index out of range"


@KIND.enter(
    "lbfgs-extrapolates-a-whole-number",
    "an lr of 1, the default, stays a Python int as the first trial of a line search; ten times as far each time, where the loss goes on falling, it soon fits no tensor",
    "LBFGS",
    "completes",
)
def extrapolates_a_whole_number(seen: Seen) -> bool:
    hyper = seen.options(0)
    whole = float(hyper.lr).is_integer() and "lr" not in hyper.tensors
    return hyper.line_search_fn == "strong_wolfe" and whole and seen.message == "OverflowError: int too big to convert"


@KIND.enter(
    "lbfgs-history-size-set-later",
    "the list of coefficients is made for the first history_size: with another one later, its entries are sought beyond its end",
    "LBFGS",
    "completes",
)
def seeks_beyond_the_coefficients(seen: Seen) -> bool:
    changed = any(isinstance(e, SetOption) and e.option == "history_size" for e in seen.trace.events)
    return changed and seen.message.startswith("IndexError: list ")


@KIND.enter(
    "lbfgs-history-size-lowered-later",
    "the oldest pair is dropped where there are exactly history_size: with fewer of them later, none ever is",
    "LBFGS",
    "agreement option-effect",
)
def never_drops_a_pair(seen: Seen) -> bool:
    # With one pair more or less it goes another way, and that may show before the lists do.
    held = 0 if seen.step is None else sum(name.startswith("ro[") for name in seen.step.state)
    return _set_before(seen, "history_size") and held > seen.options(0).history_size


def _set_before(seen: Seen, name: str) -> bool:
    """Whether an option was set between construction and the finding."""
    return any(isinstance(e, SetOption) and e.option == name for e in seen.trace.events[: seen.finding.event])


def _spends_either(seen: Seen) -> bool:
    """Whether as many evaluations were made as the first max_iter would leave, or the present one, and those are not as many."""
    step = next((s for s in seen.evidence.recording.steps if s.event == seen.finding.event), None)
    first = seen.evidence.subject.spec.hyper_values(plain(seen.trace.groups[0].options))
    left = {o.max_iter * 5 // 4 for o in (first, seen.options(0))}
    return step is not None and len(left) > 1 and len(step.evaluations) >= min(left)


def _given_in_the_group(seen: Seen, *names: str) -> bool:
    """Whether one of these options stood in the dictionary of the group, not among the constructor's keywords."""
    groups = [g.options for g in seen.trace.groups]
    return any(n in groups[0] and n not in keywords(groups, seen.trace.form) for n in names)


@KIND.enter(
    "lbfgs-derives-max-eval-from-the-keyword",
    "max_eval = max_iter * 5 // 4 is formed of the constructor's keywords: a max_iter of the group or set later, or max_eval=None, is not looked at",
    "LBFGS",
    "agreement option-effect completes",
)
def derives_max_eval_from_the_keyword(seen: Seen) -> bool:
    if seen.options(0).max_eval is not None:
        return False
    told = re.match(r"TypeError: (unsupported operand|'>=' not supported).*NoneType", seen.message)
    shown = told is not None or seen.finding.check != "completes"
    in_group = shown and _given_in_the_group(seen, "max_iter", "max_eval")
    return in_group or (_set_before(seen, "max_iter") and _spends_either(seen))


@KIND.enter(
    "lbfgs-keeps-the-tensor-lr-as-state",
    "a learning rate that is a tensor becomes state['t'] itself, so that whoever fills the one changes the other",
    "LBFGS",
    "between-steps",
)
def keeps_the_tensor_lr(seen: Seen) -> bool:
    return seen.finding.cause == "t" and any(isinstance(o.get("lr"), Scalar) for o in seen.trace.given_options)
