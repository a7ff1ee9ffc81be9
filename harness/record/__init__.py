"""What becomes of a finding on disk: verdicts, the stream of a run as it happens, and saved divergences. Reading believes nothing that it has not checked.

``verdict`` is a result, ``stream`` writes a run, ``reading`` and ``data`` read it back as ``run``, and ``store`` keeps divergences with their scripts.
"""
