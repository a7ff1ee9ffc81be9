"""What differs between two snapshots of the parameters, and what must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stepcheck.harness.life.memory import Raw, identical, raw, rounded_fill
from stepcheck.harness.play.recording import Snapshot, State

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


def changes(before: tuple[Raw, State], after: tuple[Raw, State]) -> list[str]:
    """What differs between two snapshots of a parameter."""
    names = [] if identical(before[0], after[0]) else ["value"]
    return names + [
        name
        for name in {**before[1], **after[1]}
        if name not in before[1] or name not in after[1] or not identical(before[1][name], after[1][name])
    ]


def foremost(names: Sequence[str]) -> str:
    """The first of some names, for a person."""
    return "the parameter" if names[:1] == ["value"] else names[0] if names else "nothing"


def untouched(player: Player, check: str, which: str, before: Snapshot) -> None:
    """That a step which must do nothing did nothing; state in its initial state may have been created."""
    player.latest = None
    player.latest = player.snapshot()
    for i, (b, a) in enumerate(zip(before, player.latest, strict=True)):
        changed = changes(b, a)
        if player.knows(i):
            changed = [name for name in changed if not _is_initial(player, i, name, b[1], a[1])]
            changed += _begun_in_part(player, i, b[1], a[1])
        player.note(
            check, not changed, foremost(changed), f"is {which} and changes {foremost(changed)} all the same", i
        )
        if a[1].keys() - b[1].keys() or changed:
            player.begun.add(i)


def _begun_in_part(player: Player, index: int, before: State, after: State) -> list[str]:
    """State that was created, if a part of it is missing: the next step takes it for complete."""
    hyper = player.hyper[player.trace.group_of[index]]
    shape = player.trace.parameters[index].shape
    needed = {
        b.name
        for b in player.subject.spec.buffers
        if b.present(hyper) and b.initial(hyper) is not None and b.shape(shape) is not None and not b.of_group
    }
    known = needed & after.keys()
    return ["a part of the state"] if not before and known and known < needed else []


def _is_initial(player: Player, index: int, name: str, before: State, after: State) -> bool:
    if name in before or name not in after:
        return False
    hyper = player.hyper[player.trace.group_of[index]]
    for b in player.subject.spec.buffers:
        if b.name == name and b.present(hyper):
            initial = b.initial(hyper)
            found = np.asarray(after[name])
            own = b.per_parameter or found.dtype == _dtype_as_read(player, index)
            if initial is None or not own:
                return False
            # NumPy has no bfloat16: what is stored in it is read as float32.
            stored = rounded_fill(initial, "float32" if b.per_parameter else player.trace.parameters[index].dtype)
            return bool(np.all((found == found.dtype.type(initial)) | (found == stored)))
    # What the reference knows nothing of may be created at any time.
    return True


def _dtype_as_read(player: Player, index: int) -> np.dtype[Any]:
    """The NumPy dtype that the parameter's own elements are read as."""
    return raw(player.parameters[index]).dtype
