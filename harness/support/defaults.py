"""What holds where nothing else is asked for. It imports nothing of the harness, so that ``--help`` can tell it at once."""

from __future__ import annotations

from pathlib import Path

#: Lives for each subject.
EXAMPLES = 200
#: The folder for the record of a run, and for traces and scripts of divergences.
FOLDER = Path(".stepcheck")
#: A life takes milliseconds; a subject that is still busy with one after so many seconds hangs.
PATIENCE = 20.0
