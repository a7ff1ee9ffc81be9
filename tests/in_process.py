"""The command line in this process. A new one takes seconds to import torch, which few tests are about."""

import os
import sys
from subprocess import CompletedProcess

import pytest

from stepcheck import cli


def stepcheck(*words, cwd, capfd):
    """What a command does where it is run in a folder, as ``subprocess.run`` gives it."""
    capfd.readouterr()  # what was printed before is not the command's
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["stepcheck", *map(str, words)])
        patch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    for name, module in list(sys.modules.items()):  # in another folder, a module of the same name may be another one
        if str(getattr(module, "__file__", None) or "").startswith(f"{cwd}{os.sep}"):
            del sys.modules[name]
    return CompletedProcess(words, exit_.value.code, *capfd.readouterr())
