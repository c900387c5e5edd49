"""Measure some outcomes of a shipped label bank again: how much do they differ on this machine?

    python experiments/zoo/reproduce.py --name emoji_unet --num 8

Machines round differently, and one without bfloat16 computes in float32. Configurations of the test
set, spread over its range of distances, are drawn again with the same captions and noise. The table
shows both distances, and their difference next to the label's standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from architectures import ARCHITECTURES, model_of
from bank import spec
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qsdm.calibrate import calibrate
from qsdm.denoisers import computed_in, prompts_of
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.protocol import protocol_of
from qsdm.predictor.scores import srcc
from qsdm.quant.calibrated import PackedWeights
from qsdm.store import Store
from qsdm.trace import trace
from qsdm.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--zoo", type=Path, default=Path("qsdm/zoo"), help="where the pipelines lie"
    )
    parser.add_argument("--name", choices=ARCHITECTURES, default="emoji_unet")
    parser.add_argument("--num", type=int, default=8, help="configurations")
    args = parser.parse_args()
    metrics = instantiate(OmegaConf.load("conf/metrics/emoji.yaml"), _convert_="all")
    model = dataclasses.replace(model_of(args.name, args.zoo), metrics=metrics)
    prompts = prompts_of(model)
    protocol = protocol_of(model, prompts, seed_set=0, num_images=256)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), args.name)
        shipped = [
            o for o in store.outcomes(protocol) if len(o.qconfig.methods) != 1 and not o.is_label
        ]
        shipped.sort(key=lambda o: o.metrics["fd_lite0"] or 0.0)
        if len(shipped) < args.num:
            raise SystemExit(
                f"only {len(shipped)} outcomes of a test set ship with {args.name}: "
                "give a smaller --num"
            )
        chosen = [
            shipped[i] for i in np.linspace(0, len(shipped) - 1, args.num).round().astype(int)
        ]
        graph = trace(Workspace(model, root=Path(folder)), page=False)
        calibrate(Workspace(model, spec("traced"), Path(folder)))
        packed = PackedWeights(Path(folder) / args.name / "calibration" / "traced")
        here = Evaluator(Drawer(model, graph, packed), metrics, protocol, prompts)
        print(f"computed in {str(computed_in(model.dtype)).removeprefix('torch.')} here")
        print(
            f"{'configuration':<14}{'there':>10}{'here':>10}{'difference':>12}"
            f"{'standard error':>16}"
        )
        pairs = []
        for outcome in chosen:
            there, error = outcome.metrics["fd_lite0"], outcome.standard_error("fd_lite0")
            now = here.outcome(outcome.qconfig).metrics["fd_lite0"]
            pairs.append((there, now))
            name = outcome.qconfig.digest[:12]
            line = f"{name:<14}{there:>10.2f}{now:>10.2f}{now - there:>12.2f}{error:>16.2f}"
            print(line, flush=True)
    there, now = np.array(pairs).T
    print(
        f"rank correlation {srcc(there, now):.3f}, "
        f"largest difference {np.abs(now - there).max():.2f}"
    )


if __name__ == "__main__":
    main()
