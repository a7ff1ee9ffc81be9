"""What every room may use and no optimizer is in: words made fit to be shown, defaults, clocks, processes, and the settings that a process shares.

It imports nothing of the other rooms.
"""
