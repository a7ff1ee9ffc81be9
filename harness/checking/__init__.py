"""The questions. Each check looks at the evidence of one life, yields what it finds wrong, and says what a script must assert to show it.

``checks`` lists them, in the order in which they are asked. They stand in ``steps`` (what a step must do), ``agreement`` (the reference, and what accounts for a deviation from it) and
``noted`` (what a plain comparison decided while the life was played). ``check`` and ``witness`` are what a check is, ``case`` the evidence, ``findings`` what it yields. ``twins``
asks the class itself, by a second life that must come out alike; ``determinism`` asks whether the same life comes out the same.
"""
