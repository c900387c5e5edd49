"""What all figures share: the palette, axes in its style, and tips that are tooltips in an SVG."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from qsdm.store.files import replace

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

PALETTE = {
    "ours": "#3b76f6",
    "steps": "#c2418f",
    "uniform": "#e8912d",
    "random": "#8b93a1",
    "full": "#2aa876",
    "greedy": "#2aa876",
    "greedy_error": "#b8860b",
    "candidates": "#c2418f",
    "harm": "#e0533d",
}
"""Mid-tones that can be read on light and on dark grounds."""

SHADES = {
    2: ("#c2418f", "#a3336f", "#dd86b7"),
    3: ("#e8912d", "#d9662b", "#f3b562"),
    4: ("#3b76f6", "#6d5bd0", "#7fb2f7"),
    8: ("#2aa876", "#1d7f58", "#76cdaa"),
}
"""Methods by their bits."""

INK = "#5d6679"  # of text and axes; in a page it becomes the color of the text around the figure
GRID = "#8b93a1"
WIDTH_IN = 8.0  # a figure in a notebook or a file
FONT_PT = {"label": 9, "tick": 8, "note": 7.5}
DOTS_PER_INCH = 110  # of PNG files

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_TIPS = "tips:"


def canvas(
    width: float = WIDTH_IN, height: float = 4.5, columns: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """Make an empty figure that belongs to no window and to no global state.

    Args:
        width: in inches.
        height: in inches.
        columns: number of axes, side by side.
        rows: number of axes, one above the other.

    Returns:
        The figure and its axes, row by row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
    every = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(labelsize=FONT_PT["tick"], color=INK, labelcolor=INK)
        axes.grid(color=GRID, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.patch.set_visible(False)
    return figure, every


def title(axes: Axes, x: str = "", y: str = "", above: str = "") -> None:
    """Name the axes.

    Args:
        axes: whose names they are.
        x: of the horizontal axis.
        y: of the vertical axis.
        above: of both, over them.
    """
    axes.set_xlabel(x, fontsize=FONT_PT["label"], color=INK)
    axes.set_ylabel(y, fontsize=FONT_PT["label"], color=INK)
    if above:
        axes.set_title(above, loc="right", fontsize=FONT_PT["label"], color=INK)


def legend(axes: Axes, corner: str = "") -> None:
    """Put a legend above the axes, in as many columns as fit, without hiding a mark.

    Args:
        axes: whose marks have labels.
        corner: for example lower right: where to put it if other axes stand beside these.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles, labels = axes.get_legend_handles_labels()
    look: dict[str, Any] = {
        "frameon": False,
        "fontsize": FONT_PT["tick"],
        "labelcolor": INK,
        "borderaxespad": 0.2,
        "columnspacing": 1.2,
    }
    label_pt = FONT_PT["tick"] * (0.62 * max(map(len, labels), default=0) + 5)
    columns = int(figure.get_figwidth() * 72 / len(figure.axes) / label_pt)
    rows_first = look | {"ncols": max(1, min(columns, len(labels)))}
    if len(figure.axes) == 1:
        figure.legend(handles, labels, **rows_first | {"loc": "outside upper left"})
    elif corner:
        axes.legend(handles, labels, **look | {"loc": corner})
    else:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
        axes.legend(handles, labels, **rows_first | above)


def fit(names: Sequence[str], width: float) -> list[str]:
    """Shorten names in the middle: as labels of an axis they leave half of it to the marks.

    Args:
        names: of bars.
        width: of the axes, in inches.

    Returns:
        Names, in the same order; equal ones get invisible marks, so that their bars stay apart.
    """
    most = max(12, int(0.42 * width / (0.56 * FONT_PT["tick"] / 72)))
    head = most // 2 - 1
    texts = [
        name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}" for name in names
    ]
    return [text + "\u200b" * texts[:i].count(text) for i, text in enumerate(texts)]


def diverging() -> Colormap:
    """Make the color map of harms: green below zero, nearly transparent at zero, red above.

    Returns:
        A color map of matplotlib.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colors = [PALETTE["full"], f"{GRID}1f", PALETTE["harm"]]
    return LinearSegmentedColormap.from_list("harm", colors, N=65)


def tip(artist: Artist, texts: Sequence[str]) -> None:
    """Attach what a reader sees who points at a mark; it shows in `svg` only.

    Args:
        artist: a collection, or one patch.
        texts: one for each of its marks, in their order.
    """
    artist.set_gid(_TIPS + json.dumps(list(texts)))


def png(figure: Figure) -> bytes:
    """Render a figure on white.

    Args:
        figure: of this package.

    Returns:
        The contents of a PNG file.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=1.5 * DOTS_PER_INCH)
    return buffer.getvalue()


def write(path: Path, figure: Figure) -> None:
    """Write a figure as PNG.

    Args:
        path: of the file.
        figure: of this package.

    Raises:
        StoreError: it cannot be written.
    """
    contents = png(figure)
    replace(path, lambda partial: partial.write_bytes(contents))


def svg(figure: Figure, name: str) -> str:
    """Render a figure as an SVG element for a page: text is text, ink has the color of the page.

    Args:
        figure: of this package.
        name: of the figure, for those who do not see it; makes the ids unique in a page.

    Returns:
        The element; equal figures give equal texts.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    figure.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        # `savefig` would draw everything twice, the first time for a bounding box.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    figure.patch.set_visible(True)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _title_marks(root)
    _drop_unused_ids(root)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": name}
    for element in root.iter():
        for key in {"d", "x", "y", "transform"}.intersection(element.keys()):
            element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", element.get(key, "")).replace("\n", ""))
        if style := element.get("style"):
            element.set(
                "style", re.sub(r"font-family: [^;]*;? ?", "", style.replace(INK, "currentColor"))
            )
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Remove what a page has no use for; a style in it would count for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _title_marks(root: ElementTree.Element) -> None:
    """Turn the tips that `tip` attached into titles of the marks."""
    shapes = {f"{{{_SVG}}}use", f"{{{_SVG}}}path"}
    for group in root.iter():
        if not group.get("id", "").startswith(_TIPS):
            continue
        texts = json.loads(group.attrib.pop("id")[len(_TIPS) :])
        symbols = {id(shape) for defs in group.iter(f"{{{_SVG}}}defs") for shape in defs.iter()}
        marks = [mark for mark in group.iter() if mark.tag in shapes and id(mark) not in symbols]
        assert len(marks) == len(texts), f"{len(texts)} tips for {len(marks)} marks"
        for mark, text in zip(marks, texts, strict=True):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = text


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Keep the ids that something refers to: others would stand in a page twice."""
    references: set[str] = set()
    for element in root.iter():
        for value in element.attrib.values():
            references.update(re.findall(r"#([\w-]+)", value))
    for element in root.iter():
        if element.get("id") not in references:
            element.attrib.pop("id", None)


def short(value: Any) -> str:
    """Format a number for a tip, with four significant digits.

    Args:
        value: a number.

    Returns:
        Text.
    """
    return f"{value:.4g}"
