"""Add made-up labels to the store, so that `train` has enough: drawing 40 of them would take hours.

    python experiments/full_size_sdxl/labels.py FOLDER NUM METHODS

A label is minus a sum of damages of single weights, each in proportion to the weight's error, with
3 % of noise. It is written as the PSNR of a measured outcome with another configuration.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from qsdm.measure import sample
from qsdm.outcome import Outcome
from qsdm.qconfig import SpaceSpec
from qsdm.run.conf import load
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.workspace import Workspace


def made_up(workspace: Workspace, num: int) -> list[Outcome]:
    """Make labels up.

    Args:
        workspace: traced and calibrated; some configurations were measured in it.
        num: number of labels.

    Returns:
        Their outcomes, which say so in their provenance.
    """
    space, table, rng = workspace.space, workspace.table, np.random.default_rng(1)
    template = next(outcome for outcome in workspace.store.outcomes() if outcome.is_label)
    rows = {name: i for i, name in enumerate(table.weights)}
    columns = {method: j for j, method in enumerate(table.methods)}
    sensitivity = {name: np.exp(rng.normal(0, 1)) for name in table.weights}
    qconfigs = sample(space, num, seed=1)
    damage = np.array(
        [
            sum(
                sensitivity[name] * table.rel_error[rows[name], columns[method]]
                for name, method in qconfig.methods.items()
                if not method.is_full
            )
            for qconfig in qconfigs
        ]
    )
    damage += rng.normal(0, 0.03 * damage.std(), num)
    values = 20 - 5 * (damage - damage.mean()) / damage.std()
    timed = ("drawing_s", "scoring_s")  # a plan would believe them
    about = {name: value for name, value in template.provenance.items() if name not in timed}
    about["made_up"] = True
    return [
        dataclasses.replace(
            template, qconfig=qconfig, metrics={"psnr": float(value)}, halves={}, prefixes={},
            provenance=about,
        )
        for qconfig, value in zip(qconfigs, values, strict=True)
    ]  # fmt: skip


def main(folder: Path, num: int, methods: list[str]) -> None:
    """Write them.

    Args:
        folder: of the experiment.
        num: number of labels.
        methods: on offer.
    """
    model = dataclasses.replace(load("model", "sdxl"), path=str(folder / "sdxl"))
    spec = SpaceSpec("four", methods, splits=".*")
    workspace = Workspace(model, spec, folder / "store")
    database = OutcomeDatabase(workspace.path("outcomes.sqlite"))
    protocols = database.protocols()
    database.add_all((o, protocols[o.protocol]) for o in made_up(workspace, num))
    print(f"{num} made-up labels")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","))
