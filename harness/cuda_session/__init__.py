"""What a machine with a GPU is asked for, most valuable first, within a number of minutes, and one folder to bring back.

``cuda_session.py`` at the top of the tree starts it, installed or not. :mod:`plan` says what is run and in which order, :mod:`session` goes
through it, :mod:`process` ends what outlasts its share of the time, :mod:`folder` keeps what comes, and :mod:`page` makes ``summary.md`` of it.
:mod:`work` has the tasks that are not a command of their own. Without a GPU, ``--rehearse`` runs the same plan in Triton's interpreter.
"""
