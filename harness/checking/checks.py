"""All checks, in the order in which they are told. The campaign, the command line, the report and pytest pick them up here."""

from __future__ import annotations

from stepcheck.harness.checking import agreement, noted, steps
from stepcheck.harness.checking.check import Check

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        steps.completes,
        steps.memory_beside,
        steps.gradient_unwritten,
        steps.no_gradient,
        steps.between_steps,
        agreement.save_load_continue,
        agreement.agreement,
        agreement.groups_independent,
        agreement.order_of_parameters,
        agreement.maximize_mirrors,
        agreement.option_effect,
        noted.refuses_invalid,
        noted.storage_stays,
        noted.options_hold,
        noted.closure,
        noted.hooks_run_once,
        noted.failed_step,
        noted.malformed_state,
        noted.skipped_step,
        noted.dicts_unchanged,
        noted.loaded_state_apart,
        noted.random_state,
        noted.settings_kept,
    )
}

#: The checks that a deviation from the reference may end in.
EXPLAINED_BY = ("agreement", *agreement.EXPLANATIONS)
