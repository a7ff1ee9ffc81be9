"""What becomes of gradients between backward passes and steps: scaled, cleared, left alone. A few small parameters are looked at, by hooks of autograd."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stepcheck.harness.life.memory import Raw
from stepcheck.harness.watch.moment import Moment, Quiet
from stepcheck.harness.watch.sampling import places, same, taken

#: Parameters that are looked at, the smallest, and elements of each.
_PROBES, _MOST = 4, 64
#: Steps in a row whose gradient must still be there for it to be no whim.
UNCLEARED = 3
#: Callers that are asked whether they are a scaler.
_CALLERS = 12


def _backward_pass() -> int:
    """Which backward pass is going on."""
    return int(torch._C._current_graph_task_id())  # noqa: SLF001 - as torch.utils.checkpoint asks


class Probe:
    """One parameter whose gradient is looked at before and after autograd adds to it.

    Args:
        is_scaled: whether a backward pass is one of a scaled loss.

    Attributes:
        scaled: whether all backward passes since the last step were.
        summed: its gradient after the last backward pass.
        left: its gradient after the last step, and the tensor that it stood in.
        uncleared: steps in a row whose gradient was still there when the next backward pass began.
        thrown: whether the gradient of the last step was made smaller after it, and not used.
    """

    def __init__(self, p: torch.Tensor, is_scaled: Callable[[int], bool]) -> None:
        self.p, self._is_scaled = p, is_scaled
        self.at = places(p.numel(), _MOST, 0, 0, 0)
        self.summed: Raw | None = None
        self.left: tuple[Raw, torch.Tensor] | None = None
        self.uncleared = 0
        self.cleared = self.thrown = False
        self.scaled = True
        self._handles: list[Any] = [
            p.register_hook(self._arrives),  # type: ignore[no-untyped-call]
            p.register_post_accumulate_grad_hook(self._added),  # type: ignore[no-untyped-call]
        ]

    def read(self) -> Raw | None:
        """Its gradient now."""
        g = self.p.grad
        return None if g is None or g.is_sparse else taken(g, self.at)

    def stepped(self) -> None:
        """A step has used its gradient."""
        now, g = self.read(), self.p.grad
        self.summed, self.scaled = None, True
        self.left = None if now is None or g is None or not np.any(now) else (now, g)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _arrives(self, _: torch.Tensor) -> None:
        """A gradient is about to be added to what is there."""
        self.scaled = self.scaled and self._is_scaled(_backward_pass())
        if self.left is None and not self.uncleared:
            return
        now = self.read()
        unused = now is None or not np.any(now)
        if self.left is None:  # of a second backward pass, before which it may still be cleared
            self.uncleared = 0 if unused else self.uncleared
            self.cleared = self.cleared or unused
            return
        (before, tensor), self.left = self.left, None
        self.cleared = now is None or not same(now, before)
        self.uncleared = 0 if self.cleared else self.uncleared + 1
        self.thrown = unused and _is_smaller(taken(tensor, self.at), before)

    def _added(self, _: torch.Tensor) -> None:
        self.summed = self.read()


class Gradients(Quiet):
    """Looks at the probes when a step begins.

    Args:
        scaler: the ``GradScaler`` of the run, if it is known; otherwise one that calls the step is found.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        own = {id(p): p for group in optimizer.param_groups for p in group["params"]}.values()
        able = [
            p
            for p in own
            if p.requires_grad and p.is_leaf and p.numel() and type(p) in (torch.Tensor, torch.nn.Parameter)
        ]
        self.probes = [
            Probe(p, lambda task: task == self._scaled_pass) for p in sorted(able, key=torch.Tensor.numel)[:_PROBES]
        ]
        self.scaler = scaler
        self._scaled: Callable[..., Any] | None = None
        self._scaled_pass = -1
        if scaler is not None:
            self._listen(scaler)

    def _listen(self, scaler: Any) -> None:
        """Take note of losses that the scaler is given."""
        scale = scaler.scale

        def flows(_: torch.Tensor) -> None:
            self._scaled_pass = _backward_pass()

        def scaled(outputs: Any) -> Any:
            result = scale(outputs)
            for loss in result if isinstance(result, list | tuple) else (result,):
                if isinstance(loss, torch.Tensor) and loss.requires_grad:
                    loss.register_hook(flows)  # type: ignore[no-untyped-call]
            return result

        self._scaled = scaler.scale = scaled

    def close(self) -> None:
        for probe in self.probes:
            probe.close()
        if self._scaled is not None and vars(self.scaler).get("scale") is self._scaled:
            del self.scaler.scale

    def forget(self) -> None:
        for probe in self.probes:
            probe.left = probe.summed = None
            probe.uncleared = 0

    def begins(self, moment: Moment) -> None:
        if moment.closure:
            self.forget()
            return
        self._look_cleared(moment)
        if moment.watched:
            scaler = self.scaler or _calling_scaler()
            if scaler is not None and scaler.is_enabled() and moment.scale == 1.0:
                self._look_unscaled(moment, float(scaler.get_scale()))

    def ends(self, moment: Moment) -> None:  # noqa: ARG002 - whichever it is
        for probe in self.probes:
            probe.stepped()

    def _look_cleared(self, moment: Moment) -> None:
        looked = [probe for probe in self.probes if probe.cleared or probe.uncleared]
        moment.found.looked["cleared"] += len(looked)
        for probe in looked:
            if probe.uncleared >= UNCLEARED:
                told = f"the gradients of {UNCLEARED} steps in a row were still there when the next backward pass began, which added to them: zero_grad() is missing"
                moment.see("cleared", "uncleared", told, probe.p)
            elif probe.uncleared:
                told = "the gradient of the step was still there when the next backward pass began, which added to it"
                moment.see("cleared", "uncleared", told, probe.p, certain=False)
            if probe.thrown:
                told = (
                    "its gradient was made smaller after the step, and then thrown away: clipping belongs before step()"
                )
                moment.see("cleared", "late", told, probe.p, certain=False)
            probe.cleared = probe.thrown = False

    def _look_unscaled(self, moment: Moment, scale: float) -> None:
        """Of a scale that is a power of two, the quotient is exact, unless it is subnormal."""
        if math.frexp(scale)[0] != 0.5 or scale == 1.0:
            return
        for probe in self.probes:
            now, summed = probe.read(), probe.summed
            if now is None or summed is None or not np.any(now) or not np.all(np.isfinite(summed)):
                continue
            moment.found.looked["unscaled"] += 1
            if self._scaled is not None and probe.scaled and same(now, summed):
                told = f"the step is given gradients of the scaled loss: they are {scale:g} times too large; call scaler.step(optimizer), or scaler.unscale_(optimizer) before"
                moment.see("unscaled", "never", told, probe.p)
            elif same(now, (summed.astype(np.float64) / scale / scale).astype(now.dtype)):
                told = f"the step is given gradients that were divided by the scale twice: they are {scale:g} times too small"
                moment.see("unscaled", "twice", told, probe.p)


def _is_smaller(now: Raw, before: Raw) -> bool:
    """Whether each element is as it was or nearer to zero, not all are as they were, and not all are zero."""
    with np.errstate(all="ignore"):
        return bool(
            np.any(now) and not same(now, before) and np.all((np.abs(now) <= np.abs(before)) & (now * before >= 0))
        )


def _calling_scaler() -> Any:
    """The ``GradScaler`` that calls the step, if one does."""
    frame: Any = sys._getframe()  # noqa: SLF001 - who called is asked of nobody else
    for _ in range(_CALLERS):
        frame = frame.f_back
        if frame is None:
            return None
        if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), torch.amp.GradScaler):
            return frame.f_locals["self"]
    return None
