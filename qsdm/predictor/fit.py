"""Training of the predictor, one network per fold.

Early stopping and the weights of hops use a validation part of each fold's training part. The test
part, on which results are reported, influences nothing: neither early stopping, nor the
standardization of labels, nor the weights of hops.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qsdm.log import Log, ignore
from qsdm.predictor import FitOptions, one_thread
from qsdm.predictor.encode import Encoding
from qsdm.predictor.gnn import Gnn
from qsdm.predictor.informed import Informed
from qsdm.predictor.linear import Additive, fit_additive
from qsdm.predictor.losses import ranking_loss
from qsdm.predictor.scores import relevance, srcc

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
    informed: Callable[[np.ndarray], Informed] | None = None,
) -> list[Fold]:
    """Train one network per fold.

    Args:
        encoding: of the space.
        genes: int64 [B, W], distinct configurations.
        labels: float64 [B], larger is better.
        options: how the networks are trained.
        seed: of the split, the initial parameters and the order of configurations.
        log: receives the losses of every epoch.
        informed: fits the closed model, of which the networks learn what is left, on the labels of
            some indices; None for the additive model of the decisions, if ``options`` want one.

    Returns:
        The trained networks.

    Raises:
        ValueError: there are too few labels for the folds.
    """
    configurations = torch.from_numpy(encoding.one_hot(genes))
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
            train = np.setdiff1d(np.arange(len(labels)), tests[k])
            return _fit_fold(
                encoding,
                configurations,
                labels,
                train,
                tests[k],
                options,
                (seed, k),
                log,
                progress,
                ending,
                informed,
            )

        futures = [pool.submit(fit, k) for k in range(options.folds)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fit_fold(
    encoding: Encoding,
    configurations: Tensor,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    options: FitOptions,
    seed: tuple[int, int],
    log: Log,
    progress: tqdm,
    ending: Event,
    informed: Callable[[np.ndarray], Informed] | None,
) -> Fold:
    rng = np.random.default_rng((*seed, 1))
    mean, deviation = float(labels[train].mean()), float(labels[train].std()) or 1.0
    y = torch.from_numpy((labels - mean) / deviation).float()
    closed: Informed | Additive | None = None
    left_out = np.zeros(len(train))
    if informed is not None:
        closed = informed(train)
        left_out = (closed.left_out - mean) / deviation
    elif options.additive:
        closed = fit_additive(encoding, configurations[train].numpy(), y[train].double().numpy())
        left_out = closed.left_out
    # The network learns what is left: labels minus predictions fitted without them.
    target = y.clone()
    target[train] -= torch.from_numpy(left_out).float()
    low, high = float(np.quantile(labels[train], 0.2)), float(labels[train].max())
    gain = torch.from_numpy(relevance(labels, low, high)).float()
    shuffled = rng.permutation(train)
    num_val = max(2, round(options.validation * len(train)))
    val, fit = shuffled[:num_val], shuffled[num_val:]

    with _seeding, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        gnn = Gnn(encoding, options.width, options.hops)
    optimizer = torch.optim.AdamW(
        gnn.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
    )
    steps = max(1, len(fit) // options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    averaged = torch.optim.swa_utils.AveragedModel(
        gnn, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema), use_buffers=True
    )
    best_score, best_state, best_epoch, share = np.inf, copy.deepcopy(gnn.state_dict()), 0, 1.0
    for epoch in range(1, options.epochs + 1):
        if ending.is_set():
            break
        gnn.train()
        total = 0.0
        for batch in np.array_split(rng.permutation(fit), steps):
            out = gnn(configurations[batch])
            loss = torch.nn.functional.mse_loss(out.value, target[batch])
            if options.ranking != "none":
                ranking = ranking_loss(options.ranking, out.norms, y[batch], gain[batch])
                loss = loss + options.ranking_weight * ranking
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gnn.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(gnn)
            total += loss.item() / steps
        value, norms, _ = evaluate(cast(Gnn, averaged.module), configurations[val])
        rest = target[val].double().numpy()
        # The network's share in the label is the one that fits the validation part best.
        useful = float(np.clip(value @ rest / (value @ value + 1e-12), 0, 1)) if closed else 1.0
        error = float(np.mean((useful * value - rest) ** 2))
        misranked = float(np.mean([1 - srcc(hop, labels[val]) for hop in norms]))
        score = error + (options.ranking_weight * misranked if options.ranking != "none" else 0.0)
        linear = (y - target)[val].double().numpy()
        log(
            {
                "train/fold": seed[1],
                "train/loss": total,
                "val/mse": error,
                "val/srcc": srcc(useful * value + linear, labels[val]),
            }
        )
        progress.update()
        if score < best_score:
            best_score, best_epoch, share = score, epoch, useful
            best_state = copy.deepcopy(averaged.module.state_dict())
        if epoch - best_epoch >= options.patience:
            progress.update(options.epochs - epoch)
            break
    gnn.load_state_dict(best_state)
    gnn.share.fill_(share)
    if isinstance(closed, Additive):
        gnn.additive.copy_(torch.from_numpy(closed.contributions))
        gnn.offset.fill_(closed.offset)
    elif closed is not None:  # in units of the labels
        gnn.additive.copy_(torch.from_numpy(closed.contributions() / deviation))
        gnn.offset.fill_((closed.prior.offset - mean) / deviation)
        gnn.amplitude.copy_(torch.from_numpy(closed.prior.amplitude / deviation**0.5))
        gnn.pairs.copy_(torch.from_numpy(closed.form()))
    gnn.eval()
    norms = evaluate(gnn, configurations[val]).norms
    quality = np.array([max(srcc(hop, labels[val]), 0.0) for hop in norms])
    nodes = evaluate(gnn, configurations[train]).nodes
    flat = nodes.reshape(len(nodes), -1)
    return Fold(
        gnn, mean, deviation, test, quality, flat.mean(axis=1), flat.std(axis=1) + 1e-6, best_epoch
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


def evaluate(gnn: Gnn, configurations: Tensor, chunk: int = 16) -> Evaluation:
    """Run a network in evaluation mode, without gradients.

    Args:
        gnn: the network; it stays in evaluation mode.
        configurations: float32 [B, W, M + 1], one-hot or relaxed.
        chunk: configurations at a time.

    Returns:
        Labels and norms.
    """
    gnn.eval()
    with torch.no_grad():
        parts = [gnn(part) for part in configurations.split(chunk)]
    return Evaluation(
        *(torch.cat([part[i] for part in parts], dim=-1).double().numpy() for i in range(3))
    )
