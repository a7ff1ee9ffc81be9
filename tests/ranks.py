"""Cases that several processes play together: to start them takes longer than most, so that two play all cases of a file, one after another.

A file of such cases is a script as well, which is one of the two: ``python FILE RANK FOLDER``.
"""

import datetime as dt
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

RANKS = 2
#: Seconds after which ranks are no longer waited for.
PATIENCE = 240
#: How a line of a log ends that names a case.
PASSED = ", passed"


def assert_passed(script, cases, folder):
    """Two processes play all cases of a script."""
    command, logs = [sys.executable, str(script)], [folder / f"log{rank}" for rank in range(RANKS)]
    files = [log.open("w") for log in logs]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], stdout=file, stderr=subprocess.STDOUT)
        for rank, file in enumerate(files)
    ]
    end = time.monotonic() + PATIENCE
    try:
        # One that fails leaves the other waiting.
        while any(r.poll() is None for r in ranks) and not any(r.poll() for r in ranks) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        for process, file in zip(ranks, files, strict=True):
            process.kill()
            process.wait()
            file.close()
    for log in logs:
        text = log.read_text()
        sys.stdout.write(f"{log.name}:\n{text}")
        passed = [line.split(":")[0] for line in text.splitlines() if line.endswith(PASSED)]
        assert passed == list(cases), f"of {log.name}, the end is\n{text[-3000:]}"


def play(cases):
    """Be one of the ranks."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    try:
        _play(cases, rank, folder)
    except Exception:  # noqa: BLE001 - whatever it was, an exit that waits for the other rank would wait in vain
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _play(cases, rank, folder):
    import torch.distributed as dist

    patience = dt.timedelta(seconds=PATIENCE / 4)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=patience)
    for name, case in cases.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        begun = time.monotonic()
        case(own)
        dist.barrier()
        sys.stdout.write(f"{name}: {time.monotonic() - begun:.1f} s{PASSED}\n")
        sys.stdout.flush()
    dist.destroy_process_group()
