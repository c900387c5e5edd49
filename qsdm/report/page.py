"""One self-contained HTML page of a denoiser's results, with nothing from the network.

A section is left out where its data is missing. Figures are those of `qsdm.report.figures`, as SVG
elements in two widths, of which a browser shows the one that fits. Pictures are the PNG files of
the store's ``pictures/``, named like the measured rows: the page shows fp, the uniform 4-bit and
3-bit configurations, and ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm.report import cards, figures, sections
from qsdm.report.parts import part_table
from qsdm.report.results import NotRun, Results
from qsdm.report.steps import step_table
from qsdm.report.summary import activation_table, descriptions, sentence, step_sentence
from qsdm.store.files import write_text

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html.j2")
STYLE = Path(__file__).with_name("style.css")
WIDE_IN, HALF_IN, NARROW_IN = 10.6, 5.1, 3.6  # of figures on a desk, beside another, on a phone


def _harms(kind: str) -> Callable[[Results, float], Figure]:
    return lambda results, width: figures.sensitivity(results, [kind], width)


FIGURES: dict[str, tuple[Callable[[Results, float], Figure], float]] = {
    "measured": (figures.measured, WIDE_IN),
    "search": (figures.search, WIDE_IN),
    "rounds": (figures.rounds, WIDE_IN),
    "mix": (figures.mix, WIDE_IN),
    "role": (_harms("role"), HALF_IN),
    "op": (_harms("op"), HALF_IN),
    "block": (_harms("block"), HALF_IN),
    "heat": (figures.heat, WIDE_IN),
    "alone": (figures.interventions, WIDE_IN),
    "certificate": (figures.certificate, WIDE_IN),
    "predictor": (figures.predictor, HALF_IN),
    "bits": (figures.bits, HALF_IN),
}
"""Figures of the page by their names in the template, with their widths on a desk in inches."""


def write(path: Path, results: Results) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        results: of a denoiser.

    Raises:
        StoreError: it cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from qsdm.report import page, results
        >>> with TemporaryDirectory() as folder:
        ...     page.write(Path(folder, "report.html"), results.Results("emoji_unet"))
        ...     Path(folder, "report.html").read_text()[:15]
        '<!doctype html>'
    """
    write_text(path, render(results))


def render(results: Results) -> str:
    """Make the page.

    Args:
        results: of a denoiser.

    Returns:
        HTML.
    """
    from qsdm import __version__

    return template(TEMPLATE).render(
        denoiser=results.denoiser,
        heading=sentence(results.summary) or f"{results.denoiser}: what each layer can bear",
        tiles=sections.tiles(results),
        pictures=sections.pictures(results),
        table=sections.table(results),
        activations=activation_table(results.summary),
        parts=part_table(results.parts),
        steps=step_table(results.steps, descriptions(results.summary)),
        stepped=step_sentence(results.summary),
        charts=dict.fromkeys(FIGURES) | dict(_drawn(results)),
        search_hint=sections.search_hint(results.front),
        rounds=sections.rounds(results.front),
        rounds_hint=sections.rounds_hint(results.front),
        sensitivity_hint=sections.sensitivity_hint(results.sensitivity),
        alone_hint=sections.alone_hint(results.sensitivity, results.predictor),
        cards=cards.shown(results),
        cards_hint="" if results.why is None else cards.about(results.why),
        certificate_hint=sections.certificate_hint(results),
        certificate_rows=sections.certificate_rows(results),
        certificate_rule=sections.certificate_rule(results),
        predictors=sections.predictors(results.predictor),
        predictor_hint=sections.predictor_hint(results.predictor),
        about=sections.about(results),
        version=__version__,
    )


def template(path: Path) -> jinja2.Template:
    """Read a template of a page, to which the style of all pages is known as ``style``.

    Args:
        path: of the template.

    Returns:
        A template whose variables must all be given.
    """
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = markupsafe.Markup(STYLE.read_text(encoding="utf-8"))
    return environment.from_string(path.read_text(encoding="utf-8"), {"style": style})


def _drawn(results: Results) -> Iterator[tuple[str, dict[str, str]]]:
    """Each figure that has data: its name, and its SVG in two widths."""
    import markupsafe

    for name, (draw, width) in FIGURES.items():
        try:
            pair = {"wide": draw(results, width), "narrow": draw(results, NARROW_IN)}
        except NotRun:
            continue
        yield (
            name,
            {
                key: markupsafe.Markup(figures.svg(figure, f"{name}-{key}"))
                for key, figure in pair.items()
            },
        )
