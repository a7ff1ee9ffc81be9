"""What becomes of a finding on disk: verdicts, the stream of a run as it happens, and saved divergences. Reading believes nothing that it has not checked."""
