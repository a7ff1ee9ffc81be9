"""The command line. Exit status: 0 conforms, 1 a divergence that is not known, 2 bad usage or input, 3 unknown."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from stepcheck import __version__
from stepcheck.harness import campaign, report, store, workers
from stepcheck.harness.bench import rounds as benchmark
from stepcheck.harness.bench import tables
from stepcheck.harness.bench.workloads import QUICK, WORKLOADS, takes
from stepcheck.harness.campaign import DEFAULT_EXAMPLES, Settings
from stepcheck.harness.census.occupancy import LIMITS
from stepcheck.harness.checks import CHECKS, Finding
from stepcheck.harness.ledger import Entry
from stepcheck.harness.readers.junit import junit
from stepcheck.harness.readers.markdown import markdown
from stepcheck.harness.readers.scripts import to_json
from stepcheck.harness.readers.terminal import show
from stepcheck.harness.stream import Stream, read
from stepcheck.harness.subjects import (
    FAMILIES,
    TORCH_MODES,
    Subject,
    UsageError,
    existing,
    no_such_class,
    no_triton,
    resolve,
    torch_subject,
)
from stepcheck.harness.trace import DTYPES, TraceError
from stepcheck.harness.verdict import Divergence, Result
from stepcheck.reference import SPECS

CONFORMS, DIVERGES, BAD_USAGE, UNKNOWN = 0, 1, 2, 3

_COMPILED_HELP = (
    "Also torch.compile(optimizer.step); compiling is not timed, but takes seconds to minutes for each row."
)

_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=store.DEFAULT_FOLDER,
    show_default=True,
    help="Folder for the record of the run.",
)

# Without a terminal nobody folds lines: scripts and logs want them whole.
_console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160, soft_wrap=True)


def main() -> NoReturn:
    """Run the command line and exit; bad usage is one line on standard error."""
    sys.path.insert(0, "")  # somebody's module is looked for where they stand
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of another encoding shows what it can
            stream.reconfigure(errors="replace")
    try:
        status = commands(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = CONFORMS
    except click.ClickException as error:
        _refuse(error.format_message())
    except (UsageError, TraceError) as error:
        _refuse(str(error))
    except click.Abort:
        status = UNKNOWN
    sys.exit(status or CONFORMS)


def _refuse(message: str) -> NoReturn:
    one_line = " ".join(message.split())
    click.echo(f"stepcheck: {one_line}", err=True)
    sys.exit(BAD_USAGE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stepcheck")
def commands() -> None:
    """Is this optimizer step right?"""


@commands.command("list")
def list_() -> int:
    """Optimizers, subjects and checks known here."""
    _console.print("[bold]optimizers[/] (references), and the modes and dtypes of torch.optim that are held to them")
    for name, modes in TORCH_MODES.items():
        subjects = [torch_subject(name, mode) for mode in modes]
        supported = [s for s in subjects if not s.unsupported]
        shown = [mode if s in supported else f"[dim]({mode})[/]" for s, mode in zip(subjects, modes, strict=True)]
        _console.print(f"  {name:<11}{' '.join(shown)}")
        dtypes = dict.fromkeys(d for s in supported for d in s.dtypes)
        told = [d + _except(d, supported, modes) for d in dtypes]
        sparse = {"": "", "only": "; sparse gradients alone"}.get(SPECS[name].sparse, "; sparse gradients")
        _console.print(f"  {'':<11}[dim]{', '.join(told)}{sparse}[/]")
    _console.print("  A mode in parentheses is unsupported here: stepcheck check says why.", markup=False)
    _console.print(
        "  stepcheck.fast has all of them, in the same dtypes: fast:NAME; its kernels for CUDA are checked as"
    )
    _console.print("  fast:NAME[triton], run by Triton's interpreter, and as fast:NAME[cuda] on a GPU.", markup=False)
    _console.print(
        "  Subjects: torch, torch:Adam, torch:Adam[foreach], fast, fast:Adam, or package.module:Class --like NAME",
        markup=False,
    )
    _console.print("[bold]checks[/]")
    for check in CHECKS.values():
        _console.print(f"  {check.name:<20}{check.question}")
    return CONFORMS


def _except(dtype: str, subjects: Sequence[Subject], modes: Sequence[str]) -> str:
    """The modes that do not take a dtype, in words."""
    without = [mode for mode in modes for s in subjects if s.name.endswith(f"[{mode}]") and dtype not in s.dtypes]
    return f" (not {', '.join(without)})" if without else ""


@commands.command()
@click.argument("subjects", nargs=-1)
@click.option("--like", type=click.Choice(list(SPECS)), help="The reference that a class is held to.")
@click.option("--examples", type=click.IntRange(1), help=f"Traces for each subject (default {DEFAULT_EXAMPLES}).")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same traces."
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="Time for the whole run, instead of --examples."
)
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Parameters of this dtype alone.")
@click.option("--only", type=click.Choice(list(CHECKS)), multiple=True, help="Ask this check alone.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option("--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Write them as JUnit XML.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path),
    help="Write them as Markdown. Where GITHUB_STEP_SUMMARY names a file, it goes to the end of that as well.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=store.DEFAULT_FOLDER, show_default=True,
    help="Folder for the record of the run, and for traces and scripts of divergences.",
)  # fmt: skip
def check(
    subjects: tuple[str, ...],
    like: str | None,
    examples: int | None,
    seed: int,
    seconds: float | None,
    dtypes: tuple[str, ...],
    only: tuple[str, ...],
    json_file: Path | None,
    junit_file: Path | None,
    markdown_file: Path | None,
    out: Path,
) -> int:
    """Play fuzzed lives of SUBJECTS and judge every step against the reference.

    SUBJECT is torch, torch:Adam, torch:Adam[foreach], fast, fast:Adam, fast:Adam[cuda], or package.module:ClassOrFactory with --like. Without any: torch and
    fast.
    """
    chosen = {s.name: s for text in subjects or FAMILIES for s in resolve(text, like)}
    if dtypes and not any(set(dtypes) & set(s.dtypes) for s in chosen.values()):
        raise UsageError(f"--dtype {dtypes[0]}: {_named(chosen)} not take it; stepcheck list says what each takes")
    each = None
    if seconds is not None:
        each = max(seconds * min(len(chosen), workers.slots()) / len(chosen), 0.1)
    elif examples is None:
        examples = DEFAULT_EXAMPLES
    summary_file = Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None
    files = {
        "--json": json_file,
        "--junit": junit_file,
        "--markdown": markdown_file,
        "GITHUB_STEP_SUMMARY": summary_file,
    }
    for option, file in files.items():
        _writable(file, option)
    settings = Settings(seed, examples, each, dtypes, only)
    who = list(chosen.values())
    about = {"examples": examples, "seconds": each, "dtypes": dtypes, "checks": settings.checks}
    with _recorded(out, seed, about | {"subjects": [(s.name, s.spec.name) for s in who]}) as stream:
        replayed = workers.replay(who, settings, stream)
        with _shown(who, out) as listener:
            results = workers.run(who, settings, listener, stream)
        stream.status = _status(results, replayed)
    run = read(stream.path)
    show(run, out, _console)
    if json_file is not None:
        json_file.write_text(json.dumps(to_json(run, out), indent=1) + "\n", encoding="utf-8")
    if junit_file is not None:
        junit_file.write_text(junit(run, out), encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(markdown(run, out), encoding="utf-8")
    if summary_file is not None:
        with summary_file.open("a", encoding="utf-8") as summary:
            summary.write(markdown(run, out))
    return stream.status


def _recorded(
    folder: Path, seed: int | None, settings: dict[str, Any], environment: dict[str, Any] | None = None
) -> Stream:
    """The record of this command."""
    command = shlex.join(["stepcheck", *sys.argv[1:]])
    return Stream.create(folder, command, __version__, environment or report.environment(), seed, settings)


def _all_exist(names: Iterable[str]) -> None:
    """Refuse what needs a class that this torch lacks: the zoo and the kernels of all optimizers are imported together."""
    for why in filter(None, map(no_such_class, names)):
        raise UsageError(f"{why}; install a later torch")


def _named(subjects: dict[str, Subject]) -> str:
    names = list(subjects)
    return f"{names[0]} does" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more do"


def _writable(file: Path | None, option: str = "--json") -> None:
    """Find out before the run, not after it."""
    if file is not None:
        try:
            file.touch()
        except OSError as error:
            raise UsageError(f"{option} {file}: cannot be written ({error.strerror}); choose another file") from None


def _status(results: Sequence[Result], replayed: Sequence[workers.Replayed]) -> int:
    verdicts = {r.verdict for r in results}
    failed = "fail" in verdicts or any(r.failed for r in replayed)
    return DIVERGES if failed else UNKNOWN if "unknown" in verdicts else CONFORMS


@contextmanager
def _shown(subjects: list[Subject], folder: Path) -> Iterator[workers.Listener]:
    """Progress bars on a terminal, a plain line for each finished subject without one; divergences saved as they come."""
    width = max(len(s.name) for s in subjects)
    if not _console.is_terminal:

        def finished(result: Result) -> None:
            _console.print(f"{result.subject:<{width}}  {result.verdict:<8} {result.traces:>6} traces", markup=False)

        yield workers.Listener(found=lambda d: store.save(folder, d), finished=finished)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console, transient=True) as progress:
        overall = progress.add_task("all subjects", total=len(subjects))
        tasks: dict[str, TaskID] = {}

        def advance(subject: Subject, done: int, planned: int) -> None:
            if subject.name not in tasks:
                tasks[subject.name] = progress.add_task(subject.name, total=planned or None)
            progress.update(tasks[subject.name], completed=done)

        def end(result: Result) -> None:
            if result.subject in tasks:
                progress.remove_task(tasks[result.subject])
            progress.advance(overall)

        def found(divergence: Divergence) -> None:
            store.save(folder, divergence)

        yield workers.Listener(advance, found, end)


@commands.command()
@click.argument("name", metavar="FILE-or-ID")
@click.option("--subject", help="Play it on this subject instead of the one that failed.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=store.DEFAULT_FOLDER, show_default=True,
              help="Folder in which IDs are looked up.")  # fmt: skip
def replay(name: str, subject: str | None, out: Path) -> int:
    """Play a saved trace again, or a life of the ledger: FIXED, FAILS or ERROR.

    What the ledger explains is named as known, and is exit status 0.
    """
    path = store.find(name, out)
    saved = store.load(path)
    who = subject or saved.subject
    if not who:
        raise UsageError(f"{path} is a bare trace; name who plays it, with --subject")
    found = resolve(who, saved.trace.optimizer)
    if len(found) != 1:
        raise UsageError(f"{who} is {len(found)} subjects; name one, such as {found[0].name}")
    if found[0].unsupported:
        raise UsageError(f"{path}: {found[0].name} cannot play it here: {found[0].unsupported}")
    problem = saved.trace.problem(found[0].spec)
    if problem:
        raise UsageError(f"{path}: {found[0].name} cannot play it: {problem}")
    if saved.check and saved.check not in CHECKS:
        raise UsageError(f"{path}: no check named {saved.check!r}; there is {', '.join(CHECKS)}")
    try:
        checks = [saved.check] if saved.check else CHECKS
        # What it fails stands in the file, and need not be left to another check that would tell why.
        asked = checks if saved.check else ()
        outcomes = [_worst(campaign.findings(found[0], saved.trace, c, asked, saved.summary)) for c in checks]
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a fault of the harness is neither FIXED nor FAILS
        _console.print(f"ERROR {found[0].name}: {type(error).__name__}: {error}", markup=False)
        return UNKNOWN
    failures = [outcome for outcome in outcomes if outcome is not None]
    for finding, entry in failures:
        known = f" (known: {entry.name})" if entry else ""
        _console.print(f"FAILS {found[0].name} {finding.check}: {finding.summary}{known}", markup=False)
    if not failures:
        _console.print(f"FIXED {found[0].name} {saved.check or 'all checks'}", markup=False)
    return DIVERGES if any(entry is None for _, entry in failures) else CONFORMS


def _worst(found: Iterator[tuple[Finding, Entry | None]]) -> tuple[Finding, Entry | None] | None:
    """The first that the ledger does not explain, else the first."""
    outcomes = list(found)
    return next((o for o in outcomes if o[1] is None), outcomes[0] if outcomes else None)


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(SPECS)))
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
    _all_exist(SPECS)
    from stepcheck.harness.power import tables as found  # these import the whole zoo
    from stepcheck.harness.power.measure import Plan, measure

    _writable(json_file)
    tables.check_plot(plot_file)
    plan = Plan(names, seed, 3, mutants=4, steps=0) if quick else Plan(names, seed, seeds, mutants=mutants, steps=steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    known, before = ([], 0.0) if earlier is None else _measured(earlier, asdict(plan))
    with _recorded(out, seed, asdict(plan)) as stream:
        with Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal) as progress:
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
        _console.print(table(measured))
        _console.print()
    for line in (*doubtful, *found.false_alarms(measured)):
        _console.print(line, markup=False)
    _console.print(found.LEGEND.format(examples=plan.examples, seeds=plan.seeds), markup=False)
    _console.print(f"{measured.seconds:.0f} s in all, seeds from {seed}.", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if plot_file is not None:
        found.plot(measured, plot_file)
    return stream.status


def _measured(earlier: Path, plan: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """What an earlier run of the same plan recorded, and how long it took."""
    run = read(earlier)
    there = {k: v for k, v in run.settings.items() if k != "steps"}
    here = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.items() if k != "steps"}
    if there != here or run.version != __version__:
        told = f"{run.command or 'something else'} of stepcheck {run.version}"
        raise UsageError(f"--resume {earlier}: was {told}; give the same NAME, --seeds, --seed and --mutants")
    return run.rows.get("power", []), run.seconds


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(SPECS)))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--workload", "workloads", type=click.Choice(list(WORKLOADS)), multiple=True, metavar="NAME",
              help=f"What is stepped, repeatable (default all): {', '.join(WORKLOADS)}.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1),
              help=f"Batches of each contender (default {benchmark.ROUNDS}; fewer where they take more than "
                   f"{benchmark.PATIENCE:.0f} s, unless asked for).")  # fmt: skip
@click.option("--quick", is_flag=True, help=f"Small workloads alone, {benchmark.QUICK_ROUNDS} rounds.")
@click.option("--compiled", is_flag=True, help=_COMPILED_HELP)
@click.option("--host", is_flag=True,
              help="Instead, the processor's part of a step on CUDA, without a GPU: launches are stubbed.")  # fmt: skip
@click.option("--scaling", is_flag=True, help="Also what a further tensor costs, and a further element.")
@click.option("--threads", type=click.IntRange(1), help="Of torch and fast alike (default: torch's).")
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
    seed: int,
    json_file: Path | None,
    plot_file: Path | None,
    out: Path,
) -> int:
    """Time steps of stepcheck.fast beside those of torch.optim in all its modes, in turns.

    NAME is an optimizer, such as Adam; default all. Before anything is timed all contenders take the same steps; exit status is 1 if the
    fast class comes somewhere else than torch.
    """
    if host:
        others = {"--device cuda": device == "cuda", "--workload": workloads, "--compiled": compiled, "--scaling": scaling,
                  "--threads": threads, "--plot": plot_file}  # fmt: skip
        if any(others.values()):
            raise UsageError(
                f"--host takes no {next(o for o, given in others.items() if given)}; it has lists of its own"
            )
        return _bench_host(names, rounds or (benchmark.QUICK_ROUNDS if quick else benchmark.ROUNDS), json_file, out)
    benchmark.check_device(device)
    _all_exist(names)
    chosen = names or existing()
    named = workloads or (QUICK if quick else tuple(WORKLOADS))
    for name in names:
        if not any(takes(name, WORKLOADS[w]) for w in named):
            possible = ", ".join(w.name for w in WORKLOADS.values() if takes(name, w))
            raise UsageError(f"{name} is not timed on {', '.join(named)}; it is on {possible}")
    _writable(json_file)
    tables.check_plot(plot_file)
    _writable(plot_file, "--plot")
    if threads is not None:
        torch.set_num_threads(threads)
    rounds = rounds or (benchmark.QUICK_ROUNDS if quick else None)
    settings = benchmark.Settings(rounds, compiled, device, seed, patient=bool(workloads))
    start = time.perf_counter()
    about = tables.environment(device)
    _console.print(
        f"torch {about['torch']}, {about['processor']}, {about['threads']} threads, seed {seed}", markup=False
    )
    rows: list[benchmark.Row] = []
    planned = {"names": chosen, "workloads": named} | asdict(settings)
    with _recorded(out, seed, planned, about) as stream, _bench_progress() as progress:
        stream.document("bench", tables.to_json(__version__, settings, [], []))
        asked = dict.fromkeys(WORKLOADS[w] for w in named)
        for workload, of_workload in groupby(
            benchmark.rows(chosen, list(asked), settings, progress), lambda r: r.workload
        ):
            timed: list[benchmark.Row] = []
            for row in of_workload:
                told = tables.to_json(__version__, settings, [row], [])
                for part in ("results",) if timed else ("workloads", "results"):
                    stream.row("bench", told[part][0], into=part)
                timed.append(row)
            rows += timed
            if any(t.seconds for r in timed for t in r.timings):
                _console.print(tables.title(workload))
                _console.print(tables.table(timed))
        scalings: list[benchmark.Scaling] = []
        for of_one in benchmark.scalings(chosen, settings, progress) if scaling else ():
            scalings.append(of_one)
            stream.row("bench", tables.to_json(__version__, settings, [], [of_one])["scaling"][0], into="scaling")
        data = tables.to_json(__version__, settings, rows, scalings)
        stream.document("bench", data)
        stream.status = DIVERGES if any(r.wrong for r in rows) else CONFORMS
    if scalings:
        _console.print("\n[bold]scaling[/]: what a further tensor of 64 elements costs, and a further element")
        _console.print(tables.scaling_table(scalings))
    _console.print()
    for note in tables.notes(rows):
        _console.print(note, markup=False)
    legend = tables.LEGEND + (tables.CUDA_LEGEND if device == "cuda" else "")
    _console.print(f"{legend} {time.perf_counter() - start:.0f} s in all.", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if plot_file is not None:
        tables.plot(rows, plot_file)
    return stream.status


def _bench_host(names: Sequence[str], rounds: int, json_file: Path | None, out: Path) -> int:
    from stepcheck.harness.bench import host  # it takes Triton with it

    host.check(names)
    _writable(json_file)
    about = tables.environment("cpu")
    _console.print(f"torch {about['torch']}, {about['processor']}, 1 thread", markup=False)
    with _recorded(out, None, {"names": names, "rounds": rounds}, about) as stream, _bench_progress() as progress:
        empty = {"stepcheck": __version__, "environment": about, "host": []}
        stream.document("host", empty)
        rows = []
        for row in host.rows(names or host.takers(), rounds, progress):
            rows.append(row)
            stream.row("host", host.to_json([row])[0], into="host")
        data = empty | {"host": host.to_json(rows)}
        stream.document("host", data)
    _console.print(host.table(rows))
    _console.print(host.LEGEND, markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return CONFORMS


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(SPECS)))
@click.option("--arch", "archs", type=click.Choice([f"sm_{c}" for c in LIMITS]), multiple=True, metavar="ARCH",
              help="Compile for this architecture, repeatable (default sm_80, sm_90 and sm_100).")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@_OUT
def census(names: tuple[str, ...], archs: tuple[str, ...], json_file: Path | None, out: Path) -> int:
    """Compile the CUDA kernels of stepcheck.fast and count what is in them; no GPU is needed.

    NAME is an optimizer, such as Adam; default all. Exit status is 1 if a count leaves its model, and 3 if a kernel could not be compiled
    or counted.
    """
    absent = no_triton()
    if absent:
        raise UsageError(f"census: {absent}; pip install triton (Linux)")
    _all_exist(SPECS)
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
    _console.print(counted.table(taken))
    for line in counted.lines(taken):
        _console.print(line)
    _console.print(counted.LEGEND, markup=False)
    _console.print(f"{counted.closing(taken)}; {time.perf_counter() - start:.0f} s in all.", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
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

    made = write.build(write.collect(paths or (store.DEFAULT_FOLDER,)), against)
    for problem in made.problems:
        _console.print(f"not whole: {problem}", markup=False)
    for figure in made.figures:
        if figure.missing:
            _console.print(f"{figure.title}: {figure.missing}", markup=False)
    written = write.write(made, out)
    if made.comparison is not None:
        c = made.comparison
        _console.print(
            f"compared with {c.against}: {c.verdict}; {len(c.red)} became red, {len(c.green)} green, {len(c.gone)} gone,"
            f" {len(c.shrank)} counts shrank",
            markup=False,
        )
    if made.upgrade is not None:
        for line in made.upgrade.lines():
            _console.print(line, markup=False, soft_wrap=True)
    _console.print(f"{made.verdict}: {made.headline}", markup=False)
    for path in written:
        _console.print(f"{path}  {path.stat().st_size:,} bytes", markup=False)
    return CONFORMS


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _bench_progress() -> Iterator[benchmark.Progress]:
    """What is being timed, on standard error if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # It is drawn between rows alone: a thread that draws would be timed too.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total, refresh=True
        )
