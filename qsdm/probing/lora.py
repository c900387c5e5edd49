"""What is left of a LoRA's effect where one weight alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qsdm.measurement.retention import in_percent
from qsdm.qconfig import QuantConfig, QuantMethod, Space

if TYPE_CHECKING:
    from qsdm.measurement.paired import Difference
    from qsdm.measurement.retention import Retaining

ROWS = 8  # weights that are listed


def alone(space: Space, methods: Sequence[QuantMethod]) -> dict[tuple[str, str], QuantConfig]:
    """Quantize each weight alone.

    Args:
        space: of the weights.
        methods: each weight has each of them, or its substitute where it is not on offer.

    Returns:
        Configurations by the weight's name and the method's.
    """
    uniform = [space.uniform(method).methods for method in methods]
    return {
        (name, str(method)): QuantConfig(space.graph.denoiser, {name: method})
        for one in uniform
        for name, method in one.items()
    }


def probe_lora(
    retaining: Retaining,
    methods: Sequence[QuantMethod],
    plan: bool,
    tell: Callable[[str], None],
) -> Mapping[str, Difference]:
    """Measure what is left of a LoRA's effect under each weight alone, and under all together.

    Args:
        retaining: measures it.
        methods: each weight is probed under each of them.
        plan: only tell what is missing.
        tell: prints a text.

    Returns:
        Retention by a configuration's digest; nothing with a plan.

    Raises:
        EvaluationError: an output is not finite, or the adapter has no effect.
    """
    space = retaining.ready.space
    whole = {str(method): space.uniform(method) for method in methods}
    single = alone(space, methods)
    qconfigs = [*whole.values(), *single.values()]
    missing = len(retaining.missing(qconfigs))
    forwards = 2 * missing * retaining.num_steps
    tell(
        f"plan: {missing:,} probes x {retaining.num_steps} time steps, with the LoRA and without = "
        f"{forwards:,} forwards of {retaining.protocol.num_images} drawings; no picture"
    )
    if plan:
        return {}
    measured = retaining.measure(qconfigs)
    for name, qconfig in whole.items():
        kept = in_percent(measured[qconfig.digest])
        tell(f"{name} for all weights retains {kept} of the adapter's effect")
    ordered = sorted(single.items(), key=lambda pair: measured[pair[1].digest].value)
    for (weight, method), qconfig in ordered[:ROWS]:
        tell(f"  {in_percent(measured[qconfig.digest]):>16}  {weight} alone under {method}")
    return measured
