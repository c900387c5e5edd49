"""What a user allows: a budget, limits of metrics, pinned weights, forbidden methods, an engine.

Pins, forbidden methods and what an engine can hold leave fewer options to each weight: a smaller
space, in which every search works as in any other (`Restriction`). The budget and the limits are
about whole configurations.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.graph import Weight, parts_of
from qsdm.outcome import LORA_RETENTION
from qsdm.qconfig import QuantMethod, Space
from qsdm.store.files import warn_once
from qsdm.strategies import sizes_of
from qsdm.text import require

BUDGETS = ("size_bytes", "avg_bits", "tera_bops")
DEFAULT_BITS = 3.5  # the budget of bytes, where none is given
Holds = Callable[[Weight, QuantMethod], bool]
"""Whether an engine can hold a weight under a method."""


class Infeasible(ValueError):
    """No configuration keeps the constraints; the message says what can be reached."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a configuration must keep.

    Attributes:
        size_bytes: the most bytes of the quantizable weights; None for no limit.
        avg_bits: the most bits per quantizable value, overhead included; None for no limit.
        tera_bops: the most bit operations of a forward, in 10^12; None for no limit.
        limit: worst allowed value by metric.
        pin: method by name of a weight, or by pattern (``*.to_q``).
        forbid: methods that no weight may have: ``uaq-3``, or ``uaq`` for all its bits.
        target: engine that must be able to hold the result; None for qsdm itself.
        lora: file of the adapter that ``limit.lora_retention`` is about.
    """

    size_bytes: float | None = None
    avg_bits: float | None = None
    tera_bops: float | None = None
    limit: Mapping[str, float] = field(default_factory=dict)
    pin: Mapping[str, str] = field(default_factory=dict)
    forbid: tuple[str, ...] = ()
    target: str | None = None
    lora: Path | None = None

    @staticmethod
    def of(
        budget: Mapping[str, float] | None = None,
        limit: Mapping[str, float] | None = None,
        pin: Mapping[str, Any] | Sequence[str] | None = None,
        forbid: Sequence[str] | str = (),
        target: str | None = None,
        lora: Path | None = None,
    ) -> Constraints:
        """Read the values of a command's keys.

        Args:
            budget: ``size_bytes``, ``avg_bits`` and ``tera_bops``, or some of them.
            limit: worst allowed value by metric.
            pin: method by weight or pattern; or texts ``WEIGHT=METHOD``.
            forbid: methods, with or without bits.
            target: name of an engine.
            lora: file of an adapter.

        Returns:
            The constraints.

        Raises:
            ValueError: a name does not exist, or a value is out of range.
        """
        given = dict(budget or {})
        for name, value in given.items():
            if name not in BUDGETS:
                raise ValueError(
                    f"no budget.{name}: give budget.size_bytes=BYTES, budget.avg_bits=BITS or "
                    "budget.tera_bops=OPERATIONS"
                )
            if name == "tera_bops":  # of a small denoiser they are few
                if not _is_number(value) or value <= 0:
                    raise ValueError(f"wanted a positive budget.{name} (got {value!r})")
            elif not _is_number(value) or value < 1:
                raise ValueError(f"wanted budget.{name} of at least 1 (got {value!r})")
        for name, value in (limit or {}).items():
            if not _is_number(value):
                raise ValueError(f"limit.{name}: wanted a finite number (got {value!r})")
        _check_retention((limit or {}).get(LORA_RETENTION), lora)
        methods = (forbid,) if isinstance(forbid, str) else tuple(map(str, forbid))
        pins = pins_of(pin or {})
        for method in pins.values():
            QuantMethod.parse(method)
        return Constraints(
            given.get("size_bytes"),
            given.get("avg_bits"),
            given.get("tera_bops"),
            dict(limit or {}),
            pins,
            methods,
            target,
            lora,
        )

    def max_bytes(self, num_values: int) -> float:
        """The most bytes that a configuration may have, infinite without a budget.

        Args:
            num_values: of the graph's quantizable weights.
        """
        of_bits = math.inf if self.avg_bits is None else self.avg_bits * num_values / 8
        return min(of_bits, math.inf if self.size_bytes is None else self.size_bytes)

    @property
    def budget_text(self) -> str:
        """The budget as it was given, as ``budget.avg_bits=3.5``; empty without one."""
        given = {name: getattr(self, name) for name in BUDGETS}
        return ", ".join(f"budget.{k}={v:g}" for k, v in given.items() if v is not None)

    def restrict(self, space: Space, holds: Holds | None = None) -> Restriction:
        """Leave each weight the options that the constraints allow.

        Args:
            space: W weights and the methods on offer for each.
            holds: whether the target holds a method; None: it holds all.

        Returns:
            The smaller space.

        Raises:
            Infeasible: a weight has no option left, or nothing left fits into the budget.
            ValueError: a pin matches no weight, or a forbidden method is not on offer.
        """
        for text in self.forbid:
            if not any(text in _names(method) for method in space.methods):
                raise ValueError(
                    f"forbid: the space offers no {text!r} "
                    f"(it offers {', '.join(map(str, space.methods))})"
                )
        pinned = matched(self.pin, space)
        columns = []
        for weight, offered in zip(space.graph.weights, space.options, strict=True):
            left = [
                i
                for i, method in enumerate(offered)
                if pinned.get(weight.name, method) == method
                and not _names(method) & set(self.forbid)
                and (holds is None or holds(weight, method))
            ]
            if not left:
                raise Infeasible(self._without_options(weight, offered, pinned, holds))
            columns.append(left)
        restriction = Restriction.of(space, columns)
        self.require_reachable(restriction.space)
        return restriction

    def require_reachable(self, space: Space) -> None:
        """Check that something in a space fits into the budget.

        Args:
            space: as the other constraints leave it.

        Raises:
            Infeasible: nothing does.
        """
        low, high = reach(space)
        num = space.graph.num_values
        if low > self.max_bytes(num):
            raise Infeasible(
                f"{self.budget_text} cannot be met: configurations reach from {8 * low / num:.3f} "
                f"to {8 * high / num:.3f} bits, {low:,} to {high:,} bytes{least_of_parts(space)}"
            )
        if self.tera_bops is not None and (least := BitOperations.of(space).least) > self.tera_bops:
            raise Infeasible(
                f"budget.tera_bops={self.tera_bops:g} cannot be met: configurations need "
                f"{least:.4g} at least"
            )

    def to_json(self) -> dict[str, Any]:
        """What is constrained, for artifacts."""
        given = {name: getattr(self, name) for name in BUDGETS}
        return {
            "budget": {name: value for name, value in given.items() if value is not None},
            "limit": dict(self.limit),
            "pin": dict(self.pin),
            "forbid": list(self.forbid),
            "target": self.target,
            "lora": None if self.lora is None else self.lora.name,
        }

    def _without_options(
        self,
        weight: Weight,
        offered: Sequence[QuantMethod],
        pinned: Mapping[str, QuantMethod],
        holds: Holds | None,
    ) -> str:
        """Why a weight has no option left."""
        methods = ", ".join(map(str, offered))
        if (method := pinned.get(weight.name)) is not None and method not in offered:
            return f"pin: {method} is not on offer for {weight.name!r} (offered: {methods})"
        if holds is not None and not any(holds(weight, method) for method in offered):
            return (
                f"target={self.target} holds none of the methods on offer for {weight.name!r} "
                f"({methods}): choose a space with others"
            )
        why = ["pin"] * bool(pinned) + ["forbid"] * bool(self.forbid) + ["target"] * bool(holds)
        return f"{' and '.join(why)} leave {weight.name!r} no method (offered: {methods})"


def _names(method: QuantMethod) -> set[str]:
    """What forbids a method: its name, with or without its bits and those of inputs."""
    return {method.name, str(method.of_weight), str(method)}


@dataclass(frozen=True, slots=True, eq=False)
class BitOperations:
    """The bit operations of configurations, as a metric that a search can limit.

    Attributes:
        options: float64 [W, O], in 10^12, of each weight's layers under each of its options;
            infinite beyond a weight's options.
    """

    options: np.ndarray
    name: str = "tera_bops"
    sign: int = -1

    @staticmethod
    def of(space: Space) -> BitOperations:
        """Tabulate the operations of a space.

        Args:
            space: W weights and the methods on offer for each.
        """
        macs = dict.fromkeys((weight.name for weight in space.graph.weights), 0)
        for node in space.graph.nodes:
            if node.weight is not None:
                macs[node.weight.name] += node.macs
        options = np.full((len(space.options), max(map(len, space.options))), np.inf)
        for row, (name, offered) in zip(
            options, zip(macs, space.options, strict=True), strict=True
        ):
            row[: len(offered)] = [macs[name] * m.bits * m.inputs / 1e12 for m in offered]
        return BitOperations(options)

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Genes, int64 [B, W] => 10^12 bit operations, float64 [B]."""
        return self.options[np.arange(len(self.options)), genes].sum(axis=1)

    @property
    def least(self) -> float:
        """Of the configuration that needs the fewest."""
        return float(self.options.min(axis=1).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Restriction:
    """A space with fewer options.

    Attributes:
        space: the smaller one.
        columns: int64 [W, O], index of each of its options in the options of the whole space.
    """

    space: Space
    columns: np.ndarray

    @staticmethod
    def of(space: Space, columns: Sequence[Sequence[int]]) -> Restriction:
        """Choose options.

        Args:
            space: the whole one.
            columns: for each weight, indices of the options that are left, at least one.

        Returns:
            The restriction.
        """
        options = tuple(
            tuple(offered[i] for i in left)
            for offered, left in zip(space.options, columns, strict=True)
        )
        table = np.zeros((len(columns), max(map(len, columns))), dtype=np.int64)
        for row, left in zip(table, columns, strict=True):
            row[: len(left)] = left
        return Restriction(Space(space.graph, options, space.full_bits), table)

    def whole(self, genes: np.ndarray) -> np.ndarray:
        """Translate genes of the smaller space into those of the whole one.

        Args:
            genes: int64 [B, W].

        Returns:
            Int64 [B, W].
        """
        return self.columns[np.arange(len(self.columns)), genes]

    def errors(self, error: np.ndarray) -> np.ndarray:
        """Select the errors of the options that are left.

        Args:
            error: float64 [W, O'], of the whole space.

        Returns:
            Float64 [W, O], infinite beyond a weight's options.
        """
        left = np.array([len(offered) for offered in self.space.options])
        taken = np.take_along_axis(error, self.columns, axis=1)
        return np.where(np.arange(taken.shape[1]) < left[:, None], taken, np.inf)


def read_budget(
    budget: Mapping[str, float] | float | None, evaluations: int = 1, **bits: float | None
) -> tuple[dict[str, float], int]:
    """Read a budget in its old spellings too, with a note.

    Args:
        budget: by name; a number is the old spelling of ``evaluations``.
        evaluations: as it was given.
        **bits: old spellings of ``budget.avg_bits``, by key; None where it was not given.

    Returns:
        The budget by name, and the evaluations.

    Raises:
        ValueError: a value is out of range, or two spellings disagree.
    """
    if isinstance(budget, int | float):
        require(1, budget=budget)
        result: dict[str, float]
        if isinstance(budget, bool) or int(budget) != budget:
            raise ValueError(f"wanted budget.size_bytes or budget.avg_bits (got budget={budget})")
        warn_once(f"budget={budget:g} is now spelled evaluations={budget:g}; a budget is of bytes")
        result, evaluations = {}, int(budget)
    elif budget is None or isinstance(budget, Mapping):
        result = dict(budget or {})
    else:
        raise ValueError(f"wanted budget.size_bytes or budget.avg_bits (got budget={budget!r})")
    for key, value in bits.items():
        if value is None:
            continue
        if result.get("avg_bits", value) != value:
            raise ValueError(f"{key} is the old spelling of budget.avg_bits: give one of them")
        warn_once(f"{key}={value:g} is now spelled budget.avg_bits={value:g}")
        result["avg_bits"] = value
    return result, evaluations


def with_bytes(budget: Mapping[str, float] | None) -> dict[str, float]:
    """Add the default to a budget that says nothing of bytes.

    Args:
        budget: by name.

    Returns:
        The budget.
    """
    given = dict(budget or {})
    return given if {"size_bytes", "avg_bits"} & set(given) else {"avg_bits": DEFAULT_BITS} | given


def reach(space: Space) -> tuple[int, int]:
    """Compute the size of the smallest and of the largest configuration.

    Args:
        space: W weights and the methods on offer for each.

    Returns:
        Bytes of both.
    """
    _, sizes = sizes_of(space)
    return int(smallest(space).sum()), int(sizes.max(axis=1).sum())


def smallest(space: Space) -> np.ndarray:
    """Compute the fewest bytes of each weight.

    Args:
        space: W weights and the methods on offer for each.

    Returns:
        Int64 [W].
    """
    options, sizes = sizes_of(space)
    offered = np.arange(sizes.shape[1]) < options[:, None]
    return np.where(offered, sizes, np.iinfo(np.int64).max).min(axis=1)


def least_of_parts(space: Space) -> str:
    """Say what each part of a pipeline takes at least, where several share a budget.

    Args:
        space: of the weights.

    Returns:
        The end of a sentence; empty for one part.
    """
    names = [weight.name for weight in space.graph.weights]
    least = dict(zip(names, map(int, smallest(space)), strict=True))
    of_parts = []
    for part in parts_of(space.graph):
        own = [size for name, size in least.items() if name.startswith(f"{part}.")]
        of_parts.append(f"{part} {sum(own):,}")
    return f", at least {', '.join(of_parts)}: give more, or leave a part out" if of_parts else ""


def pins_of(pin: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    """Read pins in any of their spellings.

    Args:
        pin: texts ``WEIGHT=METHOD``, or methods by name, whose parts may be nested.

    Returns:
        Method by weight or pattern.

    Raises:
        ValueError: a text has no method.
    """
    if isinstance(pin, Mapping):
        flat: dict[str, str] = {}
        for name, value in pin.items():
            nested = pins_of(value) if isinstance(value, Mapping) else {"": str(value)}
            flat |= {f"{name}.{rest}".rstrip("."): method for rest, method in nested.items()}
        return flat
    pairs = [text.rpartition("=") for text in ([pin] if isinstance(pin, str) else pin)]
    for name, _, method in pairs:
        if not name:
            raise ValueError(f"wanted pin.WEIGHT=METHOD, as in pin.conv_in=uaq-4 (got {method!r})")
    return {name: method for name, _, method in pairs}


def matched(pin: Mapping[str, str], space: Space) -> dict[str, QuantMethod]:
    """Find the weights that pins name.

    Args:
        pin: method by weight or pattern; the name of a layer stands for all parts of its weight.
            A name beats a pattern, and a later pattern an earlier one.
        space: of the weights.

    Returns:
        Method by weight.

    Raises:
        ValueError: a pin matches no weight.
    """
    names = [weight.name for weight in space.graph.weights]
    for pattern in pin:
        if not matched_names({pattern: "uaq-4"}, names):
            close = difflib.get_close_matches(pattern, names, 3, cutoff=0.5) or names[:3]
            raise ValueError(
                f"pin.{pattern} matches none of the {len(names)} weights of "
                f"{space.graph.denoiser!r} (they are called {', '.join(close)}, ...)"
            )
    return matched_names(pin, names)


def matched_names(pin: Mapping[str, str], names: Sequence[str]) -> dict[str, QuantMethod]:
    """Find the names that pins match, see `matched`; pins that match nothing are ignored.

    Args:
        pin: method by weight or pattern.
        names: of the weights.

    Returns:
        Method by name.
    """
    result: dict[str, QuantMethod] = {}
    exact: dict[str, QuantMethod] = {}
    for pattern, method in pin.items():
        for name in names:
            if pattern in (name, name.partition("#")[0]):
                exact[name] = QuantMethod.parse(method)
            elif fnmatch.fnmatchcase(name, pattern):
                result[name] = QuantMethod.parse(method)
    return result | exact


def _check_retention(share: float | None, lora: Path | None) -> None:
    """Require that a limit of retention is a share, and that it names its adapter."""
    if share is None and lora is not None:
        raise ValueError(f"lora={lora} is for a limit: give limit.{LORA_RETENTION}=0.9, too")
    if share is not None and not 0 < share <= 1:
        raise ValueError(
            f"limit.{LORA_RETENTION}: wanted the share of the adapter's effect that must be left, "
            f"above 0 and at most 1, as 0.9 (got {share:g})"
        )
    if share is not None and lora is None:
        raise ValueError(
            f"limit.{LORA_RETENTION} is about one adapter: give lora=FILE to search and "
            "realize, after python -m qsdm.probe with the same lora=FILE"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
