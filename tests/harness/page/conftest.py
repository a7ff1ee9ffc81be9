"""Runs to report: two real campaigns, one of a wrong optimizer; and as many made-up ones as wanted."""

import gzip
import json
import platform
from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded import REPORTS, WRONG, result, run

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.known import evidence
from stepcheck.harness.known.evidence import Played
from stepcheck.harness.life.values import DTYPES
from stepcheck.harness.numbers.comparison import RATIO_CLASSES
from stepcheck.harness.page import model
from stepcheck.harness.page.figures import figures
from stepcheck.harness.play.families import resolve
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings


@pytest.fixture(scope="session")
def campaigned():
    """What two campaigns found: nothing new about torch's Adam, and a fault in one with eps under the root."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    subjects = [*resolve("torch:Adam[forloop]"), *resolve(WRONG, "Adam")]
    found = [Campaign(s, Settings(seed=0, examples=20)).run() for s in subjects]
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="session")
def documents():
    """What other commands measured, a run each, as ``--json`` has it: published files, and small ones of the same shape."""
    bench = {
        "workloads": [{"workload": w, "kind": k, "stepped": n} for w, k, n in (("tiny", "dense", 64), ("big", "dense", 1 << 20), ("rows", "sparse", 640))],
        "results": [
            {"optimizer": "SGD", "workload": w, "ratio": r, "wrong": False, "best": "fused", "share_of_ceiling": None,
             "round_ratios": {"median": r, "quartiles": [r * 0.9, r * 1.1]}}
            for w, r in (("tiny", 8.0), ("big", 1.1), ("rows", 5.0))
        ],
    }  # fmt: skip
    census = {
        "kernels": [
            {"optimizer": o, "dtype": "float32", "role": "dense", "arch": arch, "model": {"loaded": 16, "stored": 12},
             "sass_loaded_per_element": 16.0, "sass_stored_per_element": 12.0 + extra}
            for o, extra in (("Adam", 0.0), ("SGD", 4.0)) for arch in ("sm_80", "sm_90")
        ]
    }  # fmt: skip
    read = {
        name: json.loads(gzip.decompress((REPORTS / f"{name}.json.gz").read_bytes()))
        for name in ("certificate", "power")
    }
    return [
        run(name=f"2026112{n}-{name}", command=f"stepcheck {name}", documents={name: document})
        for n, (name, document) in enumerate({**read, "bench": bench, "census": census}.items())
    ]


@pytest.fixture(scope="session")
def whole(campaigned, documents):
    """A report with everything in it."""
    runs = [run(*campaigned), *documents]
    made = model.build(runs)
    made.figures = figures(made, runs)
    return made


@pytest.fixture(scope="session")
def large(campaigned):
    """A report with 100,000 checks of subjects behind it, each asked of 200 lives, and a thousand divergences."""
    rng = np.random.default_rng(0)
    shown = campaigned[1].divergences[0]
    subjects = -(-100_000 // len(CHECKS))
    results = []
    for n in range(subjects):
        name = f"package{n // 15:03}.module:Optimizer{n % 15}"
        of = {f"buffer{f}": {d: rng.integers(0, 99_999, RATIO_CLASSES).tolist() for d in DTYPES[:3]} for f in range(3)}
        one = result(name, f"Like{n % 15}", ratios=of, features={"sparse": int(rng.integers(200)), "closure": 3})
        for tally in one.tallies.values():
            tally.ran, tally.looked = (int(x) for x in rng.integers(1, 200, 2))
        if n % 5 == 0:
            told = replace(shown, subject=name, summary=f"{shown.summary} ({n})", script=f"{shown.script}\n# {n}\n")
            one.tallies["agreement"].divergences.append(told)
        results.append(one)
    return model.build([run(*results)])


def under(version, *, lacks=None, unsupported=None, **saw):
    """What was played under a version: of each entry, by its name with ``_``, the subjects that show it and those that do not."""
    shows = {name.replace("_", "-"): list(subjects) for name, (subjects, _) in saw.items()}
    quiet = {name.replace("_", "-"): list(subjects) for name, (_, subjects) in saw.items()}
    machine = {"torch": f"{version}+cpu", "platform": f"{platform.system()} {platform.machine()}"}
    return Played(version, machine, lacks or {}, unsupported or {}, shows, quiet)


@pytest.fixture
def played(monkeypatch):
    """What was seen of a few entries under five versions, of which one is installed, in place of what this release knows."""
    bare = {"lacks": {"Muon": "there is no torch.optim.Muon"}, "unsupported": {"Adam[capturable]": "it wants CUDA"}}
    adam, sgd, fused, muon = ["Adam[forloop]"], ["SGD[forloop]"], ["SGD[fused]"], ["Muon[forloop]"]
    made = (
        under("2.6.0", **bare, groups_are_not_validated=(adam + sgd, []), fused_sgd_never_stores_narrow_vectors=([], fused)),
        under("2.8.0", **bare, groups_are_not_validated=(adam + sgd, [])),
        under(
            evidence.installed(), groups_are_not_validated=(adam + sgd, []), muon_divides_by_no_elements=(muon, []),
            fused_sgd_never_stores_narrow_vectors=(fused, []), sgd_accepts_nan=(fused + sgd, []),
        ),
        under(
            "2.98.0", groups_are_not_validated=(sgd, adam), muon_divides_by_no_elements=(muon, []),
            fused_sgd_never_stores_narrow_vectors=([], fused), sgd_accepts_nan=(fused + sgd, []),
        ),
        under("2.99.0", groups_are_not_validated=(sgd, adam), sgd_accepts_nan=([], fused + sgd)),
    )  # fmt: skip
    monkeypatch.setattr(evidence, "versions", lambda: made)
    evidence.here.cache_clear()
    yield made
    evidence.here.cache_clear()
