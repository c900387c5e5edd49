"""One model, one space and one store: the Python entry to everything that commands have made.

Each artifact is opened once, and again when its file has changed. If one is missing, the error
names the command that makes it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qsdm.denoisers import Model, ModelError, discover, with_component
from qsdm.graph import Graph
from qsdm.qconfig import Space, SpaceSpec
from qsdm.store import Store
from qsdm.store.schemas import GRAPH, REPORT, PredictorReport

if TYPE_CHECKING:
    from qsdm.measurement.labels import Bank, Labels
    from qsdm.outcome import Objective
    from qsdm.predictor import Predictor
    from qsdm.predictor.probes import Probes
    from qsdm.qconfig.cost import MethodTable


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a model's artifacts are.

    Attributes:
        model: whose denoiser is quantized.
        spec: methods on offer, and which weights are split by their inputs; None where no space is
            needed, as by `trace`.
        root: folder of the artifacts, one folder per model in it.

    Example:
        >>> import qsdm
        >>> from qsdm.outcome import Objective
        >>> emoji = qsdm.open("emoji_unet")
        >>> labels = emoji.labels(Objective({"fd_lite0": -1}))  # those that ship with it
        >>> labels.genes.shape == (len(labels), len(emoji.space.options))
        True
        >>> emoji.table.weights[0], emoji.graph.weights[0].name
        ('time_embedding.linear_1', 'time_embedding.linear_1')
    """

    model: Model
    spec: SpaceSpec | None = None
    root: Path = Path("store")
    _read: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_keys(
        cls, model: Model, space: SpaceSpec | None = None, store: Path = Path("store")
    ) -> Workspace:
        """Open a workspace by the keys of a command line, which this signature declares.

        Args:
            model: whose denoiser is quantized.
            space: methods on offer, and which weights are split by their inputs.
            store: folder of the artifacts.

        Returns:
            The workspace.

        Raises:
            ModelError: the model is of a part that its pipeline lacks, or that takes no inputs.
        """
        _check_inputs(model)
        return cls(with_component(model, model.component), space, Path(store))

    @property
    def name(self) -> str:
        """Name of the model; its artifacts lie under it."""
        return self.model.name

    @property
    def store(self) -> Store:
        """The model's artifacts, including those that ship with it."""
        from qsdm.measurement.protocol import adopted

        return Store(self.root, self.model.name, functools.partial(adopted, model=self.model))

    def path(self, name: str) -> Path:
        """Where an artifact is written.

        Args:
            name: of a file, relative to the model's folder in the store.
        """
        return self.store.path(name)

    def find(self, name: str, made_by: str) -> Path:
        """Where an artifact is.

        Args:
            name: of a file, relative to the model's folder in the store.
            made_by: the command that makes it.

        Returns:
            Its path.

        Raises:
            StoreError: it was not made yet.
        """
        return self.store.find(name, made_by)

    @property
    def chosen_spec(self) -> SpaceSpec:
        """The space, as ``conf/space`` describes it.

        Raises:
            ValueError: none was chosen.
        """
        if self.spec is None:
            raise ValueError(
                f"no space was chosen for {self.name!r}: give space=NAME of conf/space"
            )
        return self.spec

    @property
    def space_name(self) -> str:
        """Name of the space, under which its artifacts lie.

        Raises:
            ValueError: no space was chosen.
        """
        return self.chosen_spec.name

    @property
    def graph(self) -> Graph:
        """The denoiser as it was traced, with a weight of its own for every concatenated input.

        Raises:
            StoreError: it was not traced.
        """
        return self._opened("graph.json", "trace", lambda path: GRAPH.read(path, self.name))

    @property
    def space(self) -> Space:
        """The options of each weight; its graph has the space's splits alone.

        Raises:
            StoreError: the model was not traced.
            ValueError: no space was chosen.
        """
        spec, full_bits = self.chosen_spec, self.model.full_bits
        return self._opened(
            "graph.json", "trace", lambda _: spec.of(self.graph, full_bits), "space"
        )

    @property
    def table(self) -> MethodTable:
        """Error and bytes of each weight under each method.

        Raises:
            StoreError: the model was not calibrated in this space, or with other bits of values
                that are not quantized.
        """
        from qsdm.quant.calibrated import read_table, require_full_bits

        name = f"calibration/{self.space_name}/table.safetensors"
        table = self._opened(name, "calibrate", lambda path: read_table(path.parent))
        require_full_bits(table, self.space)
        return table

    @property
    def packed(self) -> Path:
        """The directory of the quantized weights.

        Raises:
            StoreError: the model was not calibrated in this space.
        """
        name = f"calibration/{self.space_name}/weights.safetensors"
        return self.find(name, "calibrate").parent

    @property
    def report(self) -> PredictorReport:
        """The report that `train` wrote.

        Raises:
            StoreError: no predictor was trained in this space.
        """
        name = f"predictor/{self.space_name}/report.json"
        return self._opened(name, "train", lambda path: REPORT.read(path, self.name))

    def bank(self) -> Bank:
        """Read everything that was measured of the model's present weights.

        Returns:
            The outcomes, which tell their labels in this space; they are read once per call.

        Raises:
            StoreError: the model was not traced, or the outcomes are damaged.
        """
        from qsdm.measurement.labels import Bank

        return Bank.read(self.store, self.space, self.model)

    def labels(self, objective: Objective, seed_set: int = 0, num_images: int = 256) -> Labels:
        """Read the labels that a predictor learns from.

        Args:
            objective: makes a value of an outcome's metrics; larger is better.
            seed_set: of the starting noise.
            num_images: pictures that each label was measured from.

        Returns:
            The labels of this space.

        Raises:
            StoreError: there are none.
        """
        return self.bank().labels(objective, seed_set, num_images)

    def probes(self, objective: Objective) -> Probes:
        """Read what was measured of each weight alone.

        Args:
            objective: whose loss is harm.

        Returns:
            The most faithful probes that are complete, see `qsdm.predictor.best_probes`.

        Raises:
            ProbeError: there are none.
            StoreError: the model was not traced or not calibrated.
        """
        from qsdm.predictor.best_probes import choose_probes

        return choose_probes(self.bank(), self.table, objective)

    def predictor(self, objective: Objective) -> Predictor:
        """Open the trained predictor.

        Args:
            objective: that it must have been trained for.

        Returns:
            The predictor.

        Raises:
            StoreError: there is none, or it was trained for another objective.
        """
        from qsdm.predictor import Predictor

        space, table = self.space, self.table  # first: the first stage that is missing is named

        def read(path: Path) -> Predictor:
            return Predictor.load(path.parent, space, table)

        name = f"predictor/{self.space_name}/report.json"
        predictor = self._opened(name, "train", read, "predictor")
        predictor.require(dict(objective.weights))
        return predictor

    def _opened(self, name: str, made_by: str, read: Callable[[Path], T], kind: str = "") -> T:
        """Read an artifact, once for as long as its file stays as it is.

        Args:
            name: of the file, relative to the model's folder in the store.
            made_by: the command that makes it.
            read: reads the file.
            kind: tells several things apart that are read from one file.
        """
        path = self.find(name, made_by)
        status = path.stat()
        stamp = (path, status.st_mtime_ns, status.st_size)
        before = self._read.get(name + kind)
        if before is None or before[0] != stamp:
            before = self._read[name + kind] = (stamp, read(path))
        value: T = before[1]
        return value


def _check_inputs(model: Model) -> None:
    """Refuse inputs of a model without a denoiser, unless its entry of ``conf/model`` has them."""
    from qsdm.run.conf import choices, load

    if not model.inputs or model.denoisers:
        return
    name = model.base_name
    if name in choices()["model"] and name != "any" and model.inputs == load("model", name).inputs:
        return
    raise ModelError(
        f"model.inputs are of a denoiser, while {' and '.join(model.components)} "
        f"{'is' if len(model.components) == 1 else 'are'} traced from a call of the pipeline: "
        "leave out model.inputs, or list the denoiser in model.component"
    )


def named(
    model: str,
    space: str = "traced",
    store: Path | str = "store",
    component: str | Sequence[str] | None = None,
) -> Workspace:
    """Open a workspace by names.

    Args:
        model: name in ``conf/model``; or the path of a diffusers pipeline, or its hub id.
        space: name in ``conf/space``.
        store: folder of the artifacts.
        component: another part of the pipeline in the denoiser's place; or several, which share
            one budget.

    Returns:
        The workspace.

    Raises:
        ModelError: there is no such model, or no such part.
        ValueError: there is no such space.
    """
    from qsdm.run.conf import choices, load

    if model in choices()["model"] and model != "any":
        chosen = load("model", model)
        chosen = with_component(chosen, component or chosen.component)
    elif Path(model).expanduser().exists() or "/" in model:
        chosen = discover(model, component=component)
    else:
        raise ModelError(
            f"no model {model!r}: give a NAME of conf/model ({', '.join(choices()['model'])}), "
            "the path of a diffusers pipeline, or a hub id"
        )
    return Workspace(chosen, load("space", space), Path(store))


def takes_workspace(*before: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command's function still be called as in 0.1, with a model, a space and a store.

    Args:
        before: names of the function's positional parameters in 0.1, ``model`` first.

    Returns:
        A decorator of the function.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if "model" not in kwargs and not (args and isinstance(args[0], Model)):
                return function(*args, **kwargs)
            arguments = dict(zip(before, args, strict=False)) | kwargs
            keys = inspect.signature(Workspace.of_keys).parameters
            parts = {key: arguments.pop(key) for key in keys if key in arguments}
            warnings.warn(
                f"{function.__name__}(model, ...) becomes "
                f"{function.__name__}(Workspace(model, space, store), ...)",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(Workspace.of_keys(**parts), **arguments)

        return call

    return decorate
