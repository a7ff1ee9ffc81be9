"""The accuracy certificate: how far the references are from the truth, and ``torch.optim`` from the references.

Run as ``python -m stepcheck.harness.certificate [--short] [--json FILE] [--markdown FILE] [--seed S] [--out DIR]``. Two parts.

*References.* The source of each reference runs on adversarial inputs as float64 (the value), as error-bounded numbers of
binary64 (the bound) and as 200-bit numbers (the truth). Per optimizer and field: the largest distance of value and truth in
units of the bound, which must not exceed 1, with its witness. Of value and truth one alone is rounded and the bound allows for
two, so a tight one is approached to 0.5 (and slightly beyond where the bound itself is a subnormal number). Where rounding leaves a decision open, the truth may lie within
the bound of either outcome.

*Torch.* Per mode of ``torch.optim`` and dtype, over a campaign's recordings: the largest known error in ulps of the dtype,
and the largest share of its budget, with their witnesses. Elements count that are determined, finite and conform. The exact
value is the reference in float64 for narrower dtypes, whose own error (below 2^-28 of a float32 budget) is not subtracted; of
float64 and complex128 the elements that are furthest off, and those of the widest budget, are evaluated in 200 bits.
Cancellation is not excluded: the difference of two nearly equal numbers is many ulps off in every implementation, and where the
truth is 0, any error is a large number of the smallest ulps. That is what the budget allows for, so the second figure is the one
that compares implementations, and the first says what may be relied on.

Schema of the JSON::

    {"stepcheck": VERSION, "environment": {NAME: VALUE}, "seed": INTEGER, "bits": 200, "short": FLAG,
     "references": [{"optimizer", "field", "compared", "undetermined", "undefined", "ratio",
                     "witness": {"options", "element", "value", "truth", "bound", "p", "g", "state"} or null}],
     "torch": [{"subject", "dtype", "traces", "elements", "undetermined", "deviating",
                "ulps": NUMBER or null, "ulps_witness": WITNESS or null,
                "ratio": NUMBER or null, "ratio_witness": WITNESS or null}],
     "declared": [{"name", "reason"}]}
    WITNESS = {"event", "parameter", "field", "index", "got", "expected", "bound", "ulps", "ratio", "options",
               "p", "g", "state"}, and instead of the last three "trace" where elements depend on each other

Counts are of elements; "undefined" are those whose truth is no real number (0 / 0). "deviating" elements are further off than
their budget: divergences of released software, which ``stepcheck check`` tells one by one; they are in no other figure. Numbers
that are compared are hex floats; "truth" is decimal. An infinite ratio is written as the largest float64.

:mod:`inputs` draws what one step is given, :mod:`references` compares the three number systems, :mod:`survey` measures torch, :mod:`whole`
puts both into one, and :mod:`tables` shows it.
"""
