"""Somebody plays a life: subjects say who and in which arithmetic, the player does what the trace says, the recording is what happened.

``signature`` finds out what somebody's class takes, ``validation`` what it refuses, ``resume`` carries state from one optimizer to the next,
and ``spoil`` spoils it.
"""
