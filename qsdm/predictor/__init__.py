"""The predictor: a graph neural network that estimates labels of configurations, one per fold.

- ``encode``: turns a space and its table of errors into arrays
- ``linear``: the additive part of a label, in closed form
- ``gnn``: the network, which learns the rest
- ``rows``: which embeddings a batch of configurations needs
- ``layer``, ``attention``: one layer of the network, compiled
- ``inference``: labels alone, in memory that is used again
- ``losses`` and ``fit``: how it is trained, with folds and early stopping
- ``informed``, ``prior``, ``kernels`` and ``probes``: what each weight alone says, in closed form
- ``mean``: closed models that start from different probes, and their mean
- ``posterior``: how sure a prediction is
- ``update``: a trained predictor that has seen some more outcomes
- ``scores``: rank correlation, NDCG@10 and the noise ceiling
- ``baselines`` and ``hamming``: simple predictors to compare with
- ``cheap_labels``: labels of configurations with few pictures
- ``pyg``: a graph as torch-geometric data, for other networks
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from qsdm.qconfig import Space
from qsdm.qconfig.cost import MethodTable
from qsdm.store import StoreError
from qsdm.store.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from qsdm.predictor.encode import Encoding
    from qsdm.predictor.fit import Fold
    from qsdm.predictor.posterior import Posterior

SCHEMA = "qsdm/predictor/4"
RANKING = ("none", "spearman", "lambda_rank", "hybrid")


@contextmanager
def one_thread() -> Iterator[int]:
    """Limit torch to one thread for the length of the block.

    The predictor's tensors are small: more threads gain little on idle cores and wait for each
    other on busy ones.

    Yields:
        The number of threads before, which is restored afterward.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How the predictor is trained.

    Attributes:
        folds: number of folds, at least 2; each has its own network.
        width: size of every embedding.
        hops: number of attention layers.
        epochs: maximum number of epochs, over which the learning rate falls to 0.
        patience: epochs without a better validation error after which a fold ends.
        batch_size: configurations per step, at least 4.
        lr: learning rate of AdamW, positive.
        weight_decay: of AdamW, not negative.
        ranking: loss on the norms of hop embeddings: none, spearman, lambda_rank or hybrid (both).
        ranking_weight: weight of that loss; the squared error of standardized labels has weight 1.
        validation: share of a fold's training part that is used for early stopping and for the
            weights of hops, in (0, 1).
        ema: decay of the averaged parameters that are validated and kept, in [0, 1).
        additive: whether the network only learns what a linear model of the decisions leaves
            unexplained (see `qsdm.predictor.linear`).
    """

    folds: int = 5
    width: int = 32
    hops: int = 4
    epochs: int = 60
    patience: int = 6
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    ranking: str = "hybrid"
    ranking_weight: float = 0.2
    validation: float = 0.2
    ema: float = 0.95
    additive: bool = True

    def __post_init__(self) -> None:
        if self.ranking not in RANKING:
            raise ValueError(f"ranking must be one of {', '.join(RANKING)} (got {self.ranking!r})")
        for name in ("width", "hops", "epochs", "patience", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive (got {getattr(self, name)})")
        if self.folds < 2 or self.batch_size < 4:
            raise ValueError(
                f"folds must be at least 2 and batch_size at least 4 "
                f"(got {self.folds} and {self.batch_size})"
            )
        if not (0 < self.validation < 1 and 0 <= self.ema < 1):
            raise ValueError(
                f"validation and ema must be shares between 0 and 1 "
                f"(got {self.validation} and {self.ema})"
            )
        if self.weight_decay < 0 or self.ranking_weight < 0:
            raise ValueError(
                f"weight_decay and ranking_weight must not be negative "
                f"(got {self.weight_decay} and {self.ranking_weight})"
            )


class FoldFile(TypedDict):
    """What a fold's file holds in addition to its arrays."""

    schema: str
    encoding: str
    objective: dict[str, float]
    width: int
    hops: int
    forms: int
    mean: float
    deviation: float
    epochs: int
    posterior: bool


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """Predicts the objective of configurations; larger is better.

    Attributes:
        encoding: the encoding of the space whose configurations it predicts.
        folds: trained networks, each with the statistics of its training part.
        objective: weights by metric of the objective that the labels measure.
        posterior: of the closed model of all labels, which tells how sure predictions are; None to
            know the spread of the folds alone.
    """

    encoding: Encoding
    folds: Sequence[Fold]
    objective: dict[str, float]
    posterior: Posterior | None = None

    def predict(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the objective of configurations.

        Args:
            genes: int64 [B, W], index into the options of each weight.

        Returns:
            Mean over the folds, and standard deviation of what measuring each would give (see
            `qsdm.predictor.posterior`), float64 [B] each.

        Raises:
            ValueError: the genes are not from this space.
        """
        from qsdm.predictor.posterior import learned_parts

        columns = self.encoding.columns_of(genes)
        values = self.at(columns)
        if self.posterior is None:
            return values.mean(axis=0), values.std(axis=0)
        with one_thread():
            variance = self.posterior.variance(self.encoding.one_hot(genes))
            variance += learned_parts(self.folds, columns, values).var(axis=0)
        return values.mean(axis=0), np.sqrt(variance)

    def at(self, columns: np.ndarray) -> np.ndarray:
        """Predict the objective of configurations with each fold.

        Args:
            columns: int64 [B, W], column of each decision's method.

        Returns:
            Float64 [folds, B].
        """
        import torch

        from qsdm.predictor.inference import Inference

        wiring, free = self.folds[0].gnn.wiring, deque[Inference]()

        def answer(fold: Fold) -> np.ndarray:
            try:
                inference = free.pop()  # of a fold that is done
            except IndexError:
                inference = Inference()
            learned = inference.of(fold.gnn, chosen, rows).double().numpy()
            free.append(inference)
            return fold.mean + fold.deviation * learned

        with one_thread() as available, ThreadPoolExecutor(min(available, len(self.folds))) as pool:
            parts = np.array_split(columns, max(1, -(-len(columns) // wiring.wide)))
            answers = []
            for part in parts:
                chosen, rows = torch.from_numpy(part), wiring.shared(part)
                answers.append(list(pool.map(answer, self.folds)))
        return np.concatenate(answers, axis=1)

    def by_fold(self, configurations: Tensor) -> Tensor:
        """Predict the objective with each fold, differentiably.

        Args:
            configurations: float32 [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float32 [folds, B].
        """
        import torch

        rows = self.folds[0].gnn.wiring.separate(len(configurations))
        return torch.stack([fold.predict(configurations, rows) for fold in self.folds])

    def save(self, directory: Path) -> None:
        """Write ``fold-K.safetensors`` and the posterior; remove what an earlier training left.

        Args:
            directory: of the predictor.
        """
        if self.posterior is not None:
            self.posterior.save(directory, self.encoding)
        for k, fold in enumerate(self.folds):
            state = {name: tensor.numpy() for name, tensor in fold.gnn.state_dict().items()}
            arrays = {
                f: np.asarray(getattr(fold, f))
                for f in ("test", "hop_quality", "hop_mean", "hop_deviation")
            }
            about = {
                "schema": SCHEMA,
                "encoding": self.encoding.digest,
                "objective": self.objective,
                "width": fold.gnn.width,
                "hops": fold.gnn.hops,
                "forms": fold.gnn.forms,
                "mean": fold.mean,
                "deviation": fold.deviation,
                "epochs": fold.epochs,
                "posterior": self.posterior is not None,
            }
            write_tensors(
                directory / f"fold-{k}.safetensors",
                {f"gnn.{n}": a for n, a in state.items()} | arrays,
                about,
            )
        for path in directory.glob("fold-*.safetensors"):
            if int(path.stem.partition("-")[2]) >= len(self.folds):
                path.unlink()

    @staticmethod
    def load(directory: Path, space: Space, table: MethodTable) -> Predictor:
        """Load the predictor that `train` saved for a space and a table.

        Args:
            directory: of the predictor.
            space: whose configurations it shall predict.
            table: errors of the space's weights under its methods.

        Returns:
            The predictor.

        Raises:
            StoreError: it is missing, damaged, or was trained for another space or table.
        """
        import torch

        from qsdm.predictor.encode import encode
        from qsdm.predictor.fit import Fold
        from qsdm.predictor.gnn import Gnn
        from qsdm.predictor.posterior import Posterior

        encoding = encode(space, table)
        paths = sorted(
            directory.glob("fold-*.safetensors"), key=lambda path: int(path.stem.partition("-")[2])
        )
        if not paths:
            raise StoreError(
                f"no predictor in {directory}: "
                f"run python -m qsdm.train +model={space.graph.denoiser}"
            )
        folds, objective, posterior = [], {}, False
        for path in paths:
            arrays, about = read_tensors(path, FoldFile, "run python -m qsdm.train again")
            if about["schema"] != SCHEMA:
                raise StoreError(
                    f"{path} is not a predictor of schema {SCHEMA!r}: "
                    "run python -m qsdm.train again"
                )
            if about["encoding"] != encoding.digest:
                raise StoreError(
                    f"{path} was trained for another graph, space or table of errors: "
                    "run python -m qsdm.train again"
                )
            state = {
                name.removeprefix("gnn."): torch.from_numpy(array)
                for name, array in arrays.items()
                if name.startswith("gnn.")
            }
            rest = {name: array for name, array in arrays.items() if not name.startswith("gnn.")}
            try:
                gnn = Gnn(encoding, about["width"], about["hops"], about["forms"])
                gnn.load_state_dict(state)
                numbers = {name: about[name] for name in ("mean", "deviation", "epochs")}
                folds.append(Fold(gnn.eval().requires_grad_(False), **numbers, **rest))  # type: ignore[arg-type]
            except (RuntimeError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise StoreError(
                    f"{path} holds another network ({reason}): run python -m qsdm.train again"
                ) from error
            objective, posterior = about["objective"], about["posterior"]
        return Predictor(
            encoding,
            tuple(folds),
            objective,
            Posterior.load(directory, encoding) if posterior else None,
        )

    def require(self, objective: dict[str, float]) -> None:
        """Check that the predictor was trained for an objective.

        Args:
            objective: weights by metric.

        Raises:
            StoreError: it was trained for another one.
        """
        if dict(objective) != dict(self.objective):
            raise StoreError(
                f"the predictor was trained for the objective {self.objective}, "
                f"not {dict(objective)}: run python -m qsdm.train again"
            )
