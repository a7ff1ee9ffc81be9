"""The classes whose step is a rule: those of ``torch.optim``, and any that it lacks, whose base is ``torch.optim.Optimizer``.

A class that stands here is one of :mod:`stepcheck.fast` by that alone.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from stepcheck.fast import rules
from stepcheck.fast.engine import counter, full_like
from stepcheck.fast.optimizer import ByRule


class SGD(ByRule, torch.optim.SGD):
    """``torch.optim.SGD``, stepped by one kernel. ``nesterov=True`` looks at the momentum of each group, not at the keyword's."""

    rule = rules.SGD

    @functools.wraps(torch.optim.SGD.__init__)  # type: ignore[misc] # for the signature
    def __init__(self, params: Any, *args: Any, nesterov: bool = False, **options: Any) -> None:
        if nesterov:
            groups = list(params)
            groups = groups if groups and isinstance(groups[0], dict) else [{"params": groups}]
            params = [{"nesterov": True, **group} for group in groups]
        super().__init__(params, *args, **options)
        self.defaults["nesterov"] = nesterov


class ASGD(ByRule, torch.optim.ASGD):
    """``torch.optim.ASGD``, stepped by one kernel."""

    rule = rules.ASGD


class Adadelta(ByRule, torch.optim.Adadelta):
    """``torch.optim.Adadelta``, stepped by one kernel."""

    rule = rules.ADADELTA


class Adagrad(ByRule, torch.optim.Adagrad):
    """``torch.optim.Adagrad``, stepped by one kernel. Each group starts from its own ``initial_accumulator_value``."""

    rule = rules.ADAGRAD

    @functools.wraps(torch.optim.Adagrad.__init__)  # type: ignore[misc] # for the signature
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = full_like(p, rules.option(group, "initial_accumulator_value"))
                if self.state[p]["step"].device.type == "meta":  # the default device has no memory
                    self.state[p]["step"] = counter(0.0, group)


class Adam(ByRule, torch.optim.Adam):
    """``torch.optim.Adam``, stepped by one kernel."""

    rule = rules.ADAM


class AdamW(ByRule, torch.optim.AdamW):
    """``torch.optim.AdamW``, stepped by one kernel."""

    rule = rules.ADAM


class Adamax(ByRule, torch.optim.Adamax):
    """``torch.optim.Adamax``, stepped by one kernel."""

    rule = rules.ADAMAX


class NAdam(ByRule, torch.optim.NAdam):
    """``torch.optim.NAdam``, stepped by one kernel."""

    rule = rules.NADAM


class RAdam(ByRule, torch.optim.RAdam):
    """``torch.optim.RAdam``, stepped by one kernel."""

    rule = rules.RADAM


class RMSprop(ByRule, torch.optim.RMSprop):
    """``torch.optim.RMSprop``, stepped by one kernel."""

    rule = rules.RMSPROP


class Rprop(ByRule, torch.optim.Rprop):
    """``torch.optim.Rprop``, stepped by one kernel."""

    rule = rules.RPROP


class SparseAdam(ByRule, torch.optim.SparseAdam):
    """``torch.optim.SparseAdam``, stepped by one kernel over the elements that the gradients name."""

    rule = rules.SPARSE_ADAM
