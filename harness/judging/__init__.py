"""Each recorded step is predicted by the reference on error-bounded numbers, and each element is judged by its own budget.

``judge`` does so step by step: ``item`` is one parameter in one step, ``fields`` what of it is compared, ``prediction`` what the reference says, ``judgement`` what comes out.
``evaluations`` (LBFGS) and ``orthogonal`` (Muon) judge in their own way what has one. ``counts`` gives parameters the count of their group. ``dialects`` judges again by other intended definitions, and ``formula`` asks what a
buffer that deviates has in it instead.
"""
