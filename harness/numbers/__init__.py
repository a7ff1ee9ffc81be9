"""Numbers with a bound on their error: formats and their roundings, error-bounded arrays, and how far a result is from one, in budgets.

``formats`` says what a rounding costs, ``bounded`` carries a bound beside each value through whatever the reference computes, ``regrouping``
adds what another order of the same products may cost, and ``comparison`` says how far a subject's result is from the reference's.
"""
