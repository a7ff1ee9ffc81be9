"""The harness: traces in, verdicts out.

The pipeline stands in rooms, and each imports only those before it: ``support`` < ``numbers`` < ``life`` < ``play`` < ``judging`` < ``checking`` < ``record`` <
``known`` < ``telling`` < ``search`` < ``readers``. A generator draws a trace, a player plays it on a subject and records what happened, the judge predicts each
step with the reference on error-bounded numbers, checks ask one named question each, the ledger says what is known, and the stream keeps it for readers.

Apart from it stands what measures: ``zoo`` (optimizers that are known to be wrong, or right), ``power``, ``certificate``, ``census``, ``bench``, ``page``,
``versions`` and ``cuda_session``. The pipeline imports none of them.
"""
