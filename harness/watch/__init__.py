"""The optimizer of a training run is judged while it runs: elements of a step are copied before and after it, and the judge is asked.

``sampling`` chooses elements and copies them, ``subject`` says what an optimizer is held to, ``step`` asks the judge about one step. What else is asked has
a module for each kind: ``continuity`` (state and parameters between steps), ``registered`` (the model's parameters), ``scheduled``, ``scaled`` and ``cleared``
(gradients), ``replicas``. ``watch`` is what hangs in the optimizer's hooks, ``findings`` and ``report`` what comes out.
"""
