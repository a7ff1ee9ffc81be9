"""Figures by matplotlib as SVG for a page: text as text, colours as the page's CSS variables, a title with its value on each mark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree as ET

INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
#: One for each series; the page has them for both themes.
SERIES = tuple(f"#0a00{n:02x}" for n in range(1, 9))
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"} | {
    colour: f"--s{n}" for n, colour in enumerate(SERIES, 1)
}
MARKERS = "os^Dv<>P"
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_LONGEST = 60


def printable(text: Any) -> str:
    """Text that XML can hold; names in a stream may be anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def plain(text: Any) -> str:
    """The same, and no longer than a figure has room for."""
    kept = printable(text)
    return kept if len(kept) <= _LONGEST else kept[: _LONGEST - 1] + "…"


class Canvas:
    """A figure of ``rows`` by ``columns`` panels, of a size in pixels.

    Args:
        name: tells its identifiers from those of other figures on the page.
        told: what a screen reader says of it.
    """

    def __init__(
        self, name: str, told: str, size: tuple[int, int], rows: int = 1, columns: int = 1, **shared: Any
    ) -> None:
        from matplotlib.figure import Figure  # half a second, and no command but this one draws

        self.name, self.told = name, told
        self.titles: dict[str, list[str]] = {}
        with self._style():
            self.figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
            self.panels = self.figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
            for axes in self.panels:
                axes.grid(visible=True, which="major", linewidth=0.5)
                axes.set_axisbelow(True)
                axes.tick_params(length=0)

    @contextmanager
    def drawing(self) -> Iterator[list[Any]]:
        """The panels, row by row, to draw on."""
        with self._style():
            yield self.panels

    @contextmanager
    def _style(self) -> Iterator[None]:
        import matplotlib as mpl

        style: Any = {
            "svg.fonttype": "none", "svg.hashsalt": self.name, "text.parse_math": False, "font.size": 10.0, "axes.titlesize": 10.0,
            "axes.titleweight": "bold", "axes.titlelocation": "left", "figure.facecolor": "none", "axes.facecolor": "none",
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": LINE, "grid.color": LINE, "text.color": INK,
            "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "legend.frameon": False, "legend.fontsize": 10.0,
        }  # fmt: skip
        with mpl.rc_context(style), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of glyphs that its own font lacks; the page's need not
            yield

    def marks(
        self, axes: Any, x: Sequence[float], y: Sequence[float], titles: Sequence[str], series: int, **style: Any
    ) -> None:
        """Points, each with a title."""
        gid = self._gid(titles)
        looks = {
            "s": 26,
            "marker": MARKERS[series % len(MARKERS)],
            "color": SERIES[series % len(SERIES)],
            "linewidths": 0.0,
        } | style
        axes.scatter(x, y, gid=gid, **looks)

    def line(self, axes: Any, x: Sequence[float], y: Sequence[float], title: str, series: int, **style: Any) -> None:
        """A line with one title."""
        looks = {"color": SERIES[series % len(SERIES)], "linewidth": 1.5} | style
        axes.plot(x, y, gid=self._gid([title]), **looks)

    def _gid(self, titles: Sequence[str]) -> str:
        gid = f"{self.name}-{len(self.titles)}"
        self.titles[gid] = list(titles)
        return gid

    def legend(self, labels: Sequence[str], dashes: Sequence[Any] = ()) -> None:
        """What each series is, above the panels, in their order: lines where dashes are given, else marks."""
        from matplotlib.lines import Line2D

        handles = []
        for n, label in enumerate(labels):
            look: Any = (
                {"linestyle": dashes[n % len(dashes)]}
                if dashes
                else {"linestyle": "", "marker": MARKERS[n % len(MARKERS)]}
            )
            handles.append(Line2D([], [], color=SERIES[n % len(SERIES)], label=plain(label), markersize=6, **look))
        with self._style():
            self.figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), handletextpad=0.5)

    def svg(self) -> str:
        """The SVG element, to stand in a page."""
        made = io.BytesIO()
        with self._style():
            self.figure.savefig(
                made, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
            )
        root = ET.fromstring(made.getvalue())  # noqa: S314 - matplotlib wrote it just now
        for metadata in root.findall(f"{{{_SVG}}}metadata"):
            root.remove(metadata)
        self._entitle(root)
        _tidy(root)
        width, height = (float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height"))
        root.attrib |= {"role": "img", "aria-label": printable(self.told), "style": f"min-width:{min(width, 560):.0f}px;max-width:{width:.0f}px;aspect-ratio:{width:.0f}/{height:.0f}"}  # fmt: skip
        ET.register_namespace("", _SVG)
        text = ET.tostring(root, encoding="unicode")
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var({variable})")
        return text

    def _entitle(self, root: ET.Element) -> None:
        for element in root.iter():
            titles = self.titles.get(element.get("id", ""))
            if titles is None:
                continue
            # A collection has one <use> for each of its points, in order.
            points = [element] if len(titles) == 1 else list(element.iter(f"{{{_SVG}}}use"))
            for point, title in zip(points, titles, strict=True):
                told = ET.Element(f"{{{_SVG}}}title")
                told.text = printable(title)
                point.insert(0, told)


def _tidy(root: ET.Element) -> None:
    """What the page does not need: identifiers that nothing refers to, the font, digits below a hundredth of a pixel."""
    used = set()
    for element in root.iter():
        if _XLINK in element.attrib:
            element.set("href", element.attrib.pop(_XLINK))
        used.update(re.findall(r"#([\w-]+)", " ".join(element.attrib.values())))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for name in ("d", "x", "y", "transform"):
            if name in element.attrib:
                shorter = re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name])
                element.set(name, " ".join(shorter.split()))
        if "style" in element.attrib:
            kept = re.sub(
                r"(stroke-linejoin|stroke-linecap|stroke-miterlimit|font-family|font): ?[^;]*;? ?",
                _sized,
                element.attrib["style"],
            )
            element.set("style", kept.strip().removesuffix(";"))


def _sized(declaration: re.Match[str]) -> str:
    """Of a font its size and weight alone: the family is the page's."""
    size = re.search(r"[\d.]+px", declaration[0])
    if not declaration[1].startswith("font") or size is None:
        return ""
    weight = "font-weight: 600; " if "bold" in declaration[0] or "700" in declaration[0] else ""
    return f"{weight}font-size: {size[0]}; "
