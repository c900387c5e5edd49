"""Training of the predictor, one network per fold.

Early stopping and the weights of hops use a validation part of each fold's training part. The test
part, on which results are reported, influences nothing: neither early stopping, nor the
standardization of labels, nor the weights of hops.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qsdm.predictor import FitOptions, one_thread
from qsdm.predictor.encode import Encoding
from qsdm.predictor.gnn import Gnn
from qsdm.predictor.linear import Additive, fit_additive
from qsdm.predictor.losses import ranking_loss
from qsdm.predictor.mean import Mean
from qsdm.predictor.rows import Rows
from qsdm.predictor.scores import relevance, srcc
from qsdm.text import Log, ignore

# torch's random numbers belong to the whole process; only the initial parameters need them.
_seeding = Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One trained network.

    Attributes:
        gnn: the network, in evaluation mode.
        mean: of the labels of its training part.
        deviation: their standard deviation; a prediction is mean + deviation × value.
        test: int64, indices of the outcomes that it was not trained on.
        hop_quality: float64 [H + 1], rank correlation of each hop's norm with the label on the
            validation part; 0 where it is negative.
        hop_mean: float64 [H + 1], mean of the weights' norms over the training part.
        hop_deviation: float64 [H + 1], standard deviation of these norms.
        epochs: number of epochs of the best state, which is kept.
    """

    gnn: Gnn
    mean: float
    deviation: float
    test: np.ndarray
    hop_quality: np.ndarray
    hop_mean: np.ndarray
    hop_deviation: np.ndarray
    epochs: int

    def predict(self, configurations: Tensor, rows: Rows | None = None) -> Tensor:
        """Predict labels, differentiably.

        Args:
            configurations: float32 [B, W, M + 1], one-hot or relaxed.
            rows: of B configurations, see `qsdm.predictor.rows.Wiring.separate`; None to list them.

        Returns:
            Float32 [B].
        """
        value: Tensor = self.gnn(configurations, rows).value
        return self.mean + self.deviation * value


def split(num: int, folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Split outcomes into test parts that are disjoint and cover all of them.

    Args:
        num: number of outcomes.
        folds: number of parts, at least 2.
        rng: source of the random order.

    Returns:
        Sorted indices of each part, int64; the sizes differ by at most one.

    Raises:
        ValueError: a test part would hold fewer than two outcomes, or a training part fewer than
            eight.
    """
    least = max(2 * folds, -(-8 * folds // (folds - 1)))
    if num < least:
        raise ValueError(
            f"{folds} folds need at least {least} outcomes (got {num}): measure more configurations"
        )
    return [np.sort(part) for part in np.array_split(rng.permutation(num), folds)]


def fit_folds(
    encoding: Encoding,
    genes: np.ndarray,
    labels: np.ndarray,
    options: FitOptions,
    seed: int = 0,
    log: Log = ignore,
    informed: Callable[[np.ndarray], Mean] | None = None,
) -> list[Fold]:
    """Train one network per fold.

    Args:
        encoding: of the space.
        genes: int64 [B, W], distinct configurations.
        labels: float64 [B], larger is better.
        options: how the networks are trained.
        seed: of the split, the initial parameters and the order of configurations.
        log: receives the losses of every epoch.
        informed: fits closed models, of whose mean the networks learn what is left, on the labels
            of some indices; None for the additive model of the decisions, if ``options`` want one.

    Returns:
        The trained networks.

    Raises:
        ValueError: there are too few labels for the folds.
    """
    columns = torch.from_numpy(encoding.columns_of(genes))
    tests = split(len(labels), options.folds, np.random.default_rng(seed))
    ending = Event()
    with (
        one_thread() as threads,  # within a fold; the folds are trained in parallel instead
        tqdm(
            total=options.folds * options.epochs, desc="train", unit="epoch", disable=None
        ) as progress,
        ThreadPoolExecutor(
            max(1, min(threads, options.folds)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):

        def fit(k: int) -> Fold:
            rng = np.random.default_rng((seed, k, 1))
            train = np.setdiff1d(np.arange(len(labels)), tests[k])
            course = _course(encoding, columns, labels, train, options, informed, rng)
            with _seeding, torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**31)))
                forms = len(course.closed.models) if isinstance(course.closed, Mean) else 1
                gnn = Gnn(encoding, options.width, options.hops, forms)

            def tell(figures: dict[str, float]) -> None:
                if ending.is_set():
                    raise CancelledError
                log({"train/fold": k, **figures})
                progress.update()

            best = _train(gnn, course, options, rng, tell)
            progress.update(max(0, options.epochs - best.epoch - options.patience))
            return _finished(gnn, course, best, tests[k])

        futures = [pool.submit(fit, k) for k in range(options.folds)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True, slots=True, eq=False)
class _Course:
    """What one network learns from.

    Attributes:
        columns: int64 [B, W], column of each decision's method.
        labels: float64 [B].
        mean: of the training part's labels.
        deviation: of the training part's labels.
        closed: the closed model of the training part, of which the network learns what is left.
        standard: float32 [B], standardized labels.
        target: float32 [B], for the training part, less what the closed model predicts without
            each of them.
        gain: float32 [B], relevance of the labels.
        fit: int64, the labels that the network is fitted to.
        val: int64, the rest of the training part.
    """

    columns: Tensor
    labels: np.ndarray
    mean: float
    deviation: float
    closed: Mean | Additive | None
    standard: Tensor
    target: Tensor
    gain: Tensor
    fit: np.ndarray
    val: np.ndarray


def _course(
    encoding: Encoding,
    columns: Tensor,
    labels: np.ndarray,
    train: np.ndarray,
    options: FitOptions,
    informed: Callable[[np.ndarray], Mean] | None,
    rng: np.random.Generator,
) -> _Course:
    mean, deviation = float(labels[train].mean()), float(labels[train].std()) or 1.0
    standard = torch.from_numpy((labels - mean) / deviation).float()
    closed: Mean | Additive | None = None
    left_out = np.zeros(len(train))
    if informed is not None:
        closed = informed(train)
        left_out = (closed.left_out - mean) / deviation
    elif options.additive:
        hot = encoding.hot(columns[train].numpy())
        closed = fit_additive(encoding, hot, standard[train].double().numpy())
        left_out = closed.left_out
    target = standard.clone()
    target[train] -= torch.from_numpy(left_out).float()
    low, high = float(np.quantile(labels[train], 0.2)), float(labels[train].max())
    gain = torch.from_numpy(relevance(labels, low, high)).float()
    val, fit = np.split(rng.permutation(train), [max(2, round(options.validation * len(train)))])
    return _Course(
        columns, labels, mean, deviation, closed, standard, target, gain, fit=fit, val=val
    )


class _Best(NamedTuple):
    """The state of a network that predicts the validation part best.

    Attributes:
        score: of the validation part; smaller is better.
        epoch: after which it was reached; 0 for the initial state.
        share: of the network in the label, in [0, 1].
        state: parameters and statistics.
    """

    score: float
    epoch: int
    share: float
    state: dict[str, Tensor]


def _train(
    gnn: Gnn,
    course: _Course,
    options: FitOptions,
    rng: np.random.Generator,
    tell: Callable[[dict[str, float]], None],
) -> _Best:
    """Train until the validation part is no longer predicted better; tell figures by epoch."""
    optimizer = torch.optim.AdamW(
        gnn.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
    )
    steps = max(1, len(course.fit) // options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    averaged, decay = copy.deepcopy(gnn), 0.0
    best = _Best(np.inf, 0, 1.0, copy.deepcopy(gnn.state_dict()))
    for epoch in range(1, options.epochs + 1):
        gnn.train()
        total = 0.0
        for batch in np.array_split(rng.permutation(course.fit), steps):
            loss = _loss(gnn, course, batch, options)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gnn.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            _average(averaged, gnn, decay)
            decay = options.ema
            total += loss.item() / steps
        score, share, figures = _validate(averaged, course, options)
        if score < best.score:
            best = _Best(score, epoch, share, copy.deepcopy(averaged.state_dict()))
        tell({"train/loss": total, **figures})
        if epoch - best.epoch >= options.patience:
            break
    return best


@torch.no_grad()
def _average(averaged: Gnn, gnn: Gnn, decay: float) -> None:
    """Move what is trained and the running statistics toward those of ``gnn``, in place."""
    moved: list[Tensor] = [*averaged.parameters(), *averaged.norms.buffers()]
    new: list[Tensor] = [*gnn.parameters(), *gnn.norms.buffers()]
    for one, end in zip(moved, new, strict=True):
        if one.is_floating_point():  # not the number of batches
            one.lerp_(end, 1 - decay)


def _loss(gnn: Gnn, course: _Course, batch: np.ndarray, options: FitOptions) -> Tensor:
    columns = course.columns[batch]
    out = gnn.at(columns, gnn.wiring.shared(columns.numpy()))
    loss = torch.nn.functional.mse_loss(out.value, course.target[batch])
    if options.ranking != "none":
        ranking = ranking_loss(
            options.ranking, out.norms, course.standard[batch], course.gain[batch]
        )
        loss = loss + options.ranking_weight * ranking
    return loss


def _validate(
    gnn: Gnn, course: _Course, options: FitOptions
) -> tuple[float, float, dict[str, float]]:
    """Score of the validation part, the network's best share in its labels, and figures."""
    val, labels = course.val, course.labels[course.val]
    value, norms, _ = evaluate(gnn, course.columns[val])
    rest = course.target[val].double().numpy()
    # The network's share in the label is the one that fits the validation part best.
    share = 1.0
    if course.closed is not None:
        share = float(np.clip(value @ rest / (value @ value + 1e-12), 0, 1))
    error = float(np.mean((share * value - rest) ** 2))
    misranked = float(np.mean([1 - srcc(hop, labels) for hop in norms]))
    score = error + (options.ranking_weight * misranked if options.ranking != "none" else 0.0)
    linear = (course.standard - course.target)[val].double().numpy()
    return score, share, {"val/mse": error, "val/srcc": srcc(share * value + linear, labels)}


def _close(gnn: Gnn, course: _Course) -> None:
    """Write the closed model into a network, in units of its value."""
    closed, mean, deviation = course.closed, course.mean, course.deviation
    if isinstance(closed, Additive):
        gnn.additive.copy_(torch.from_numpy(closed.contributions))
        gnn.offset.fill_(closed.offset)
    elif closed is not None:  # in units of the labels
        gnn.additive.copy_(torch.from_numpy(closed.contributions() / deviation))
        gnn.offset.fill_((closed.offset - mean) / deviation)
        gnn.amplitude.copy_(torch.from_numpy(closed.amplitudes / deviation**0.5))
        gnn.pairs.copy_(torch.from_numpy(closed.forms()))


def _finished(gnn: Gnn, course: _Course, best: _Best, test: np.ndarray) -> Fold:
    gnn.load_state_dict(best.state)
    gnn.share.fill_(best.share)
    _close(gnn, course)
    gnn.eval().requires_grad_(False)
    norms = evaluate(gnn, course.columns[course.val]).norms
    quality = np.array([max(srcc(hop, course.labels[course.val]), 0.0) for hop in norms])
    nodes = evaluate(gnn, course.columns[np.concatenate([course.fit, course.val])]).nodes
    flat = nodes.reshape(len(nodes), -1)
    spread = flat.std(axis=1) + 1e-6
    return Fold(
        gnn, course.mean, course.deviation, test, quality, flat.mean(axis=1), spread, best.epoch
    )


class Evaluation(NamedTuple):
    """Results of a network in evaluation mode, all float64; see `qsdm.predictor.gnn.Prediction`.

    Attributes:
        value: [B], standardized labels.
        norms: [H + 1, B], norms of the graph's embeddings.
        nodes: [H + 1, W, B], norms of the weights' embeddings.
    """

    value: np.ndarray
    norms: np.ndarray
    nodes: np.ndarray


def evaluate(gnn: Gnn, columns: Tensor) -> Evaluation:
    """Run a network in evaluation mode, without gradients.

    Args:
        gnn: the network; it stays in evaluation mode.
        columns: int64 [B, W], column of each decision's method.

    Returns:
        Labels and norms.
    """
    gnn.eval()
    with torch.no_grad():
        parts = [
            gnn.at(part, gnn.wiring.shared(part.numpy()))
            for part in columns.split(gnn.wiring.chunk)
        ]
    return Evaluation(
        torch.cat([part.value for part in parts]).double().numpy(),
        torch.cat([part.norms for part in parts], dim=-1).double().numpy(),
        torch.cat([part.nodes for part in parts], dim=-1).double().numpy(),
    )
