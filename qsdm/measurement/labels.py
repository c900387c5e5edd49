"""Which measured outcomes are labels of a space: what a predictor learns from and is judged by.

A label is a configuration of the space that was measured to be learned from (not proposed by a
search) and has all metrics of the objective. Labels that are used together were measured in one
way: with the model's present weights and sampling, under one protocol, by one version of each
metric.

A test set was measured for judging alone (``measure test=true``): often with more pictures than the
labels, and with other starting noise, which shows how far labels of two seed sets agree at all.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from qsdm.denoisers import (
    Digests,
    Model,
    ModelError,
    denoiser_tensors,
    digests_of,
    frames_of,
    prompts_of,
    sampler_of,
)
from qsdm.graph import Graph
from qsdm.measurement.protocol import of_pictures, prompts_digest, versions_of
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.prompts import PromptsError
from qsdm.qconfig import OutsideSpace, Space, cost
from qsdm.store import Store, StoreError


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels of B configurations of a space, all measured in one way.

    Attributes:
        outcomes: B outcomes, one per configuration.
        genes: int64 [B, W], index into the options of each weight.
        values: float64 [B], the objective; larger is better.
        halves: float64 [S, 2, B], values from the two halves of the pictures in S ways; None if an
            outcome lacks them.
        protocol: how the pictures were drawn.
        versions: of the objective's metrics, by name.
        unused: number of the space's other labels by the way that they were measured in.
    """

    outcomes: tuple[Outcome, ...]
    genes: np.ndarray
    values: np.ndarray
    halves: np.ndarray | None
    protocol: Protocol
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def digests(self) -> list[str]:
        """Digest of each configuration."""
        return [outcome.qconfig.digest for outcome in self.outcomes]

    @property
    def note(self) -> str:
        """One sentence about labels that are not used; empty if all are."""
        if not self.unused:
            return ""
        others = ", ".join(f"{number} of {way}" for way, number in self.unused.items())
        return f"{len(self)} outcomes of protocol {self.protocol.digest[:12]}; not used: {others}"

    def take(self, rows: Sequence[int]) -> Labels:
        """Select some of the labels.

        Args:
            rows: their indices.

        Returns:
            The selection, in the order of the indices.
        """
        index = np.asarray(rows, dtype=np.int64)
        return dataclasses.replace(
            self,
            outcomes=tuple(self.outcomes[i] for i in index),
            genes=self.genes[index],
            values=self.values[index],
            halves=None if self.halves is None else self.halves[..., index],
        )

    def joined(self, others: Labels) -> Labels:
        """Add labels of other configurations, whose values have the same unit.

        Args:
            others: of the same space; they come last.

        Returns:
            All of them, without halves.
        """
        return dataclasses.replace(
            self,
            outcomes=self.outcomes + others.outcomes,
            genes=np.concatenate([self.genes, others.genes]),
            values=np.concatenate([self.values, others.values]),
            halves=None,
        )

    def is_current(self, model: Model) -> bool:
        """Whether `measure` would measure them in the same way today.

        Args:
            model: as it is today.
        """
        learned = {name: model.metrics[name] for name in self.versions if name in model.metrics}
        if any(self.versions[name] != version for name, version in versions_of(learned).items()):
            return False
        return is_of_today(self.protocol, model)


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Everything that is stored of a model; labels are read when they are asked for, once.

    Attributes:
        space: whose configurations have labels.
        outcomes: those of the protocols that count, but for what ``mixed_labels`` reads; others may
            be among them.
        protocols: protocols of the outcomes that count, by digest.
        model: as it is today; None if outcomes of any weights count.
        digests: of the model's files; None without a model.
        mixed_labels: reads the labels of a protocol, by its digest, that quantize several weights;
            None: they are among ``outcomes``.
        everything: reads the outcomes of all protocols, for what is said of them where nothing
            counts; None: there are no others.
    """

    space: Space
    outcomes: Sequence[Outcome]
    protocols: Mapping[str, Protocol]
    model: Model | None = None
    digests: Digests | None = None
    mixed_labels: Callable[[str], Sequence[Outcome]] | None = None
    everything: Callable[[], Sequence[Outcome]] | None = None

    @staticmethod
    def read(store: Store, space: Space, model: Model | None = None) -> Bank:
        """Read the outcomes of a store that count, as far as they are no mixed labels.

        Args:
            store: of the model.
            space: whose configurations have labels.
            model: only outcomes of its present weights and sampling count; None: all do.

        Returns:
            The bank.

        Raises:
            StoreError: the outcomes are damaged.
            ModelError: files of the model are missing.
        """
        protocols = store.protocols()
        digests: Digests | None = None
        if model is not None:
            digests = digests_of(model)
            protocols = present(protocols, model, digests)

        @cache
        def mixed_labels(protocol: str) -> Sequence[Outcome]:
            return tuple(store.outcomes([protocol], mixed_labels=True))

        others = tuple(store.outcomes(protocols, mixed_labels=False))
        return Bank(space, others, protocols, model, digests, mixed_labels, store.outcomes)

    def labels(self, objective: Objective, seed_set: int = 0, num_images: int = 256) -> Labels:
        """Choose the labels to learn from.

        Of labels that were measured in several ways, those count that `measure` would measure in
        the same way today; without any, those of the way with most labels.

        Args:
            objective: makes a value of an outcome's metrics.
            seed_set: of the starting noise.
            num_images: pictures that each label was measured from.

        Returns:
            The labels.

        Raises:
            NoLabels: there are none.
        """
        accepted = [
            protocol
            for protocol in self.protocols.values()
            if (protocol.seed_set, protocol.num_images) == (seed_set, num_images)
        ]
        groups = self.sets(objective, "measure", accepted)
        if not groups:
            raise NoLabels(self._without_labels(objective, seed_set, num_images))
        if (model := self.model) is not None and len(groups) > 1:
            groups.sort(key=lambda labels: not labels.is_current(model))
        chosen, *others = groups
        unused: Counter[str] = Counter()
        for labels in others:
            same = labels.protocol == chosen.protocol
            way = labels.protocol.digest[:12] + " with other versions of the metrics" * same
            unused[way] += len(labels)
        return dataclasses.replace(chosen, unused=dict(unused))

    def tests(self, objective: Objective, least: int = 3) -> list[Labels]:
        """Collect the test set under every protocol that it was measured with.

        Args:
            objective: makes a value of an outcome's metrics.
            least: number of configurations below which a protocol is left out.

        Returns:
            One set of labels per protocol, by seed set and number of pictures.
        """
        ordered = sorted(self.protocols.values(), key=lambda p: (p.seed_set, p.num_images))
        tests = [self.sets(objective, "test", [protocol])[:1] for protocol in ordered]
        return [labels for groups in tests for labels in groups if len(labels) >= least]

    def proposed(self, objective: Objective, labels: Labels) -> Labels | None:
        """Collect what a search had proposed and was then measured in the way of the labels.

        Args:
            objective: makes a value of an outcome's metrics.
            labels: that are learned from.

        Returns:
            Outcomes of configurations that are no labels themselves; None if there are none.
        """
        known = set(labels.digests)
        for group in self.sets(objective, PROPOSED, [labels.protocol]):
            rows = [i for i, digest in enumerate(group.digests) if digest not in known]
            if dict(group.versions) == dict(labels.versions) and rows:
                return group.take(rows)
        return None

    def sets(
        self,
        objective: Objective,
        stage: str | Collection[str],
        protocols: Sequence[Protocol] | None = None,
    ) -> list[Labels]:
        """Group the space's labels by the way that they were measured in.

        Args:
            objective: makes a value of an outcome's metrics.
            stage: what the outcomes were measured for: ``measure``, ``test``, or any of several.
            protocols: of the labels; None for any that counts.

        Returns:
            Labels of each way, those of most configurations first.
        """
        accepted = self.protocols if protocols is None else {p.digest: p for p in protocols}
        stages = {stage} if isinstance(stage, str) else set(stage)
        metrics = objective.metrics
        ways: dict[tuple[str, ...], list[tuple[Outcome, np.ndarray]]] = {}
        stored = list(self.outcomes)
        if self.mixed_labels is not None and "measure" in stages:
            stored += [outcome for digest in accepted for outcome in self.mixed_labels(digest)]
        for outcome in stored:
            if outcome.protocol not in accepted or stage_of(outcome) not in stages:
                continue
            if any(outcome.metrics.get(name) is None for name in metrics):
                continue
            try:
                genes = self.space.encode(outcome.qconfig)
            except OutsideSpace:
                continue  # full precision, and configurations of other spaces
            way = (outcome.protocol, *(outcome.versions.get(name, "") for name in metrics))
            ways.setdefault(way, []).append((outcome, genes))
        groups = [
            self._labels(objective, accepted[way[0]], *zip(*members, strict=True))
            for way, members in ways.items()
        ]
        return sorted(groups, key=len, reverse=True)

    def _labels(
        self,
        objective: Objective,
        protocol: Protocol,
        outcomes: tuple[Outcome, ...],
        genes: tuple[np.ndarray, ...],
    ) -> Labels:
        names, all_genes = objective.metrics, np.stack(genes)

        def values(of: Callable[[Outcome, str], float | None]) -> np.ndarray:
            total = np.zeros(len(outcomes))
            for name, weight in objective.weights.items():
                if name in names:
                    column = [of(outcome, name) for outcome in outcomes]
                    total += weight * np.array(column, dtype=np.float64)
                else:
                    total += weight * cost.avg_bits_of(self.space, all_genes)
            return total

        def half(split: int, side: int) -> np.ndarray:
            return values(lambda outcome, name: outcome.halves[name][split][side])

        num = min((len(o.halves.get(name, ())) for o in outcomes for name in names), default=0)
        halves = [[half(split, side) for side in (0, 1)] for split in range(num)]
        return Labels(
            outcomes,
            all_genes,
            values(lambda o, name: o.metrics[name]),
            np.array(halves) if num else None,
            protocol,
            {name: outcomes[0].versions.get(name, "") for name in names},
        )

    def _without_labels(self, objective: Objective, seed_set: int, num_images: int) -> str:
        """Why there is no label."""
        denoiser = self.space.graph.denoiser
        remedy = f"run python -m qsdm.measure +model={denoiser}"
        stored = self.outcomes if self.everything is None else self.everything()
        measured = [outcome for outcome in stored if outcome.is_label]
        under = [
            protocol
            for outcome in measured
            if (protocol := self.protocols.get(outcome.protocol)) is not None
            and (protocol.seed_set, protocol.num_images) == (seed_set, num_images)
        ]
        if measured and not under:
            return (
                f"none of the {len(measured)} labels of {denoiser!r} was measured with its present "
                f"weights and sampling, seed_set={seed_set} and num_images={num_images}: "
                f"{remedy} with them"
            )
        metrics = objective.metrics
        return (
            f"no outcomes with {', '.join(metrics) or 'any metric'} for {denoiser!r} in this space "
            f"({len(under)} others): {remedy}"
        )


RANDOM = ("measure", "test")
"""Stages that measure what nothing has proposed."""

PROPOSED = ("rounds", "candidates")
"""Stages that measure what a search has proposed, with the labels' noise."""


class NoLabels(StoreError):
    """Nothing was measured that is a label."""


def stage_of(outcome: Outcome) -> str:
    """What an outcome was measured for: measure, test, probe, rounds, candidates or realize."""
    return str(outcome.provenance.get("stage", "measure"))


def present(
    protocols: Mapping[str, Protocol], model: Model, digests: Digests
) -> dict[str, Protocol]:
    """Select the protocols of a model's present weights and sampling.

    Args:
        protocols: by digest.
        model: as it is today.
        digests: of its files.

    Returns:
        Those of them, by digest.
    """
    expected = {
        "weights": digests.weights,
        "pipeline": digests.pipeline,
        "steps": model.steps,
        "guidance": model.guidance,
        "resolution_px": model.resolution_px,
        "dtype": model.dtype,
    }
    same = {
        digest: protocol
        for digest, protocol in protocols.items()
        if all(getattr(protocol, name) == value for name, value in expected.items())
    }
    if not same:
        return {}
    frames = frames_of(model)
    return {digest: protocol for digest, protocol in same.items() if protocol.frames == frames}


def of_today(protocol: Protocol, model: Model) -> Protocol:
    """A protocol of a model's present weights as `measure` would write it today.

    Args:
        protocol: one of `present`.
        model: as it is today.

    Returns:
        The same seeds and number of pictures, with today's captions, sampler and quantizers.

    Raises:
        ModelError: files of the model are missing, or it has no prompts.
        PromptsError: the prompts cannot be read.
    """
    from qsdm.quant.fitting import VERSION  # with torch: --help is fast

    prompts = of_pictures(prompts_of(model), protocol.num_images)
    version = protocol.quantizer_version
    if version.partition("-")[0] != VERSION:  # what follows are the inputs of a weighted fit
        version = VERSION
    return dataclasses.replace(
        protocol,
        quantizer_version=version,
        sampler=sampler_of(model),
        prompts=prompts_digest(prompts),
    )


def is_of_today(protocol: Protocol, model: Model) -> bool:
    """Whether `measure` would draw in the same way today.

    Args:
        protocol: one of `present`.
        model: as it is today.
    """
    try:
        return protocol == of_today(protocol, model)
    except (ModelError, PromptsError):  # nothing can be measured today
        return False


def require_fitted(
    model: Model, table: cost.MethodTable, graph: Graph, digests: Digests | None = None
) -> None:
    """Compare the weights that a table of methods was computed from with the model's present ones.

    They are read only if the pipeline is not as it was then, as after it was saved again.

    Args:
        model: as it is today.
        table: that `calibrate` wrote.
        graph: of the space.
        digests: of the model's files; None to compute them.

    Raises:
        OtherWeights: they differ, or the table does not tell.
        ModelError: the weights are not here.
    """
    from qsdm.quant.calibrated import OtherWeights
    from qsdm.quant.digests import fitted_digest  # with torch: --help is fast

    remedy = f"run python -m qsdm.calibrate +model={model.name}"
    if not table.fitted:
        raise OtherWeights(
            f"the table of methods of {model.name!r} does not tell which weights it was "
            f"computed from, as those of qsdm 0.1.0: {remedy} again"
        )
    if table.source == (digests or digests_of(model)).source:
        return
    if fitted_digest(denoiser_tensors(model), graph) != table.fitted:
        raise OtherWeights(
            f"the table of methods was computed from other weights of {model.name!r}: {remedy}"
        )


def label_of_full(
    outcomes: Sequence[Outcome], protocol: str, objective: Objective, full_bits: int
) -> float | None:
    """Look up the measured label of full precision.

    Args:
        outcomes: of the model.
        protocol: digest of the labels' protocol.
        objective: makes a value of an outcome's metrics.
        full_bits: bits of full precision.

    Returns:
        The label; None if the protocol has not measured all of its metrics.
    """
    for outcome in outcomes:
        if outcome.protocol == protocol and outcome.qconfig.is_full:
            values = {**outcome.metrics, "avg_bits": float(full_bits)}
            if all(values.get(name) is not None for name in objective.weights):
                return objective(values)
    return None
