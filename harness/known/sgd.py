"""Known of the arithmetic of SGD."""

from __future__ import annotations

from stepcheck.harness.known.entry import Kind
from stepcheck.harness.known.seen import Seen

KIND = Kind()


def _adds_in_place(seen: Seen, group: int) -> bool:
    options = seen.options(group)
    return bool(options.nesterov) and options.weight_decay == 0 and not options.maximize


@KIND.enter(
    "foreach-nesterov-writes-gradient",
    "with nesterov and neither weight_decay nor maximize, the momentum is added to p.grad itself",
    "SGD",
    "gradient-unwritten failed-step",
    "foreach",
)
def writes_the_gradient(seen: Seen) -> bool:
    if seen.finding.check == "failed-step":  # the gradients of groups before the one that makes it fail
        return seen.finding.cause == "gradient" and any(
            _adds_in_place(seen, n) for n in range(len(seen.trace.all_groups))
        )
    return _adds_in_place(seen, seen.group_of(seen.index))


@KIND.enter(
    "foreach-nesterov-writes-expanded-gradient",
    "the same addition to p.grad itself raises where the gradient is expanded",
    "SGD",
    "completes",
    "foreach",
)
def writes_an_expanded_gradient(seen: Seen) -> bool:
    def expanded(i: int) -> bool:
        gradient = seen.gradient(i)
        return gradient is not None and gradient.layout == "expanded" and _adds_in_place(seen, seen.group_of(i))

    told = seen.message.startswith("RuntimeError: unsupported operation: more than one element")
    return told and any(map(expanded, range(len(seen.trace.parameters))))
