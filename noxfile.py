"""Sessions: ``nox`` runs what CI runs; ``nox -l`` lists the rest."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

SOURCES = (
    "reference",
    "fast",
    "harness",
    "stepcheck",
    "tests",
    "examples",
    "docs",
    ".ci",
    "noxfile.py",
    "cuda_session.py",
)


def _gpu() -> bool:
    """Whether there is a GPU of NVIDIA's, or at least its driver; torch need not be installed to tell."""
    places = (*Path("/dev").glob("nvidia[0-9]*"), Path("/proc/driver/nvidia/version"))
    return any(place.exists() for place in places) or shutil.which("nvidia-smi") is not None


# What only a GPU can tell is the rarest: where there is one, it comes first.
nox.options.sessions = [
    *(["cuda"] if _gpu() else []),
    "lint",
    "resolve",
    "together",
    "check_short",
]


def _install(session: nox.Session, *packages: str) -> None:
    session.install("-c", "constraints.txt", *packages)


@contextlib.contextmanager
def _packed(name: str) -> Iterator[str]:
    """A large file of ``reports/`` that is kept compressed: unpacked while a session reads and writes it."""
    file = Path("reports", name).resolve()
    packed = file.with_name(f"{name}.gz")
    if packed.exists():
        file.write_bytes(gzip.decompress(packed.read_bytes()))
    try:
        yield str(file)
    finally:
        if file.exists():
            packed.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
            file.unlink()


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests; arguments go to pytest."""
    _install(session, "-e", ".[test,plot]")
    _tests(session)


def _tests(session: nox.Session) -> None:
    # By modules, so that what the tests of one share is made once. Two workers have more threads than two cores: one that waits for
    # another must not keep that from its core, which takes a hundred times as long as to step.
    chosen = ("-n", "2", "--dist", "loadscope", "-m", "not slow and not browser")
    session.run("pytest", *chosen, *session.posargs, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session
def together(session: nox.Session) -> None:
    """types, tests and certificate_short in one environment: to install torch for each takes a minute."""
    _install(session, "mypy", "-e", ".[test,plot]")
    _types(session)
    _tests(session)
    _certificate_short(session)


@nox.session
def slow(session: nox.Session) -> None:
    """The long and statistical tests; arguments go to pytest."""
    _install(session, "-e", ".[test,bench]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    _install(session, "ruff")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the checkout: links in ``stepcheck/`` lead to the folders of the package."""
    _install(session, "mypy", ".[test]")
    _types(session)


def _types(session: nox.Session) -> None:
    session.run("mypy", "-p", "stepcheck")


@nox.session
def resolve(session: nox.Session) -> None:
    """What the README says to install, resolved from the registry for each Python and platform; nothing is installed."""
    session.install("--upgrade", "pip", "uv")
    session.run("python", ".ci/resolve.py")


@nox.session
def check_short(session: nox.Session) -> None:
    """The main job with fewer lives: those that have to be in it come first, and known issues are played whatever is drawn."""
    _install(session, "-e", ".[triton]")  # and nothing of what tests need, as users have it
    session.run("stepcheck", "check", "torch", "fast", "--examples", "60", *session.posargs)


@nox.session
def check(session: nox.Session) -> None:
    """The main job: on torch.optim, which has known issues, and on stepcheck.fast, which has none."""
    _install(session, "-e", ".[triton]")
    session.run("stepcheck", "check", "torch", "fast", "--seed", "0", *session.posargs)


@nox.session
def certificate_short(session: nox.Session) -> None:
    """The accuracy certificate, of references against 200 bits and torch in ulps, on few inputs."""
    _install(session, "-e", ".[test]")
    _certificate_short(session)


def _certificate_short(session: nox.Session) -> None:
    session.run("python", "-m", "stepcheck.harness.certificate", "--short", *session.posargs)


@nox.session
def certificate(session: nox.Session) -> None:
    """The same in full; writes ``reports/certificate.md`` and ``reports/certificate.json.gz``."""
    _install(session, "-e", ".[test]")
    with _packed("certificate.json") as file:
        written = ("--markdown", "reports/certificate.md", "--json", file)
        session.run("python", "-m", "stepcheck.harness.certificate", *written, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, into ``build/docs``; a warning is an error."""
    _install(session, "-e", ".[docs]")
    # mkdocs-material advertises its successor on every run.
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def hunt(session: nox.Session) -> None:
    """Ten times as many lives as usual, of every subject: for false alarms, and for what is rare."""
    _install(session, "-e", ".[triton]")
    session.run("stepcheck", "check", "torch", "fast", "--examples", "2000", "--seed", "1", *session.posargs)


@nox.session
def power(session: nox.Session) -> None:
    """Which wrong optimizers are caught, how soon, and false alarms, in full; writes ``reports/power.json.gz`` and ``reports/power.png``."""
    _install(session, "-e", ".[plot]")
    with _packed("power.json") as file:
        session.run("stepcheck", "power", "--json", file, "--plot", "reports/power.png", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The page of ``stepcheck report`` in the Chromium of this machine: it works, everyone can read it, it asks nothing of the network."""
    _install(session, "-e", ".[test,plot,browser]")
    session.run("pytest", "-m", "browser", *session.posargs)


@nox.session
def programs(session: nox.Session) -> None:
    """Real programs with a class of torch.optim and with the fast class in its place, into ``reports/programs.md``; arguments go to pytest.

    ``STEPCHECK_TEST_OPTIM=/path/to/pytorch/test/test_optim.py`` plays PyTorch's own tests on the fast classes as well.
    """
    _install(session, "-e", ".[test,programs]")
    session.run("pytest", "tests/programs", *session.posargs,
        env={"STEPCHECK_PROGRAMS": "required", "STEPCHECK_PROGRAMS_REPORT": "reports/programs.md"},
    )  # fmt: skip


@nox.session
def matrix(session: nox.Session) -> None:
    """Who agrees with whom: released libraries, each checked as it is declared, into ``reports/matrix.md`` and the rest; ``-- timm`` for one."""
    # torchvision, which timm imports, goes with one torch alone.
    session.install("torch==2.14.1", "torchvision==0.29.1")
    session.install("-e", ".[test]")
    files = {file.stem: file for file in sorted(Path("harness/matrix/libraries").glob("*.toml"))}
    for name in [word for word in session.posargs if word in files] or files:
        library = tomllib.loads(files[name].read_text(encoding="utf-8"))["library"]
        session.install("--no-deps", *library["requires"])
        if "needs" in library:
            session.install(*library["needs"])
    session.run("python", "-m", "stepcheck.harness.matrix", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """The report of this release, into ``reports/``: runs all that it shows, or takes what is recorded in the folder given after ``--``."""
    _install(session, "-e", ".[plot,test]")
    out = Path("reports").resolve()
    recorded = (
        Path(*session.posargs).resolve() if session.posargs else Path(session.create_tmp()).resolve() / ".stepcheck"
    )
    # Commands stand in the report as they were typed, so they are typed as a reader would, where their folder is.
    with _packed("report.json"), session.chdir(recorded.parent):
        if not session.posargs:
            shutil.rmtree(recorded, ignore_errors=True)
            _measure(session)
        session.run("stepcheck", "report", recorded.name, "--out", str(out))
    (out / "versions.json").unlink()  # that is harness/versions.json in other words
    _picture(session, out)


def _measure(session: nox.Session) -> None:
    """What a report shows. A divergence or a doubt is shown too: it does not end the session."""
    found = [0, 1, 3]
    session.run("stepcheck", "check", "torch", "fast", "--seed", "0", success_codes=found)
    session.run("python", "-m", "stepcheck.harness.certificate", "--short", success_codes=found)
    session.run("stepcheck", "census", success_codes=found)
    session.run("stepcheck", "bench", "--quick", success_codes=found)
    session.run("stepcheck", "power", "--quick", success_codes=found)


def _picture(session: nox.Session, folder: Path) -> None:
    """The first screen of the page, for the README, where there is a browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        session.warn("no Chromium here (apt-get install chromium): reports/report.png is as it was")
        return
    rights = ["--no-sandbox"] if os.geteuid() == 0 else []
    session.run(
        chromium, "--headless", *rights, "--hide-scrollbars", "--window-size=1280,860", "--virtual-time-budget=2000",
        f"--screenshot={folder / 'report.png'}", (folder / "index.html").as_uri(), external=True, silent=True,
    )  # fmt: skip


@nox.session
def bench(session: nox.Session) -> None:
    """torch.optim and stepcheck.fast, timed in turns; writes ``reports/bench.json`` and ``reports/bench.png``."""
    _install(session, "-e", ".[plot]")
    session.run("stepcheck", "bench", "--json", "reports/bench.json", "--plot", "reports/bench.png", *session.posargs)


@nox.session(venv_backend=None if _gpu() else "none")
def cuda(session: nox.Session) -> None:
    """All that needs a GPU, and ``reports/cuda/`` to send back; without one, nothing. ``-- --minutes 8`` for less of it."""
    if not _gpu():
        session.skip(
            "no NVIDIA GPU here (no /dev/nvidia0, no driver, no nvidia-smi): nothing was installed, nothing was run"
        )
    # Without the constraints: they name the Triton that goes with torch for the CPU, and torch for CUDA brings the one that it was built with.
    session.install("-e", ".[test,plot]")
    session.run("python", "cuda_session.py", "--minutes", "90", *session.posargs)


@nox.session(venv_backend="none")
def versions(session: nox.Session) -> None:
    """Known issues under versions of torch, into ``harness/versions.json``: ``-- 2.9.1 2.12.1``; ``--check`` plays the main job as well.

    An environment takes some 6 GB: they are made one at a time, and removed after use.
    """
    asked = [word for word in session.posargs if not word.startswith("-")]
    if not asked:
        session.error("name the versions of torch: nox -s versions -- 2.9.1 2.12.1")
    for version in asked:
        folder = Path(session.create_tmp()).resolve() / f"torch-{version}"
        python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
        try:
            session.run(sys.executable, "-m", "venv", str(folder))
            # As published: a build that lies on this machine may be another one.
            clean = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
            session.run(
                python, "-m", "pip", "install", "-q", "--no-cache-dir", f"torch=={version}", "-e", ".[test]", env=clean
            )
            session.run(python, "-m", "stepcheck.harness.versions")
            if "--check" in session.posargs:
                session.run(python, "-m", "stepcheck", "check", "torch", "fast", "--seed", "0")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
