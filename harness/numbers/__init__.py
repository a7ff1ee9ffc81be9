"""Numbers with a bound on their error: formats and their roundings, error-bounded arrays, and how far a result is from one, in budgets.

``formats`` says what a rounding costs, ``bounded`` carries a bound beside each value through whatever the reference computes, by the rules of ``operations`` and ``sums``;
``regrouping`` adds what another order of the same products may cost. ``decisions`` tries what rounding leaves open, ``observed`` takes for given what the subject was seen to
hold, and ``audit`` says which rounding a budget is made of. ``comparison`` says how far a subject's result is from the reference's.
"""

from stepcheck.harness.numbers import operations, sums  # noqa: F401 - they enter their rules
