"""Who agrees with whom: optimizers of released libraries, each checked as its library declares it, in one table.

A library is one file of ``libraries/``: what to install, and the ``[tool.stepcheck]`` table that would stand in its own ``pyproject.toml``. ``play`` lets
``stepcheck check`` judge it and runs every script of what it found alone, ``cells`` makes a table of it, ``tables``, ``page`` and ``drafts`` write.
"""
