"""What the pages say of stepcheck in numbers and lists, read when they are built: a page cannot fall behind what it tells of.

A page with ``facts: true`` in its front matter is a template of Jinja, with ``[[ ]]`` for expressions and ``[% %]`` for statements, that is
given the names of :func:`facts`.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.life import events, fields, trace, values
from stepcheck.harness.page import faults as known_faults
from stepcheck.harness.page import versions
from stepcheck.harness.play.profiles import ANY_CLASS, TORCH_CPU
from stepcheck.harness.power.statistics import proportion, quantile
from stepcheck.harness.power.tables import KINDS
from stepcheck.reference import SPECS
from stepcheck.reference.arithmetic import ORDERS
from stepcheck.reference.dialects import dialects

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "reports"
#: What the pages show of the folder of reports, under ``assets/``.
SHOWN = ("power.png",)

_ENVIRONMENT = jinja2.Environment(
    variable_start_string="[[",
    variable_end_string="]]",
    block_start_string="[%",
    block_end_string="%]",
    comment_start_string="[#",
    comment_end_string="#]",
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701 - what is made is Markdown, from this repository's own files
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pictures of ``reports/`` among the files of the site."""
    for name in SHOWN:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(REPORTS / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill the facts in, where a page asks for them."""
    return filled(markdown) if page.meta.get("facts") else markdown


def filled(markdown: str) -> str:
    """The page with its facts.

    Raises:
        jinja2.UndefinedError: it asks for one that there is not.
    """
    return _ENVIRONMENT.from_string(markdown).render(facts())


@functools.cache
def facts() -> Mapping[str, Any]:
    """Everything that a page may name."""
    return {
        "census": (REPORTS / "census.txt").read_text(encoding="utf-8"),
        "certificate": Certificate(_report("certificate")),
        "checks": CHECKS,
        "findings": findings,
        "kinds": KINDS,
        "known_issues": known_issues,
        "ledger": LEDGER,
        "number": "{:,}".format,
        "optimizers": optimizers,
        "orders": sorted(ORDERS),
        "percent": percent,
        "programs": (REPORTS / "programs.md").read_text(encoding="utf-8"),
        "power": Power(_report("power")),
        "profiles": {"torch": TORCH_CPU, "any": ANY_CLASS},
        "specs": SPECS,
        "text": cell,
        "dialects": list(every_dialect()),
        "events": events,
        "fields": fields,
        "trace": trace,
        "values": values,
    }


@functools.cache
def known_issues() -> str:
    """Each known issue of torch, when it was first seen, where it was fixed, and in what: a table."""
    return versions.markdown(known_faults.build())


@functools.cache
def _report(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress((REPORTS / f"{name}.json.gz").read_bytes()))
    return data


def percent(x: float, digits: int = 4) -> str:
    """A share in percent, to so many significant digits."""
    return f"{100 * x:.{digits}g}\N{NO-BREAK SPACE}%"


def cell(text: str) -> str:
    """Text as it stands in a cell of a Markdown table: nothing in it is markup but what stands between backticks, which is code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if n % 2 else re.sub(r"([\\`*_\[\]<>|])", r"\\\1", part) for n, part in enumerate(parts))


def every_dialect() -> Iterator[dict[str, str]]:
    """Each dialect of any reference: its name and kind, what it does in words, and the optimizers that may be written in it."""
    of: dict[tuple[str, str, str], list[str]] = {}
    for spec in SPECS.values():
        for d in dialects(spec):
            of.setdefault((d.name, d.kind, d.words), []).append(spec.name)
    yield from ({"name": n, "kind": k, "words": w, "of": ", ".join(names)} for (n, k, w), names in of.items())


def optimizers(entry: Entry) -> str:
    """Whose behaviour an entry of the ledger is, in words."""
    if set(entry.optimizers) == set(SPECS):
        return "all"
    others = [name for name in SPECS if name not in entry.optimizers]
    return f"all but {', '.join(others)}" if len(others) <= len(SPECS) // 2 else ", ".join(entry.optimizers)


def findings(check: str) -> str:
    """What a check has found: entries of the ledger, faults of history, and how many faults of the zoo it ends a campaign of."""
    entries = [e for e in LEDGER.values() if check in e.checks]
    measured = _report("power")["faults"]
    faults = [f for f in measured if check in f["checks"]]
    history = sorted((f for f in faults if f["kind"] == "history"), key=lambda f: (f["like"], f["name"]))
    released = [
        f"- `{e.name}` ({optimizers(e)}): {cell(e.statement)}{_linked([e.link] if e.link else [])}" for e in entries
    ]
    past = [f"- {f['like']}: {cell(f['told'])}{_linked(f['links'])}" for f in history]
    blocks = [
        _details("note", f"Found in released software: {len(entries)}", released),
        _details("quote", f"Found in history: {len(history)}", past),
        f"In the [measurement of power](power.md) it ended a campaign of {len(faults)} of {len(measured)} wrong optimizers.",
    ]
    return "\n\n".join(filter(None, blocks))


def _details(kind: str, title: str, lines: list[str]) -> str:
    """What unfolds where it is clicked; nothing, where there are no lines."""
    return f'??? {kind} "{title}"\n' + "\n".join(f"    {line}" for line in ["", *lines]) if lines else ""


def _linked(links: Iterable[str]) -> str:
    told = [f"[{link.removeprefix('https://github.com/')}]({link})" for link in links]
    return f" ({', '.join(told)})" if told else ""


class Power:
    """``reports/power.json.gz``, and what it comes to.

    Attributes:
        data: the file.
        summary: its ``summary``.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.summary = data["summary"]
        self.plan = data["plan"]
        self.oracles: dict[str, str] = data["oracles"]

    def row(self, chosen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What became of some of the faults: numbers of them, shares, quantiles."""
        faults = [f for f in self.data["faults"] if chosen(f)]
        kills = [k for f in faults for k in f["kills"]]
        caught = [k for k in kills if k["checks"]]
        wanted = self.summary["wanted_probability"]
        return {
            "faults": len(faults),
            "caught": proportion(len(caught), len(kills)),
            "sure": sum(f["probability"]["estimate"] >= wanted for f in faults),
            "lives": [quantile([k["lives"] for k in caught], share) for share in (0.5, 0.95)],
            "seconds": [quantile([k["cpu_seconds"] for k in caught], share) for share in (0.5, 0.95)],
            "others": {name: _answered(faults, name) for name in self.oracles},
        }

    @property
    def kinds(self) -> list[str]:
        """Those that were measured."""
        measured = {f["kind"] for f in self.data["faults"]}
        return [kind for kind in KINDS if kind in measured]

    @property
    def by_kind(self) -> dict[str, dict[str, Any]]:
        """A row for each kind of fault, and one for all."""
        rows = {kind: self.row(lambda f, kind=kind: f["kind"] == kind) for kind in self.kinds}
        return {**rows, "all": self.row(lambda _: True)}

    @property
    def by_optimizer(self) -> dict[str, dict[str, Any]]:
        """A row for each optimizer."""
        names = sorted({f["like"] for f in self.data["faults"]})
        return {name: self.row(lambda f, name=name: f["like"] == name) for name in names}

    @property
    def kill_matrix(self) -> dict[str, dict[str, int]]:
        """For each check, how many faults of each kind it ended a campaign of, of all, and of those that no other one did."""
        spoken = [(f["kind"], set(f["checks"])) for f in self.data["faults"]]
        matrix = {}
        for check in CHECKS:
            counts = Counter(kind for kind, said in spoken if check in said)
            alone = sum(said == {check} for _, said in spoken)
            matrix[check] = {**{kind: counts[kind] for kind in self.kinds}, "all": counts.total(), "alone": alone}
        return matrix

    @property
    def doubtful(self) -> list[dict[str, Any]]:
        """Faults that a campaign may miss, the least likely caught first."""
        wanted = self.summary["wanted_probability"]
        rows = [f for f in self.data["faults"] if f["probability"]["estimate"] < wanted]
        return sorted(rows, key=lambda f: f["probability"]["estimate"])

    def right(self, kind: str) -> dict[str, Any]:
        """What became of ``right`` or ``equivalent`` ones: how many were played, for how long, and how many were refused."""
        played = [r for r in self.data[kind] if r["campaigns"]]
        lives, alarms = sum(r["lives"] for r in played), sum(len(r["false_alarms"]) for r in played)
        return {
            "played": len(played),
            "not_played": len(self.data[kind]) - len(played),
            "lives": lives,
            "steps": sum(r["judged_steps"] for r in played),
            "alarms": alarms,
            "fewer_than": proportion(min(alarms, lives), lives).high,
        }


def _answered(faults: Iterable[dict[str, Any]], oracle: str) -> float:
    answers = [f["other_oracles"][oracle]["caught"] for f in faults if oracle in f["other_oracles"]]
    return sum(answers) / len(answers)


class Certificate:
    """``reports/certificate.json.gz``: references against themselves at 200 bits, and torch.optim in ulps and budgets."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    @property
    def references(self) -> dict[str, float]:
        """Of each optimizer, the largest error of its reference in units of its bound."""
        largest: dict[str, float] = {}
        for row in self.data["references"]:
            largest[row["optimizer"]] = max(largest.get(row["optimizer"], 0.0), row["ratio"])
        return largest

    @property
    def apart(self) -> list[str]:
        """The optimizers whose references are certified by tests of their own."""
        return [row["name"] for row in self.data["declared"] if row["name"] in SPECS]

    def ratios(self, modes: Iterable[str] = ("forloop", "foreach")) -> dict[str, tuple[float, float, int]]:
        """Of each dtype, the smallest and the largest of what conforming subjects use of their budget at most, and how many they are."""
        ends = tuple(f"[{mode}]" for mode in modes)
        conforming = [r for r in self.data["torch"] if not r["deviating"] and r["subject"].endswith(ends)]
        dtypes = dict.fromkeys(r["dtype"] for r in conforming)
        used = {d: [r["ratio"] for r in conforming if r["dtype"] == d] for d in dtypes}
        return {d: (min(ratios), max(ratios), len(ratios)) for d, ratios in used.items()}

    @property
    def elements(self) -> int:
        """Elements of torch.optim that were compared."""
        return sum(r["elements"] for r in self.data["torch"])
