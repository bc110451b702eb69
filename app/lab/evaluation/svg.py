"""One SVG element from one matplotlib figure, fit for inlining in HTML.

An inlined SVG shares its page's ids and style rules, so ids carry the chart's name and rules
become attributes. Colours are CSS variables (`--chart-1` to `--chart-6`, `--chart-grid`,
`--chart-paper`) with a fallback, and ink is `currentColor`: a page can be dark without a second
set of pictures. Hues are those of Okabe & Ito ("Color Universal Design", 2008), which people who
are colour-blind tell apart; line styles differ as well, for print without colour.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
Dash = tuple[float, tuple[float, ...]] | Literal["solid"]
DASHES: tuple[Dash, ...] = ("solid", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
INK, GRID, PAPER = "#000000", "#c8c8c8", "#ffffff"
_THEME = {colour: f"var(--chart-{n}, {colour})" for n, colour in enumerate(COLOURS, start=1)} | {
    INK: "currentColor",
    GRID: f"var(--chart-grid, {GRID})",
    PAPER: f"var(--chart-paper, {PAPER})",
}
_SIZE_INCHES = (6.4, 4.2)
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;")
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(slots=True)
class Chart:
    """One chart while it is drawn. `name` makes its ids; `title` and `summary` are read aloud."""

    name: str
    title: str
    summary: str
    figure: Figure
    axes: Axes
    legend: list[tuple[Artist, str]] = field(default_factory=list)

    def add(self, handle: Artist, label: str) -> None:
        """Name an artist in the legend. XML cannot hold control characters, so they go."""
        self.legend.append((handle, "".join(c for c in label if c.isprintable())))

    def svg(self) -> str:
        """The finished chart; its legend stands above, where it hides nothing."""
        self.axes.grid(visible=True, color=GRID, linewidth=0.6)
        self.axes.set_axisbelow(True)
        self.axes.spines[["top", "right"]].set_visible(False)
        if self.legend:
            handles, labels = [item for item, _ in self.legend], [text for _, text in self.legend]
            self.figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        written = io.StringIO()
        self.figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
        return _inlined(written.getvalue(), self)


@contextmanager
def drawing(name: str, title: str, summary: str) -> Iterator[Chart]:
    """A new chart under our settings, whatever the user's matplotlibrc says, and only here."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["svg.hashsalt"] = name
        # Text stays text, to be read aloud, searched and set in the page's font; none is TeX.
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["text.parse_math"] = False
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        yield Chart(name, title, summary, figure, figure.add_subplot())


def _inlined(written: str, chart: Chart) -> str:
    """Matplotlib's document as one element: scalable, themed, named, with ids of its own."""
    root = ET.fromstring(written)  # noqa: S314 - matplotlib has written it just now
    for defs in root.findall(f"{_SVG}defs"):
        for rules in defs.findall(f"{_SVG}style"):
            defs.remove(rules)
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _make_own(element, chart.name)
    view = root.attrib["viewBox"]
    root.attrib = {
        "xmlns": _SVG.strip("{}"),
        "viewBox": view,
        "role": "img",
        "aria-labelledby": f"{chart.name}-title {chart.name}-summary",
        "style": "stroke-linejoin: round; stroke-linecap: butt; fill: currentColor",
    }
    for n, (tag, text) in enumerate((("title", chart.title), ("desc", chart.summary))):
        element = ET.Element(tag, id=f"{chart.name}-{('title', 'summary')[n]}")
        element.text = text
        root.insert(n, element)
    return ET.tostring(root, encoding="unicode")


def _make_own(element: ET.Element, name: str) -> None:
    """Prefix ids and what refers to them; drop the namespaces, which HTML does not know."""
    element.tag = element.tag.removeprefix(_SVG)
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{_XLINK}href":
            del element.attrib[key]
            element.set("href", f"#{name}-{value.removeprefix('#')}")
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == "style":
            themed = _COLOUR.sub(lambda match: _THEME.get(match[0], match[0]), value)
            element.set(key, _FONT_FAMILY.sub("", themed))
