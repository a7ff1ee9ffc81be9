"""Each recorded step is predicted by the reference on error-bounded numbers, and each element is judged by its own budget.

``judge`` does so step by step; ``evaluations`` (LBFGS) and ``orthogonal`` (Muon) judge in their own way what has one. ``dialects`` judges again by other
intended definitions, and ``formula`` asks what a buffer that deviates has in it instead.
"""
