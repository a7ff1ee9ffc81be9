"""The command line. Exit status: 0 conforms, 1 a divergence that is not known, 2 bad usage or input, 3 unknown.

Whoever asks for help waits for nothing: torch, NumPy and Hypothesis are imported by the commands that need them, and rich by
those that have something to show.
"""

from __future__ import annotations

import ast
import functools
import gc
import io
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stepcheck import __version__
from stepcheck.harness.support import defaults
from stepcheck.harness.support.text import in_one_line, shown
from stepcheck.output import Output, Unwritten, take_over

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from stepcheck.config import Config
    from stepcheck.harness.bench import rounds as benchmark
    from stepcheck.harness.play.declared import Declaration
    from stepcheck.harness.play.subjects import Subject
    from stepcheck.harness.record.store import Saved
    from stepcheck.harness.record.stream import Stream
    from stepcheck.harness.record.verdict import Divergence, Result
    from stepcheck.harness.search import workers
    from stepcheck.harness.search.settings import Settings
    from stepcheck.harness.search.suggest import Suggestion

CONFORMS, DIVERGES, BAD_USAGE, UNKNOWN = 0, 1, 2, 3

_COMPILED_HELP = (
    "Also torch.compile(optimizer.step); compiling is not timed, but takes seconds to minutes for each row."
)


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # which was not generic before click 8.2


class _Assignment(_ParamType):
    """An option and its value, as one would write them in Python."""

    name = "OPTION=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        option, _, text = value.partition("=")
        if text in ("true", "false"):  # as in pyproject.toml
            return option, text == "true"
        try:
            return option, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            told = "is not of the form OPTION=VALUE, such as momentum=0.9 or, with a text in quotes, \"mode='grad'\""
            self.fail(f"{value!r} {told}", param, ctx)


class _Renaming(_ParamType):
    """A name of the reference's, and that of the class; several for a pair."""

    name = "OURS=THEIRS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        ours, _, theirs = value.partition("=")
        if not ours or not theirs:
            self.fail(f"{value!r} is not of the form OURS=THEIRS, such as eps=epsilon or betas=beta1,beta2", param, ctx)
        return ours, theirs


class _Names(_ParamType):
    """One of some names, which are looked up when one is given: to tell of the option, nothing is imported.

    Args:
        metavar: what stands for one in the help.
        among: gives them.
    """

    name = "name"

    def __init__(self, metavar: str, among: Callable[[], Iterable[str]]) -> None:
        self.metavar = metavar
        self.among = among

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002 - click's own signature
        return self.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.Choice(list(self.among())).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return click.Choice(list(self.among())).shell_complete(ctx, param, incomplete)


class _Seconds(click.FloatRange):
    """A time that passes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):  # NaN is in every range
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


class _LateHelp(click.Option):
    """An option whose help names what has to be imported for it."""

    def __init__(self, *args: Any, late: Callable[[], str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.late = late

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = self.late()
        return super().get_help_record(ctx)


def _specs() -> Iterable[str]:
    from stepcheck.reference import SPECS

    return SPECS


def _references() -> Iterable[str]:
    from stepcheck.harness.play.references import known

    return known()


def _checks() -> Iterable[str]:
    from stepcheck.harness.checking.checks import CHECKS

    return CHECKS


def _dtypes() -> Iterable[str]:
    from stepcheck.harness.life.values import DTYPES

    return DTYPES


def _workloads() -> Iterable[str]:
    from stepcheck.harness.bench import workloads

    return workloads.WORKLOADS


def _architectures() -> Iterable[str]:
    from stepcheck.harness.census.occupancy import LIMITS

    return [f"sm_{c}" for c in LIMITS]


def _rounds_help() -> str:
    from stepcheck.harness.bench import rounds

    return (
        f"Batches of each contender (default {rounds.ROUNDS}; fewer where they take more than {rounds.PATIENCE:.0f} s, unless"
        " asked for)."
    )


def _quick_help() -> str:
    from stepcheck.harness.bench import rounds

    return f"Small workloads alone, {rounds.QUICK_ROUNDS} rounds."


_NAME = _Names("NAME", _specs)
_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=defaults.FOLDER,
    show_default=True,
    help="Folder for the record of the run.",
)


def _console_for(stream: Any, **settings: Any) -> Console:
    """A console. What a subject is called, or says, is shown as it stands: ``:factory:`` is no picture of one."""
    from rich.console import Console  # a campaign's workers play while this is imported

    if stream is None or not stream.isatty():
        # Without a terminal nobody folds lines: scripts and logs want them whole.
        settings |= {"width": 160, "soft_wrap": True}
    return Console(highlight=False, emoji=False, **settings)


@functools.cache
def _console() -> Console:
    """The console of standard output: of that which the command began with, and not what may stand in its place while a subject plays."""
    return _console_for(_began_with, file=_began_with)


#: Standard output, while a command runs.
_began_with: Any = None


def main() -> NoReturn:
    """Run the command line and exit; bad usage is one line on standard error."""
    sys.path.insert(0, "")  # somebody's module is looked for where they stand
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of another encoding shows what it can
            stream.reconfigure(errors="replace")
    before = sys.stdout, sys.stderr
    theirs = set(threading.enumerate())
    out = take_over()
    _stand_on(sys.stdout)
    _hear_requests()
    try:
        status = _run(out)
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
        _stand_on(None)  # whatever is standard output from now on
    _leave(status, theirs)


def _stand_on(stream: Any) -> None:
    global _began_with  # noqa: PLW0603 - the command's, of which a process has one at a time
    _began_with = stream
    _console.cache_clear()


def _run(out: Output) -> int:
    try:
        status = commands(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = CONFORMS
    except click.ClickException as error:
        return _refuse(error.format_message())
    except click.Abort:
        status = UNKNOWN
    except _bad_usage() as error:
        return _refuse(str(error))
    out.flush()
    if out.problem:
        return _refuse(f"standard output: cannot be written ({out.problem}); all else is written")
    return status or CONFORMS


def _bad_usage() -> tuple[type[Exception], ...]:
    """What is told in one line; looked up when something was raised."""
    from stepcheck.harness.life.reading import TraceError
    from stepcheck.harness.support.usage import UsageError

    return UsageError, TraceError


def _refuse(message: str) -> int:
    click.echo(f"stepcheck: {in_one_line(message)}", err=True)
    return BAD_USAGE


def _hear_requests() -> None:
    """A request to end is heard as Ctrl-C is: workers are ended, and what was found is kept. One that is ignored (``nohup``) stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _leave(status: int, theirs: set[threading.Thread]) -> NoReturn:
    """Exit, though somebody's module has started a thread that runs on, for which the interpreter would wait for ever.

    Args:
        status: of the exit.
        theirs: threads of whoever called the command in a process of their own, which goes on: it is not ended for these.
    """
    started = any(not t.daemon for t in threading.enumerate() if t not in theirs)
    if started and threading.current_thread() is threading.main_thread():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stepcheck")
def commands() -> None:
    """Is this optimizer step right?"""


@commands.command("list")
def list_() -> int:
    """Optimizers, subjects and checks known here."""
    from stepcheck.harness.checking.checks import CHECKS
    from stepcheck.harness.play.families import FAST, SOMEBODYS, TORCH
    from stepcheck.reference import SPECS

    _console().print("[bold]optimizers[/] (references), and the modes and dtypes of torch.optim that are held to them")
    for name, spec in SPECS.items():
        family = TORCH if name in TORCH.modes else FAST
        modes = family.modes.get(name, ())[: None if family is TORCH else 1]
        subjects = [family.subject(name, mode) for mode in modes]
        supported = [s for s in subjects if not s.unsupported]
        shown = [mode if s in supported else f"[dim]({mode})[/]" for s, mode in zip(subjects, modes, strict=True)]
        lacking = "" if family is TORCH else "[dim]none in torch.optim[/]"
        _console().print(f"  {name:<11}{lacking or ' '.join(shown)}")
        dtypes = dict.fromkeys(d for s in supported for d in s.dtypes)
        told = [d + _except(d, supported, modes) for d in dtypes] or ["a class of yours, with --like"]
        sparse = {"": "", "only": "; sparse gradients alone"}.get(spec.sparse, "; sparse gradients")
        _console().print(f"  {'':<11}[dim]{', '.join(told)}{sparse}[/]")
    _console().print("  A mode in parentheses is unsupported here: stepcheck check says why.", markup=False)
    without = ", ".join(name for name in SPECS if name not in FAST.modes)
    has = f"all of them but {without}" if without else "all of them"
    for line in (
        f"  stepcheck.fast has {has}, in the same dtypes: fast:NAME. With compensated=True the elementwise ones are",
        "  fast:NAME[compensated]. Kernels for CUDA are checked as fast:NAME[triton], run by Triton's interpreter, and as",
        "  fast:NAME[cuda] on a GPU.",
    ):
        _console().print(line, markup=False)
    _console().print(
        f"  Subjects: torch, torch:Adam, torch:Adam[foreach], fast, fast:Adam; with --like NAME {SOMEBODYS}",
        markup=False,
    )
    _console().print("[bold]checks[/]")
    for check in CHECKS.values():
        _console().print(f"  {check.name:<20}{check.question}")
    return CONFORMS


def _except(dtype: str, subjects: Sequence[Subject], modes: Sequence[str]) -> str:
    """The modes that do not take a dtype, in words."""
    without = [mode for mode in modes for s in subjects if s.name.endswith(f"[{mode}]") and dtype not in s.dtypes]
    return f" (not {', '.join(without)})" if without else ""


class _Check(click.Command):
    """Results of an earlier run are not those of one that could not begin, whatever was wrong with its options."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        given = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError:
            lenient = click.Context(self, resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True)
            with suppress(click.UsageError):
                options, _, _ = self.make_parser(lenient).parse_args(given)
                _forget(
                    Path(options[name]) for name in ("json_file", "junit_file", "markdown_file") if options.get(name)
                )
            raise


def _forget(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            if file.is_file():
                file.unlink()


@commands.command(cls=_Check)
@click.argument("subjects", nargs=-1)
@click.option("--like", type=_Names("NAME", _references), help="The reference that a class is held to.")
@click.option("--spec", metavar="MODULE:NAME", help="A reference of one's own that a class is held to.")
@click.option("--dialect", "dialects", metavar="NAME", multiple=True,
              help="A convention in which it is meant to differ from that reference.")  # fmt: skip
@click.option("--rename", "names", type=_Renaming(), multiple=True,
              help="What the class calls an option or a buffer of its reference: betas=beta1,beta2.")  # fmt: skip
@click.option(
    "--ignore", "ignored", metavar="BUFFER", multiple=True, help="A buffer of the class that is not looked at."
)
@click.option("--set", "held", type=_Assignment(), multiple=True, help="An option of the class, held at a value.")
@click.option("--examples", type=click.IntRange(1), help=f"Traces for each subject (default {defaults.EXAMPLES}).")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same traces."
)
@click.option("--seconds", type=_Seconds(0, min_open=True), help="Time for the whole run, instead of --examples.")
@click.option("--first", is_flag=True, help="Of each subject, tell the first divergence at once, and look for no more.")
@click.option("--patience", type=_Seconds(0, min_open=True),
              help=f"A life that takes longer hangs (default {defaults.PATIENCE:.0f} s; the first may take five times as long).")  # fmt: skip
@click.option("--dtype", "dtypes", type=_Names("DTYPE", _dtypes), multiple=True, help="Parameters of this dtype alone.")
@click.option("--sparse", is_flag=True, help="Give somebody's class sparse gradients as well.")
@click.option("--tensor-lr", is_flag=True, help="Give somebody's class learning rates that are tensors as well.")
@click.option("--only", type=_Names("CHECK", _checks), multiple=True, help="Ask this check alone.")
@click.option("--jobs", type=click.IntRange(1), help="Subjects at a time (default: as many as there are cores).")
@click.option("--expect", metavar='"CHECK: REASON"', multiple=True,
              help="Somebody's class is expected to fail this check: that is known, and no failure; it is one if it passes.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option("--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Write them as JUnit XML.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path),
    help="Write them as Markdown. Where GITHUB_STEP_SUMMARY names a file, it goes to the end of that as well.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=defaults.FOLDER, show_default=True,
    help="Folder for the record of the run, and for traces and scripts of divergences.",
)  # fmt: skip
def check(
    subjects: tuple[str, ...],
    like: str | None,
    spec: str | None,
    dialects: tuple[str, ...],
    names: tuple[tuple[str, str], ...],
    ignored: tuple[str, ...],
    held: tuple[tuple[str, Any], ...],
    examples: int | None,
    seed: int,
    seconds: float | None,
    first: bool,
    patience: float | None,
    dtypes: tuple[str, ...],
    sparse: bool,
    tensor_lr: bool,
    only: tuple[str, ...],
    jobs: int | None,
    expect: tuple[str, ...],
    json_file: Path | None,
    junit_file: Path | None,
    markdown_file: Path | None,
    out: Path,
) -> int:
    """Play fuzzed lives of SUBJECTS and judge every step against the reference.

    SUBJECT is torch, torch:Adam, torch:Adam[foreach], fast, fast:Adam, fast:Adam[cuda], package.module:ClassOrFactory, process:COMMAND, a
    program that speaks JSON lines, functions:package.module:NAME, which makes pure functions, or keras:package.module:NAME (mlx:, paddle:), which
    has parameters of its own: with --like or --spec all but the first six are held to a reference, and without one they are asked for the
    invariants alone; package:* is all of a library. Without any: those that [tool.stepcheck] of pyproject.toml declares, else torch and fast.
    """
    with _no_garbage():
        from stepcheck import config
        from stepcheck.harness.search import workers  # and all of torch
        from stepcheck.harness.search.settings import Settings

    click.get_current_context().call_on_close(gc.unfreeze)  # or Triton's modules are taken for a leak at exit
    if first:
        from stepcheck.harness.support import dynamo

        dynamo.late()
    with _fresh({"--json": json_file, "--junit": junit_file, "--markdown": markdown_file}):
        project = config.read()
        said = {
            "like": _reference(like, spec),
            "dialects": dialects,
            "names": dict(names),
            "ignored": ignored,
            "held": dict(held),
        }
        chosen = _chosen(project, subjects, {k: v for k, v in said.items() if v}, dtypes)
        if sparse or tensor_lr:
            chosen = _asked_for(chosen, sparse=sparse, tensor_lr=tensor_lr)
        if expect:
            chosen = _expecting(chosen, expect)
        each = None
        if seconds is not None:
            each = max(seconds * min(len(chosen), workers.slots(jobs)) / len(chosen), 0.1)
        elif examples is None:
            examples = project.examples or defaults.EXAMPLES
        summary_file = Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None
        _writable(summary_file, "GITHUB_STEP_SUMMARY", mode="a")
        files = (json_file, junit_file, markdown_file, summary_file)
        settings = Settings(seed, examples, each, dtypes, only, at_once=first, patience=patience, jobs=jobs)
        return _checked(list(chosen.values()), settings, out, *files)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Modules that are imported here are none: to look through them again and again takes a tenth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _chosen(
    project: Config, subjects: Sequence[str], said: Mapping[str, Any], dtypes: Sequence[str]
) -> dict[str, Subject]:
    """The subjects that are meant, by name: as the project declares them, but for what the command says of them."""
    from stepcheck import config
    from stepcheck.harness.play.families import FAMILIES
    from stepcheck.harness.support.processes import silenced
    from stepcheck.harness.support.usage import UsageError

    with silenced():
        config.look_there(project)
        chosen = {
            s.name: s for text in subjects or project.subjects or FAMILIES for s in config.subjects(project, text, said)
        }
    if beside := [name for name in said if name != "like"]:
        _somebodys(chosen, f"{_OPTION_OF[beside[0]]} is")
    if dtypes and not any(set(dtypes) & set(s.dtypes) for s in chosen.values()):
        raise UsageError(f"--dtype {dtypes[0]}: {_named(chosen)} not take it; stepcheck list says what each takes")
    return chosen


#: The option of the command that says a thing.
_OPTION_OF = {"like": "--like", "dialects": "--dialect", "names": "--rename", "ignored": "--ignore", "held": "--set"}


def _reference(like: str | None, spec: str | None) -> str:
    """The name of the reference, or where one stands."""
    from stepcheck.harness.support.usage import UsageError

    if like and spec:
        raise UsageError(f"--like {like} and --spec {spec} are two references; name one")
    if spec and ":" not in spec:
        raise UsageError(f"--spec {spec}: it is MODULE:NAME; what stepcheck has is --like")
    return like or spec or ""


def _somebodys(chosen: Mapping[str, Subject], what: str) -> None:
    """Refuse what is said of somebody's class where there is none."""
    from stepcheck.harness.support.usage import UsageError

    if not any(s.explicit for s in chosen.values()):
        raise UsageError(
            f"{what} for somebody's class alone: name one, as package.module:Class; torch and fast are held to their own reference, and are"
            " given all that they take"
        )


def _asked_for(chosen: Mapping[str, Subject], **asked: bool) -> dict[str, Subject]:
    """Somebody's classes with what they are not given unasked."""
    from stepcheck.harness.play.subjects import asked_for

    _somebodys(chosen, "--sparse and --tensor-lr are")
    return {name: asked_for(s, **asked) if s.explicit else s for name, s in chosen.items()}


def _expecting(chosen: Mapping[str, Subject], texts: Sequence[str]) -> dict[str, Subject]:
    """Somebody's classes with the checks that they are expected to fail."""
    from stepcheck.harness.search.expected import expecting, spoken

    _somebodys(chosen, "--expect is")
    expected = spoken(texts)
    return {name: expecting(s, expected) if s.explicit else s for name, s in chosen.items()}


def _checked(
    who: list[Subject],
    settings: Settings,
    out: Path,
    json_file: Path | None,
    junit_file: Path | None,
    markdown_file: Path | None,
    summary_file: Path | None,
) -> int:
    """Run the campaigns, and tell in every form that is asked for what they found."""
    from stepcheck.harness.record.stream import UnwritableError
    from stepcheck.harness.search import workers

    unwritten = Unwritten()
    about: dict[str, Any] = {"examples": settings.examples, "seconds": settings.seconds, "dtypes": settings.dtypes}
    about |= {"checks": settings.checks, "subjects": [(s.name, s.spec.name) for s in who]}
    replayed: list[workers.Replayed] = []
    stream = _recorded(out, settings.seed, about)
    try:
        with stream:
            replayed = workers.replay(who, settings, stream)
            with _shown(who, out, unwritten) as listener:
                results = workers.run(who, settings, listener, stream)
            stream.status = _status(results, replayed)
    except UnwritableError as error:  # a full disk: what was recorded by then is told all the same
        unwritten.told[str(error)] = None

    from stepcheck.harness.readers.markdown import markdown
    from stepcheck.harness.readers.scripts import to_json
    from stepcheck.harness.readers.terminal import show
    from stepcheck.harness.record.reading import read

    run = read(stream.path)
    show(run, out, _console())
    unwritten.write(json_file, "--json", json.dumps(to_json(run, out), indent=1) + "\n")
    if junit_file is not None:
        from stepcheck.harness.readers.junit import junit  # it takes XML with it

        unwritten.write(junit_file, "--junit", junit(run, out))
    unwritten.write(markdown_file, "--markdown", markdown(run, out))
    if summary_file is not None:
        with unwritten.noting(f"GITHUB_STEP_SUMMARY {summary_file}"), summary_file.open("ab") as summary:
            summary.write(markdown(run, out).encode("utf-8", "backslashreplace"))
    _all_written(unwritten)
    # What is shown was read back: were it less than what the workers sent, it would be no success.
    return max(stream.status, _status(run.results, replayed), key=(CONFORMS, UNKNOWN, DIVERGES).index)


def _recorded(
    folder: Path, seed: int | None, settings: dict[str, Any], environment: dict[str, Any] | None = None
) -> Stream:
    """The record of this command."""
    from stepcheck.harness.readers import report
    from stepcheck.harness.record.stream import Stream

    command = shlex.join(["stepcheck", *sys.argv[1:]])
    return Stream.create(folder, command, __version__, environment or report.environment(), seed, settings)


def _whole_torch() -> None:
    """Refuse what needs a class that this torch lacks: the zoo and the kernels of all optimizers are imported together."""
    from stepcheck.harness.play.families import TORCH
    from stepcheck.harness.support.usage import UsageError

    for why in filter(None, map(TORCH.lacks, TORCH.modes)):
        raise UsageError(f"{why}; install a later torch")


def _named(subjects: dict[str, Subject]) -> str:
    names = list(subjects)
    return f"{names[0]} does" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more do"


@contextmanager
def _fresh(files: dict[str, Path | None]) -> Iterator[None]:
    """Empty the files that results will be written to: those of an earlier run are not this one's, whatever becomes of it.

    It is found out before the run, not after it, whether they can be written. What has no results in the end is taken away.
    """
    for option, file in files.items():
        _writable(file, option)
    try:
        yield
    except BaseException:
        _forget(file for file in files.values() if file is not None and file.is_file() and not file.stat().st_size)
        raise


def _writable(file: Path | None, option: str = "--json", mode: str = "w") -> None:
    """Find out before the run, not after it; and leave nothing of an earlier one."""
    if file is not None:
        try:
            with file.open(mode):
                pass
        except OSError as error:
            from stepcheck.harness.support.usage import UsageError

            raise UsageError(f"{option} {file}: cannot be written ({error.strerror}); choose another file") from None


def _write_json(file: Path | None, data: Any) -> None:
    unwritten = Unwritten()
    unwritten.write(file, "--json", json.dumps(data, indent=1) + "\n")
    _all_written(unwritten)


def _all_written(unwritten: Unwritten) -> None:
    if unwritten.told:
        from stepcheck.harness.support.usage import UsageError

        raise UsageError(f"{'; '.join(unwritten.told)}; all else is written")


def _status(results: Sequence[Result], replayed: Sequence[workers.Replayed]) -> int:
    """The exit status: of what nobody could check, nobody knows whether it conforms."""
    verdicts = {r.verdict for r in results}
    failed = "fail" in verdicts or any(r.failed for r in replayed)
    unknown = "unknown" in verdicts or verdicts == {"unsupported"}
    return DIVERGES if failed else UNKNOWN if unknown else CONFORMS


@contextmanager
def _shown(subjects: list[Subject], folder: Path, unwritten: Unwritten) -> Iterator[workers.Listener]:
    """Progress bars on a terminal, a plain line for each finished subject without one; divergences saved as they come."""
    from stepcheck.harness.record import store
    from stepcheck.harness.search import workers

    def found(divergence: Divergence) -> None:
        with unwritten.noting(f"--out {folder}"):
            store.save(folder, divergence)

    width = max(len(s.name) for s in subjects)
    if not sys.stdout.isatty():

        def finished(result: Result) -> None:
            _console().print(
                shown(f"{result.subject:<{width}}  {result.verdict:<8} {result.traces:>6} traces"), markup=False
            )

        yield workers.Listener(found=found, finished=finished)
        return
    with _bars(_console()) as progress:
        overall = progress.add_task("all subjects", total=len(subjects))
        tasks: dict[str, TaskID] = {}

        def advance(subject: Subject, done: int, planned: int) -> None:
            if subject.name not in tasks:
                tasks[subject.name] = progress.add_task(shown(subject.name), total=planned or None)
            progress.update(tasks[subject.name], completed=done)

        def end(result: Result) -> None:
            if result.subject in tasks:
                progress.remove_task(tasks[result.subject])
            progress.advance(overall)

        yield workers.Listener(advance, found, end)


@commands.command("suggest")
@click.argument("subject", metavar="module:Class")
def suggest_(subject: str) -> int:
    """What to declare of a class: a reference that it agrees with, in which dialect, and what it calls things.

    Printed is a table for pyproject.toml, and the same as a command. Exit status is 3 where it agrees with no reference.
    """
    from rich.console import Console

    from stepcheck import config
    from stepcheck.harness.play.families import FAMILIES, SOMEBODYS, made
    from stepcheck.harness.search import suggest
    from stepcheck.harness.search.workers import warm_up
    from stepcheck.harness.support.processes import quiet, silenced
    from stepcheck.harness.support.usage import UsageError

    module, _, attribute = subject.partition(":")
    if not attribute or module in FAMILIES:
        raise UsageError(f"{subject!r} is no class of somebody's; name one, as {SOMEBODYS}")
    console = Console(stderr=True, emoji=False)
    with silenced():
        config.look_there(config.read())
        make = made(subject)
    warm_up()
    with console.status("", spinner="dots") as status, quiet():
        found = suggest.suggest(make, subject, lambda told: status.update(shown(told)))
    for line in (*suggest.lines(found), *suggest.table(found), "", f"# or: {_check_command(found)}"):
        click.echo(shown(line))
    return CONFORMS if found.found else UNKNOWN


def _check_command(found: Suggestion) -> str:
    from stepcheck.harness.search import suggest

    return shlex.join(["stepcheck", "check", found.name, *suggest.options(found.declaration)])


@commands.command()
@click.argument("name", metavar="FILE-or-ID")
@click.option("--subject", help="Play it on this subject instead of the one that failed.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=defaults.FOLDER, show_default=True,
              help="Folder in which IDs are looked up.")  # fmt: skip
def replay(name: str, subject: str | None, out: Path) -> int:
    """Play a saved trace again, or that of a known issue: FIXED, FAILS or ERROR.

    A known issue is named as known, and is exit status 0.
    """
    from stepcheck.harness.play.subjects import UnbuiltError
    from stepcheck.harness.record import store
    from stepcheck.harness.search import replay as again

    path = store.find(name, out)
    saved = store.load(path)
    try:
        who = _player(path, saved, subject, out)
    except UnbuiltError as error:  # its life cannot be lived: that is no use of the command that could be mended
        about = saved.check or "all checks"
        _console().print(
            shown(f"ERROR {subject or saved.subject} {about}: unknown: the constructor: {error}"), markup=False
        )
        return UNKNOWN
    outcome = again.replay(who, saved)
    for line in outcome.lines:
        _console().print(shown(f"{outcome.word} {who.name} {line}"), markup=False)
    if outcome.word == again.ERROR:
        return UNKNOWN
    return CONFORMS if outcome.word == again.FIXED or outcome.known else DIVERGES


def _declared(path: Path, saved: Saved, *, known: bool) -> Declaration:
    """What was declared of the class that a saved life is about.

    Args:
        known: stepcheck saved the file itself: a reference that is not its own is imported.
    """
    from stepcheck.harness.play.declared import Declaration, DeclarationError
    from stepcheck.harness.support.usage import UsageError

    like = saved.like or saved.trace.optimizer
    if ":" in like and not known:
        raise UsageError(
            f"{path} names the reference {like}, and was not saved by stepcheck here, or was changed since: check the class anew"
        )
    try:
        return Declaration.from_json(like, saved.declared)
    except DeclarationError as error:
        raise UsageError(f"{path}: {error}; make a new one with `stepcheck check`") from None


def _player(path: Path, saved: Saved, subject: str | None, out: Path) -> Subject:
    """Who plays a saved life."""
    from stepcheck import config
    from stepcheck.harness.checking.checks import CHECKS
    from stepcheck.harness.play.families import FAMILIES, resolve
    from stepcheck.harness.record import store
    from stepcheck.harness.support.processes import silenced
    from stepcheck.harness.support.usage import UsageError

    who = subject or saved.subject
    if not who:
        raise UsageError(f"{path} is a bare trace; name who plays it, with --subject")
    own = who.partition(":")[0] in FAMILIES or path.resolve().parent == store.KNOWN_FOLDER.resolve()
    if not (subject or own or store.recorded_here(path, out)):
        raise UsageError(
            f"{path} names {who}, and was not saved by stepcheck in {out}, or was changed since; to replay it is to import and call what it"
            f" names, so say that you know it, with --subject {shlex.quote(who)}"
        )
    declared = _declared(path, saved, known=bool(own) or store.recorded_here(path, out))
    with silenced():
        config.look_there(config.read())
        found = resolve(who, declared)
    if len(found) != 1:
        raise UsageError(f"{who} is {len(found)} subjects; name one, such as {found[0].name}")
    if found[0].unsupported:
        raise UsageError(f"{path}: {found[0].name} cannot play it here: {found[0].unsupported}")
    problem = saved.trace.problem(found[0].spec) or found[0].problem(saved.trace)
    if problem:
        raise UsageError(f"{path}: {found[0].name} cannot play it: {problem}")
    if saved.check and saved.check not in CHECKS:
        raise UsageError(f"{path}: no check named {saved.check!r}; there is {', '.join(CHECKS)}")
    return found[0]


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=_NAME)
@click.option(
    "--seeds", type=click.IntRange(1), default=20, show_default=True, help="Campaigns for each wrong optimizer."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@click.option("--mutants", type=click.IntRange(0), default=25, show_default=True,
              help="Of each optimizer, at most as many of the wrong ones that are made from its Spec.")  # fmt: skip
@click.option("--steps", type=click.IntRange(0), default=1_000_000, show_default=True,
              help="Steps of right optimizers to judge, for false alarms.")  # fmt: skip
@click.option("--quick", is_flag=True, help="3 seeds, 4 mutants of each optimizer, one campaign of each right one.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw the share caught over CPU time here; needs matplotlib.")  # fmt: skip
@click.option("--resume", "earlier", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="STREAM",
              help="Go on with a measurement that was interrupted, from what it recorded in OUT/runs.")  # fmt: skip
@_OUT
def power(
    names: tuple[str, ...],
    seeds: int,
    seed: int,
    mutants: int,
    steps: int,
    quick: bool,
    json_file: Path | None,
    plot_file: Path | None,
    earlier: Path | None,
    out: Path,
) -> int:
    """Which of the known wrong optimizers a campaign catches, how soon, and whether right ones pass.

    Exit status 0: each is caught with a probability of at least 0.99, and there is no false alarm; else 1.
    """
    from stepcheck.harness.bench import tables

    _whole_torch()
    from stepcheck.harness.power import tables as found  # these import the whole zoo
    from stepcheck.harness.power.measure import Plan, measure

    _writable(json_file)
    tables.check_plot(plot_file)
    plan = Plan(names, seed, 3, mutants=4, steps=0) if quick else Plan(names, seed, seeds, mutants=mutants, steps=steps)
    known, before = ([], 0.0) if earlier is None else _measured(earlier, asdict(plan))
    with _recorded(out, seed, asdict(plan)) as stream:
        with _bars(_console(), disable=not _console().is_terminal) as progress:
            task = progress.add_task("campaigns and questions", total=None)
            measured = measure(
                plan,
                lambda done, planned: progress.update(task, completed=done, total=planned),
                lambda row: stream.row("power", row),
                known,
            )
        measured.seconds += before
        doubtful = found.doubtful(measured)
        data = found.to_json(measured, __version__)
        stream.document("power", data)
        stream.status = DIVERGES if doubtful or measured.alarms else CONFORMS
    for table in (found.by_kind, found.by_optimizer, found.kill_matrix, found.slowest):
        _console().print(table(measured))
        _console().print()
    for line in (*doubtful, *found.false_alarms(measured)):
        _console().print(line, markup=False)
    _console().print(found.LEGEND.format(examples=plan.examples, seeds=plan.seeds), markup=False)
    _console().print(f"{measured.seconds:.0f} s in all, seeds from {seed}.", markup=False)
    _write_json(json_file, data)
    if plot_file is not None:
        found.plot(measured, plot_file)
    return stream.status


def _measured(earlier: Path, plan: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """What an earlier run of the same plan recorded, and how long it took."""
    from stepcheck.harness.record.reading import read
    from stepcheck.harness.support.usage import UsageError

    run = read(earlier)
    there = {k: v for k, v in run.settings.items() if k != "steps"}
    here = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.items() if k != "steps"}
    if there != here or run.version != __version__:
        told = f"{run.command or 'something else'} of stepcheck {run.version}"
        raise UsageError(f"--resume {earlier}: was {told}; give the same NAME, --seeds, --seed and --mutants")
    return run.rows.get("power", []), run.seconds


def _check_timed(names: tuple[str, ...], workloads: tuple[str, ...], options: dict[str, Any]) -> None:
    """Refuse, in words, what cannot be timed."""
    from stepcheck.harness.bench import rounds as benchmark
    from stepcheck.harness.bench.workloads import WORKLOADS, takes
    from stepcheck.harness.play.families import FAST, TORCH, existing
    from stepcheck.harness.support.usage import UsageError

    for name in (n for n in names if n not in existing()):
        raise UsageError(
            f"{TORCH.lacks(name)}{'; install a later torch' if name in TORCH.modes else f', and {FAST.lacks(name)}'}"
        )
    for name in names:
        if not any(takes(name, WORKLOADS[w]) for w in workloads):
            possible = ", ".join(w.name for w in WORKLOADS.values() if takes(name, w))
            raise UsageError(f"{name} is not timed on {', '.join(workloads)}; it is on {possible}")
    lacking = [name for name in names if not benchmark.has(name, options)]
    if lacking or not any(benchmark.has(name, options) for name in names or existing()):
        raise UsageError(
            f"--set: {' and '.join(lacking) or 'no class'} {'lacks' if lacking else 'has'} {', '.join(options)}; name optimizers that have all of it"
        )


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=_NAME)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--workload", "workloads", type=_Names("NAME", _workloads), multiple=True, cls=_LateHelp,
              late=lambda: f"What is stepped, repeatable (default all): {', '.join(_workloads())}.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), cls=_LateHelp, late=_rounds_help)
@click.option("--quick", is_flag=True, cls=_LateHelp, late=_quick_help)
@click.option("--compiled", is_flag=True, help=_COMPILED_HELP)
@click.option("--host", is_flag=True,
              help="Instead, the processor's part of a step on CUDA, without a GPU: launches are stubbed.")  # fmt: skip
@click.option("--scaling", is_flag=True, help="Also what a further tensor costs, and a further element.")
@click.option("--threads", type=click.IntRange(1), help="Of torch and fast alike (default: torch's).")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16", "float32", "float64"]), default="float32", show_default=True
)
@click.option("--cold", is_flag=True,
              help="Time each step by itself, after new gradients were made, and with cold caches.")  # fmt: skip
@click.option("--set", "options", type=_Assignment(), multiple=True,
              help="OPTION=VALUE that optimizers are constructed with, repeatable; those that lack it are left out.")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same values."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw ratios over numbers of elements here; needs matplotlib.")  # fmt: skip
@_OUT
def bench(
    names: tuple[str, ...],
    device: str,
    workloads: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    compiled: bool,
    host: bool,
    scaling: bool,
    threads: int | None,
    dtype: str,
    cold: bool,
    options: tuple[tuple[str, Any], ...],
    seed: int,
    json_file: Path | None,
    plot_file: Path | None,
    out: Path,
) -> int:
    """Time steps of stepcheck.fast beside those of torch.optim in all its modes, in turns.

    NAME is an optimizer, such as Adam; default all. Before anything is timed all contenders take the same steps; exit status is 1 if the
    fast class comes somewhere else than torch.
    """
    import torch

    from stepcheck.harness.bench import rounds as benchmark
    from stepcheck.harness.bench import tables
    from stepcheck.harness.bench.workloads import QUICK, WORKLOADS
    from stepcheck.harness.play.families import existing
    from stepcheck.harness.support.usage import UsageError

    given = dict(options)
    if host:
        others = {"--device cuda": device == "cuda", "--workload": workloads, "--compiled": compiled, "--scaling": scaling,
                  "--threads": threads, "--plot": plot_file, "--cold": cold, "--set": options,
                  "--dtype": dtype != "float32"}  # fmt: skip
        if any(others.values()):
            raise UsageError(
                f"--host takes no {next(o for o, given in others.items() if given)}; it has lists of its own"
            )
        return _bench_host(names, rounds or (benchmark.QUICK_ROUNDS if quick else benchmark.ROUNDS), json_file, out)
    benchmark.check_device(device)
    chosen, named = names or existing(), workloads or (QUICK if quick else tuple(WORKLOADS))
    _check_timed(names, named, given)
    _writable(json_file)
    tables.check_plot(plot_file)
    _writable(plot_file, "--plot")
    if threads is not None:
        torch.set_num_threads(threads)
    rounds = rounds or (benchmark.QUICK_ROUNDS if quick else None)
    settings = benchmark.Settings(
        rounds, compiled, device, seed, patient=bool(workloads), dtype=dtype, cold=cold, options=given
    )
    start = time.perf_counter()
    about = tables.environment(device)
    _console().print(
        f"torch {about['torch']}, {about['processor']}, {about['threads']} threads, {dtype}, seed {seed}", markup=False
    )
    planned = {"names": chosen, "workloads": named} | asdict(settings)
    with _recorded(out, seed, planned, about) as stream, _bench_progress() as progress:
        stream.document("bench", tables.to_json(__version__, settings, [], []))
        rows = _bench_rows(stream, chosen, named, settings, progress)
        scalings: list[benchmark.Scaling] = []
        for of_one in benchmark.scalings(chosen, settings, progress) if scaling else ():
            scalings.append(of_one)
            stream.row("bench", tables.to_json(__version__, settings, [], [of_one])["scaling"][0], into="scaling")
        data = tables.to_json(__version__, settings, rows, scalings)
        stream.document("bench", data)
        stream.status = DIVERGES if any(r.wrong for r in rows) else CONFORMS
    if scalings:
        _console().print("\n[bold]scaling[/]: what a further tensor of 64 elements costs, and a further element")
        _console().print(tables.scaling_table(scalings))
    _console().print()
    for note in tables.notes(rows):
        _console().print(note, markup=False)
    legend = tables.LEGEND + (tables.CUDA_LEGEND if device == "cuda" else "")
    _console().print(f"{legend} {time.perf_counter() - start:.0f} s in all.", markup=False)
    _write_json(json_file, data)
    if plot_file is not None:
        tables.plot(rows, plot_file)
    return stream.status


def _bench_rows(
    stream: Stream, names: Sequence[str], workloads: Sequence[str], settings: benchmark.Settings, progress: Any
) -> list[benchmark.Row]:
    """Time one workload after the other, and show each as soon as it is done."""
    from stepcheck.harness.bench import rounds as benchmark
    from stepcheck.harness.bench import tables
    from stepcheck.harness.bench.workloads import WORKLOADS

    rows: list[benchmark.Row] = []
    asked = dict.fromkeys(WORKLOADS[w] for w in workloads)
    for workload, of_workload in groupby(benchmark.rows(names, list(asked), settings, progress), lambda r: r.workload):
        timed: list[benchmark.Row] = []
        for row in of_workload:
            told = tables.to_json(__version__, settings, [row], [])
            for part in ("results",) if timed else ("workloads", "results"):
                stream.row("bench", told[part][0], into=part)
            timed.append(row)
        rows += timed
        if any(t.seconds for r in timed for t in r.timings):
            _console().print(tables.title(workload))
            _console().print(tables.table(timed))
    return rows


def _bench_host(names: Sequence[str], rounds: int, json_file: Path | None, out: Path) -> int:
    from stepcheck.harness.bench import host, tables  # the former takes Triton with it

    host.check(names)
    _writable(json_file)
    about = tables.environment("cpu")
    _console().print(f"torch {about['torch']}, {about['processor']}, 1 thread", markup=False)
    with _recorded(out, None, {"names": names, "rounds": rounds}, about) as stream, _bench_progress() as progress:
        empty = {"stepcheck": __version__, "environment": about, "host": []}
        stream.document("host", empty)
        rows = []
        for row in host.rows(names or host.takers(), rounds, progress):
            rows.append(row)
            stream.row("host", host.to_json([row])[0], into="host")
        data = empty | {"host": host.to_json(rows)}
        stream.document("host", data)
    _console().print(host.table(rows))
    _console().print(host.LEGEND, markup=False)
    _write_json(json_file, data)
    return CONFORMS


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=_NAME)
@click.option("--arch", "archs", type=_Names("ARCH", _architectures), multiple=True,
              help="Compile for this architecture, repeatable (default sm_80, sm_90 and sm_100).")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@_OUT
def census(names: tuple[str, ...], archs: tuple[str, ...], json_file: Path | None, out: Path) -> int:
    """Compile the CUDA kernels of stepcheck.fast and count what is in them; no GPU is needed.

    NAME is an optimizer, such as Adam; default all. Exit status is 1 if a count leaves its model, and 3 if a kernel could not be compiled
    or counted.
    """
    from stepcheck.harness.play.families import no_triton
    from stepcheck.harness.support.usage import UsageError

    absent = no_triton()
    if absent:
        raise UsageError(f"census: {absent}; pip install triton (Linux)")
    _whole_torch()
    # Triton is imported where it is needed alone.
    from stepcheck.harness.census import tables as counted

    known = counted.known()
    for name in names:
        if name not in known:
            raise UsageError(f"census: {name} has no CUDA kernels of its own; {', '.join(known)} have")
    _writable(json_file)
    start = time.perf_counter()
    capabilities = sorted({int(a.removeprefix("sm_")) for a in archs}) or counted.ARCHITECTURES
    with _recorded(out, None, {"names": names or known, "capabilities": capabilities}) as stream:
        with _progress("kernels compiled") as progress:
            taken = counted.take(names or known, capabilities, progress)
        data = counted.to_json(__version__, taken)
        stream.document("census", data)
        stream.status = DIVERGES if taken.failures else UNKNOWN if taken.unknown else CONFORMS
    _console().print(counted.table(taken))
    for line in counted.lines(taken):
        _console().print(line)
    _console().print(counted.LEGEND, markup=False)
    _console().print(f"{counted.closing(taken)}; {time.perf_counter() - start:.0f} s in all.", markup=False)
    _write_json(json_file, data)
    return stream.status


@commands.command("report")
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("report"), show_default=True,
              help="Folder for index.html, report.json, report.md, badge.svg, versions.html, versions.json and known.md.")  # fmt: skip
@click.option("--against", type=click.Path(dir_okay=False, path_type=Path), metavar="REPORT.json",
              help="Compare with an earlier report: what became red or green, what is gone, which counts shrank; of another"
                   " version of torch, which faults were fixed and which are new.")  # fmt: skip
def report_(paths: tuple[Path, ...], out: Path, against: Path | None) -> int:
    """Render what runs recorded: a page, JSON, Markdown for a pull request, a badge.

    PATH is a stream that a command wrote, or a folder of them, of which the newest of each command counts (default: .stepcheck). Of a
    subject that several runs checked, the newest result counts. Exit status is 0 whatever the verdict, and 2 where there is nothing to
    render.
    """
    from stepcheck.harness.page import write  # it takes jinja2 with it

    made = write.build(write.collect(paths or (defaults.FOLDER,)), against)
    for problem in made.problems:
        _console().print(f"not whole: {problem}", markup=False)
    for figure in made.figures:
        if figure.missing:
            _console().print(f"{figure.title}: {figure.missing}", markup=False)
    written = write.write(made, out)
    if made.comparison is not None:
        c = made.comparison
        _console().print(
            f"compared with {c.against}: {c.verdict}; {len(c.red)} became red, {len(c.green)} green, {len(c.gone)} gone,"
            f" {len(c.shrank)} counts shrank",
            markup=False,
        )
    if made.upgrade is not None:
        for line in made.upgrade.lines():
            _console().print(line, markup=False, soft_wrap=True)
    _console().print(f"{made.verdict}: {made.headline}", markup=False)
    for path in written:
        _console().print(f"{path}  {path.stat().st_size:,} bytes", markup=False)
    return CONFORMS


def _bars(console: Console, **settings: Any) -> Progress:
    """Bars that are gone when all is done, for a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, **settings)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True, emoji=False)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with _bars(console) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _bench_progress() -> Iterator[benchmark.Progress]:
    """What is being timed, on standard error if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True, emoji=False)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    # It is drawn between rows alone: a thread that draws would be timed too.
    with _bars(console, auto_refresh=False) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total, refresh=True
        )
