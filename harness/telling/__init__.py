"""A divergence told to a person: in a few lines (``explain``), and as a script that imports torch and their class alone (``repro``)."""
