"""Somebody plays a life: subjects say who and in which arithmetic, the player does what the trace says, the recording is what happened.

``subjects``, ``profiles`` and ``families`` say who plays; ``signature`` finds out what somebody's class takes, ``validation`` what it refuses. ``player`` goes through a
trace, and ``events`` says what it does at each kind of event: ``building`` constructs, ``tensors`` makes parameters and gradients, ``steps`` and ``failing`` step, ``hooks``
counts hooks, ``trips`` and ``resume`` carry state from one optimizer to the next, ``spoil`` spoils it. ``untouched`` sees to what must not change meanwhile, ``process`` to what the process shares.
"""
