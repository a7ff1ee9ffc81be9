"""The command line in this process. A new one takes seconds to import torch, which few tests are about."""

import os
import sys
from subprocess import CompletedProcess

import pytest

from stepcheck import cli


def stepcheck(*words, cwd, capfd):
    """What a command does where it is run in a folder, as ``subprocess.run`` gives it."""
    capfd.readouterr()  # what was printed before is not the command's
    _forget(cwd)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["stepcheck", *map(str, words)])
        patch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    _forget(cwd)
    return CompletedProcess(words, exit_.value.code, *capfd.readouterr())


def _forget(cwd):
    """No module that stands in a folder of a test, this one or an earlier one: another may have one of that name."""
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", None) or "")
        if file.startswith(f"{cwd}{os.sep}") or f"{os.sep}pytest-of-" in file:
            del sys.modules[name]
