"""PyTorch's own ``test/test_optim.py``, with the fast classes in the place of those of ``torch.optim``.

It comes with no wheel. From a checkout of the version that is installed: ``STEPCHECK_TEST_OPTIM=pytorch/test/test_optim.py``.
As a script, this file plays it: ``python test_pytorch_own.py FILE RESULTS``.
"""

import importlib.util
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

VARIABLE = "STEPCHECK_TEST_OPTIM"


@pytest.mark.slow
@pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"{VARIABLE} names no test_optim.py of PyTorch, which no wheel has"
)
def test_the_fast_classes_pass_the_tests_of_pytorch(tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, __file__, os.environ[VARIABLE], str(results)]
    played = subprocess.run(command, capture_output=True, text=True, check=False)
    assert results.is_file(), played.stderr[-3000:]
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["run"] > found["skipped"]
    assert found["failed"] == {}


# --- The script


def in_torch_s_place():
    """The fast classes stand where the tests look: in ``torch.optim`` and in the database of optimizers."""
    import torch
    from torch.testing._internal import common_optimizers

    from stepcheck import fast

    for info in common_optimizers.optim_db:
        info.optim_cls = getattr(fast, info.optim_cls.__name__, info.optim_cls)
    for name in sorted(set(fast.__all__) - {"Served"}):
        setattr(torch.optim, name, getattr(fast, name))


def main(file, results):
    in_torch_s_place()
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # One by one: its own load_tests() wants them to be in the file that is run.
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, unittest.TestCase)]
    tests = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, classes))
    ended = unittest.TextTestRunner(verbosity=2).run(tests)
    failed = {test.id(): text[-2000:] for test, text in [*ended.failures, *ended.errors]}
    found = {"run": ended.testsRun, "skipped": len(ended.skipped), "failed": failed}
    results.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
