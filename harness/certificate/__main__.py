"""The command line of the accuracy certificate."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import mpmath
from rich.console import Console
from rich.markup import escape

from stepcheck import __version__
from stepcheck.harness.certificate.inputs import FULL, SHORT
from stepcheck.harness.certificate.tables import markdown, tables
from stepcheck.harness.certificate.whole import Certificate, certificate
from stepcheck.harness.readers.report import environment
from stepcheck.harness.record import store
from stepcheck.harness.record.stream import Stream
from stepcheck.harness.support.usage import UsageError


def _recorded(short: bool, seed: int, out: Path) -> Certificate:
    """Make the certificate, and write down each row when it is there."""
    command = shlex.join(["python", "-m", "stepcheck.harness.certificate", *sys.argv[1:]])
    about = {**environment(), "mpmath": mpmath.__version__}
    with Stream.create(out, command, __version__, about, seed, {"short": short}) as stream:
        stream.document("certificate", Certificate(seed, short).to_json())
        with Console(stderr=True, highlight=False).status("") as status:
            result = certificate(
                SHORT if short else FULL,
                seed,
                progress=lambda what: status.update(escape(what)),
                row=lambda part, row: stream.row("certificate", row, into=part),
            )
        stream.document("certificate", result.to_json())
        stream.status = 0 if result.holds else 1
    return result


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--short", is_flag=True, help="Few inputs and few traces: under a minute.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the certificate here."
)
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=store.DEFAULT_FOLDER, show_default=True,
              help="Folder for the record of the run.")  # fmt: skip
def main(short: bool, json_file: Path | None, markdown_file: Path | None, seed: int, out: Path) -> None:
    """Certify the accuracy of every reference, and measure every mode of torch.optim. Exit status 1: a reference exceeds its bound."""
    try:
        result = _recorded(short, seed, out)
    except UsageError as error:
        click.echo(f"certificate: {error}", err=True)
        sys.exit(2)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    for table in tables(result):
        console.print(table)
    for name, reason in result.declared.items():
        console.print(f"{name}: {' '.join(reason.split())}", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(markdown(result), encoding="utf-8")
    sys.exit(0 if result.holds else 1)


if __name__ == "__main__":
    main()
