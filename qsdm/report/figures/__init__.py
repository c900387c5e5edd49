"""Every figure of qsdm, once: for the page, the notebooks, the README and W&B.

    rounds      `rounds` of a search: the measured front after each
    quality     quality against size: `search`, `measured`, `front` (both), `mix`, `pictures`
    harm        `sensitivity` by group, `heat` by weight and method, `interventions`
    certificate of the attributions: measured harm while weights are restored
    labels      `predictor`, `bits`
    structure   of a graph: `graph`, `weights`
    steps       `steps`: what each bin of a sampler's steps suffers
    comparison  of pipelines: `per_drawing`
    canvas      the palette and the style; `png`, `write`, and `svg`, in which marks have tooltips

A figure is a matplotlib ``Figure`` that belongs to no window. One whose data is missing raises
`qsdm.report.results.NotRun`, which names the command that makes it.

Example:
    >>> from qsdm.graph import Graph, Node, Op, Role, Weight
    >>> from qsdm.report import figures
    >>> node = Node("proj", Op.LINEAR, Role.FF_IN, weight=Weight("proj", "proj.weight", (8, 4)))
    >>> figure = figures.weights(Graph("tiny", (node,), ()))
    >>> figures.png(figure)[1:4]
    b'PNG'
"""

from qsdm.report.figures.canvas import PALETTE, png, svg, write
from qsdm.report.figures.certificate import certificate
from qsdm.report.figures.comparison import per_drawing
from qsdm.report.figures.harm import heat, interventions, sensitivity
from qsdm.report.figures.labels import bits, predictor
from qsdm.report.figures.quality import front, measured, mix, pictures, search
from qsdm.report.figures.rounds import rounds
from qsdm.report.figures.steps import steps
from qsdm.report.figures.structure import graph, weights

__all__ = [
    "PALETTE",
    "bits",
    "certificate",
    "front",
    "graph",
    "heat",
    "interventions",
    "measured",
    "mix",
    "per_drawing",
    "pictures",
    "png",
    "predictor",
    "rounds",
    "search",
    "sensitivity",
    "steps",
    "svg",
    "weights",
    "write",
]
