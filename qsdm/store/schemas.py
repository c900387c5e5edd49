"""What the JSON artifacts hold, and which command writes each.

Content with a type of its own is declared in `qsdm.graph`, `qsdm.qconfig` and `qsdm.outcome`; the
rest stays plain data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

from qsdm.graph import SCHEMA as GRAPH_SCHEMA
from qsdm.graph import Graph, canonical
from qsdm.outcome import Objective
from qsdm.qconfig import SCHEMA as CONFIGURATION_SCHEMA
from qsdm.qconfig import SCHEMA_OF_ACTIVATIONS, SCHEMA_OF_STEPS, QuantConfig
from qsdm.store.artifacts import Artifact, typed
from qsdm.store.files import decode

Numbers = dict[str, float | None]


class ConfigurationFile(TypedDict):
    """A `qsdm.qconfig.QuantConfig`."""

    schema: str
    denoiser: str
    methods: dict[str, str]


class Costs(TypedDict):
    """Costs of one configuration, see `qsdm.qconfig.cost`."""

    avg_bits: float
    size_bytes: int


class Point(Costs):
    """A predicted configuration: mean, and standard deviation of what measuring it would give."""

    predicted: float
    std: float


class FrontPoint(Point):
    """A point of the front, with its configuration, and predictions of limits and axes."""

    qconfig: ConfigurationFile
    metrics: NotRequired[dict[str, float]]


class Baseline(TypedDict):
    """The front that another strategy reached."""

    hypervolume: float
    points: list[Point]


class Proposal(Point):
    """A configuration that a round has proposed, and what it measured; None if it was set aside."""

    digest: str
    measured: float | None


class RoundReport(TypedDict):
    """What one round has brought; see `qsdm.measurement.rounds`."""

    proposals: list[Proposal]
    num_images: int
    optimism: float | None
    optimism_error: float | None
    volume: float
    gain: float
    gain_error: float | None
    front: list[tuple[float, float]]


class RoundsReport(TypedDict):
    """The rounds of a search, and the front that was measured before them."""

    avg_bits: float | None
    front: list[tuple[float, float]]
    volume: float
    rounds: list[RoundReport]


class Rounds(TypedDict):
    """search/<space>-rounds.json: what each round has proposed, written before it is measured."""

    denoiser: str
    space: str
    objective: dict[str, float]
    fidelity: NotRequired[str | None]
    protocol: str
    rounds: list[list[FrontPoint]]
    provenance: NotRequired[dict[str, Any]]


class ConstraintsFile(TypedDict):
    """See `qsdm.strategies.constraints.Constraints`."""

    budget: dict[str, float]
    limit: dict[str, float]
    pin: dict[str, str]
    forbid: list[str]
    target: str | None
    lora: NotRequired[str | None]


class Front(TypedDict):
    """search/<space>.json, see `qsdm.search`."""

    denoiser: str
    space: str
    objective: dict[str, float]
    strategy: dict[str, str | int | float | bool | None]
    seed: int
    evaluations: int
    kappa: float
    fidelity: NotRequired[str | None]
    constraints: NotRequired[ConstraintsFile]
    axes: NotRequired[list[str]]
    num_evaluations: int
    points: list[FrontPoint]
    baselines: dict[str, Baseline]
    hypervolume: dict[str, float]
    rounds: NotRequired[RoundsReport | None]
    provenance: NotRequired[dict[str, Any]]


class Row(Costs):
    """One measured configuration of the final table."""

    name: str
    metrics: Numbers
    standard_errors: NotRequired[Numbers]
    num_images: int
    qconfig: str


class Candidate(Row):
    """A configuration of the front that was measured, with its predicted label."""

    predicted: float


class MetricAbout(TypedDict):
    """What a table shows of a metric."""

    label: str
    larger_is_better: bool
    digits: int


class ActivationRow(Costs):
    """A configuration of weights under one width of activations; 16: they are not rounded."""

    name: str
    activations: int
    tera_bops: float
    metrics: Numbers
    standard_errors: Numbers
    qconfig: str


class ActivationDifference(TypedDict):
    """Metrics of ``second`` minus those of ``first``, with their paired standard errors.

    Both are the name and the width of a row.
    """

    first: list[str | int]
    second: list[str | int]
    metrics: dict[str, list[float | None]]


class ActivationTable(TypedDict):
    """What activations of fewer bits do to configurations, see `qsdm.measurement.rounded`."""

    bits: list[int]
    rows: list[ActivationRow]
    differences: list[ActivationDifference]


class StepRow(TypedDict):
    """What quantization within one bin of a sampler's steps does.

    ``differences`` are from full precision, with their paired standard errors.
    """

    name: str
    start: float
    stop: float
    num_steps: int
    metrics: Numbers
    standard_errors: Numbers
    differences: dict[str, list[float | None]]
    qconfig: str


class StepTable(TypedDict):
    """steps.json, see `qsdm.probing.steps`; the last row is of all steps."""

    denoiser: str
    protocol: dict[str, Any]
    qconfig: dict[str, Any]
    full: Numbers
    rows: list[StepRow]


class ChosenBin(TypedDict):
    """A bin of steps, its share of what quantization costs, and the bits that apply there."""

    name: str
    start: float
    stop: float
    share: float
    avg_bits: float
    qconfig: str


class StepChoice(TypedDict):
    """Two configurations over the sampler's steps, see `qsdm.measurement.bins`."""

    why: str
    bins: list[ChosenBin]
    candidates: list[Candidate]


class Lora(TypedDict):
    """lora/<adapter>-<protocol>-<steps>.json, see `qsdm.measurement.retention`.

    By a configuration's digest, what it retains of a LoRA's effect, and its standard error.
    """

    denoiser: str
    file: str
    protocol: str
    seed_set: int
    num_images: int
    num_steps: int
    retention: dict[str, tuple[float, float]]
    provenance: NotRequired[dict[str, Any]]


class Summary(TypedDict):
    """summary.json, see `qsdm.realize`."""

    denoiser: str
    space: str
    objective: dict[str, float]
    max_avg_bits: float
    constraints: NotRequired[ConstraintsFile]
    why: NotRequired[str]
    num_images: int
    seed_set: int
    label_seed_set: int
    protocol: dict[str, Any]
    metrics: NotRequired[dict[str, MetricAbout]]
    rows: list[Row]
    candidates: list[Candidate]
    differences: NotRequired[dict[str, dict[str, tuple[float, float | None]]]]
    activations: NotRequired[ActivationTable]
    steps: NotRequired[StepChoice]
    checkpoint: NotRequired[dict[str, int]]
    provenance: NotRequired[dict[str, Any]]


class Spread(TypedDict):
    """A score of every fold, its mean and standard deviation."""

    mean: float
    std: float
    folds: list[float]


class Scores(TypedDict):
    """Scores of a predictor on held-out labels, see `qsdm.predictor.scores`."""

    srcc: Spread
    ndcg_at_10: Spread


class Noise(TypedDict):
    """Noise of labels, see `qsdm.measurement.labels.noise`."""

    halves: float
    reliability: float
    ceiling: float
    halves_low: NotRequired[float]
    halves_high: NotRequired[float]


class TestSet(TypedDict):
    """A predictor's rank correlations on labels of another seed set."""

    seed_set: int
    num_images: int
    num_configs: int
    srcc: dict[str, float]
    noise: Noise | None


class Agreement(TypedDict):
    """Rank correlation of two test sets' labels."""

    sets: list[tuple[int, int]]
    srcc: float


class TestReport(TypedDict):
    """All test sets, and how well each two agree."""

    sets: list[TestSet]
    between: list[Agreement]


class HeldOut(TypedDict):
    """Digests and labels of the configurations of all folds; other lists are predictions."""

    qconfig: list[str]
    measured: list[float]


class PredictorReport(TypedDict):
    """predictor/<space>/report.json, see `qsdm.train`."""

    denoiser: str
    space: str
    objective: dict[str, float]
    predictor: dict[str, str | int | float | bool]
    seed: int
    seed_set: int
    protocol: str
    num_outcomes: int
    cheap: dict[str, float] | None
    seconds: float
    epochs: list[int]
    scores: dict[str, Scores]
    noise: Noise | None
    test: TestReport | None
    held_out: dict[str, list[str | float]]
    provenance: NotRequired[dict[str, Any]]


class SensitivityFile(TypedDict):
    """The scores of one attribution, see `qsdm.sensitivity.Sensitivity`."""

    weights: list[str]
    methods: list[str]
    scores: list[list[float | None]]
    attribution: str
    faithfulness: dict[str, float]


class Intervention(TypedDict):
    """A weight quantized alone: its harm as measured and as attributed."""

    weight: str
    method: str
    measured: float
    integrated_gradients: float


class Group(TypedDict):
    """A role, an op or a block, see `qsdm.sensitivity.tables.table`."""

    name: str
    num_weights: int
    share_of_values: float
    integrated_gradients: float
    per_weight: float
    to_full: float
    from_full: float
    hops: float


class Completeness(TypedDict):
    """Predicted harm of a whole configuration, and its gap to the sum of the attributions."""

    harm: float
    gap: float


class FullPrecision(TypedDict):
    """The label of full precision."""

    predicted: float
    measured: float | None


class Sensitivities(TypedDict):
    """sensitivity/<space>.json, see `qsdm.attribute`."""

    denoiser: str
    space: str
    objective: dict[str, float]
    attribution: dict[str, int]
    sensitivities: dict[str, SensitivityFile]
    hops: dict[str, dict[str, float]]
    interventions: list[Intervention]
    tables: dict[str, list[Group]]
    completeness: Completeness
    full_precision: FullPrecision
    provenance: NotRequired[dict[str, Any]]


class MeasuredCurve(TypedDict):
    """Harm along one order of restoring weights, see `qsdm.sensitivity.curves`."""

    order: str
    direction: str
    number: int
    area: float
    harms: list[float]
    errors: list[float] | None


class AreaGain(TypedDict):
    """How the area of another order differs from that of the attributions.

    ``gain`` is positive and ``sign`` 1 where the attributions are better; ``sign`` is 0 where the
    95 % interval includes 0.
    """

    order: str
    direction: str
    value: float
    standard_error: float | None
    gain: float
    sign: int


class Condition(TypedDict):
    """A part of the certificate's rule; ``holds`` is None where it was not tried."""

    condition: str
    holds: bool | None


class Certificate(TypedDict):
    """sensitivity/<space>-certificate.json, see `qsdm.sensitivity.certificate`."""

    denoiser: str
    space: str
    objective: dict[str, float]
    attributions: str
    method: str
    options: dict[str, int | str | None]
    protocol: dict[str, Any]
    counts: list[int]
    curves: list[MeasuredCurve]
    differences: list[AreaGain]
    folds: list[float]
    label_counts: list[tuple[int, float]]
    shuffled: list[float]
    conditions: list[Condition]
    holds: bool
    provenance: NotRequired[dict[str, Any]]


class MeasuredChange(TypedDict):
    """Quality after a swap minus quality before, on the same captions and noise."""

    value: float
    low: float | None
    high: float | None
    num_images: int


class Swap(TypedDict):
    """Another method of one weight: its bytes, and the change of quality (positive is better).

    The interval is that of the folds' predictions.
    """

    method: str
    is_full: bool
    size_bytes: int
    predicted: float
    low: float
    high: float
    measured: MeasuredChange | None


class Alone(TypedDict):
    """Measured harm of a weight that was quantized alone."""

    method: str
    harm: float
    low: float | None
    high: float | None
    num_images: int


class CardInteraction(TypedDict):
    """A confirmed pair: the weight's part, the other part, and harm beyond the sum of both."""

    own: list[str]
    other: list[str]
    excess: float
    low: float
    high: float


class CardPictures(TypedDict):
    """A strip of pictures with and without a swap, and the PSNR between them."""

    file: str
    swap: str
    num_images: int
    psnr: float | None


class CardLora(TypedDict):
    """What is left of a LoRA's effect where a weight alone is quantized."""

    file: str
    method: str
    retention: float
    half_width: float
    num_images: int
    rank: int


class Card(TypedDict):
    """Why a weight has its method, see `qsdm.sensitivity.cards`."""

    weight: str
    op: str
    role: str
    block: str
    shape: list[int]
    share_of_values: float
    method: str
    bits: int
    size_bytes: int
    saved_bytes: int
    swaps: list[Swap]
    runner_up: str | None
    attribution: float | None
    attribution_rank: int
    num_weights: int
    hops: list[float]
    hop_rank: int | None
    probe: dict[str, float | str | int] | None
    alone: list[Alone]
    interactions: list[CardInteraction]
    pictures: CardPictures | None
    lora: NotRequired[CardLora]


class Why(TypedDict):
    """why/<configuration>.json, see `qsdm.why`: cards of the weights that were asked for.

    ``certified`` tells whether pictures confirm the attributions; None if that was not measured.
    """

    denoiser: str
    space: str
    objective: dict[str, float]
    qconfig: str
    predicted: float
    price: float | None
    certified: bool | None
    cards: list[Card]
    provenance: NotRequired[dict[str, Any]]


class Contestant(TypedDict):
    """One pipeline of a comparison: its metrics, and what its pictures took.

    ``per_drawing`` holds, by metric of fidelity, a value for each drawing.
    """

    name: str
    protocol: dict[str, Any]
    metrics: Numbers
    standard_errors: Numbers
    per_drawing: dict[str, list[float]]
    size_bytes: int | None
    picture_s: float
    load_s: float
    peak_bytes: int | None
    device: str


class PairedDifference(TypedDict):
    """A metric of ``second`` minus that of ``first``, with its 95 % interval."""

    first: str
    second: str
    metric: str
    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    verdict: str


class Caption(TypedDict):
    """A drawing that changed much: metrics of fidelity by pipeline and name."""

    number: int
    caption: str
    values: dict[str, dict[str, float]]


class Limit(TypedDict):
    """What was demanded of a metric, and what a pipeline has."""

    pipeline: str
    metric: str
    limit: float
    value: float
    kept: bool


class Comparison(TypedDict):
    """compare.json, see `qsdm.compare`; the first pipeline is the reference."""

    num_images: int
    seed_set: int
    metrics: dict[str, MetricAbout]
    fidelity: list[str]
    pipelines: list[Contestant]
    differences: list[PairedDifference]
    captions: list[Caption]
    limits: list[Limit]
    provenance: dict[str, Any]


def digest_of_attributions(sensitivities: Mapping[str, Any]) -> str:
    """Name the attributions that a certificate is about.

    Args:
        sensitivities: contents of the sensitivity file.

    Returns:
        A digest of the scores.
    """
    gradients = sensitivities["sensitivities"]["integrated_gradients"]
    scores = {name: gradients[name] for name in ("weights", "methods", "scores")}
    return hashlib.sha256(canonical(scores)).hexdigest()


def _front(data: Any) -> Front:
    if isinstance(data, dict) and "budget" in data:  # as qsdm 0.2 spelled it
        data = {**data, "evaluations": data["budget"]}
        if data.get("max_bits") is not None:
            budget = {"avg_bits": data["max_bits"]}
            data["constraints"] = {
                "budget": budget,
                "limit": {},
                "pin": {},
                "forbid": [],
                "target": None,
            }
    front = decode(data, Front)
    for i, point in enumerate(front["points"]):
        _check(f"$.points[{i}].qconfig", QuantConfig.from_json, point["qconfig"])
    _check("$.objective", Objective, front["objective"])
    return front


def _rounds(data: Any) -> Rounds:
    journal = decode(data, Rounds)
    for r, points in enumerate(journal["rounds"]):
        for i, point in enumerate(points):
            where = f"$.rounds[{r}][{i}].qconfig"
            _check(where, QuantConfig.from_json, point["qconfig"])
    return journal


def _sensitivities(data: Any) -> Sensitivities:
    report = decode(data, Sensitivities)
    for name, sensitivity in report["sensitivities"].items():
        num_weights, num_methods = len(sensitivity["weights"]), len(sensitivity["methods"])
        scores = sensitivity["scores"]
        if len(scores) != num_weights or {len(row) for row in scores} - {num_methods}:
            raise ValueError(
                f"wanted a score for each of {num_weights} weights and {num_methods} methods "
                f"at `$.sensitivities.{name}.scores`"
            )
    return report


def _report(data: Any) -> PredictorReport:
    report = decode(data, PredictorReport)
    decode(report["held_out"], HeldOut)
    lengths = {name: len(values) for name, values in report["held_out"].items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"wanted lists of one length at `$.held_out`, got {lengths}")
    return report


def _check(path: str, build: Callable[[Any], object], data: object) -> None:
    """Build an object for its errors, and add to them where in the file it is."""
    try:
        build(data)
    except ValueError as error:
        raise ValueError(f"{error} at `{path}`") from error


GRAPH = Artifact(GRAPH_SCHEMA, "trace", Graph.from_json)
CHOSEN = Artifact(
    CONFIGURATION_SCHEMA,
    "realize",
    QuantConfig.from_json,
    by_hand=True,
    later=(SCHEMA_OF_ACTIVATIONS,),
)
CHOSEN_STEPS = Artifact(SCHEMA_OF_STEPS, "realize", QuantConfig.from_json, by_hand=True)
FRONT = Artifact("qsdm/front/1", "search", _front)
ROUNDS = Artifact("qsdm/rounds/1", "search", _rounds)
SUMMARY: Artifact[Summary] = Artifact("qsdm/summary/1", "realize", typed(Summary))
STEPS_FILE = "steps.json"
STEPS: Artifact[StepTable] = Artifact("qsdm/steps/1", "probe", typed(StepTable))
LORA: Artifact[Lora] = Artifact("qsdm/lora/1", "probe", typed(Lora))
REPORT = Artifact("qsdm/predictor-report/1", "train", _report)
SENSITIVITIES = Artifact("qsdm/sensitivities/1", "attribute", _sensitivities)
CERTIFICATE: Artifact[Certificate] = Artifact("qsdm/certificate/1", "attribute", typed(Certificate))
WHY: Artifact[Why] = Artifact("qsdm/why/1", "why", typed(Why))
COMPARISON: Artifact[Comparison] = Artifact("qsdm/comparison/1", "compare", typed(Comparison))
