"""A W&B workspace that shows what commands log: sensitivities, fronts, pictures, comparisons.

    python -m qsdm.dashboard                                 # writes dashboard.json
    python -m qsdm.dashboard entity=TEAM project=qsdm name="Which layers matter"

One section per command, most telling first: pictures and pages, tables, then files. The workspace
is built and checked without an account, written as JSON, and saved in the project where `wandb
login` has been run; commands log to it with wandb=online. Each push makes a new view.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qsdm.report.tracked import PANELS, Kind
from qsdm.store.files import write_json
from qsdm.text import Log, ignore

TITLES = {
    "attribute": "Which weights are sensitive",
    "why": "Why a weight has its method",
    "realize": "What was chosen, measured",
    "compare": "Other pipelines on the same noise",
    "search": "The front, predicted",
    "train": "How well labels are predicted",
    "measure": "Labels",
    "probe": "Probes of single weights",
    "calibrate": "Errors of the weights",
    "trace": "The graph",
}
"""Headings by command, in the order of the sections."""


def dashboard(
    out: Path = Path("dashboard.json"),
    project: str = "qsdm",
    entity: str | None = None,
    name: str = "Sensitivity to quantization",
    log: Log = ignore,
) -> dict[str, Any]:
    """Write the workspace, and save it in W&B if an account is logged in.

    Args:
        out: the JSON file.
        project: of W&B, in which commands log.
        entity: user or team of W&B; by default that of the account.
        name: of the saved view.
        log: receives the file.

    Returns:
        What the file holds.

    Raises:
        BadInput: wandb-workspaces is not installed, or W&B refuses the workspace.
        StoreError: the file cannot be written.
    """
    from qsdm.run.trackers import wandb_workspace

    owner = wandb_workspace.account()
    built = wandb_workspace.workspace(name, project, entity or owner or "", sections())
    content = wandb_workspace.specification(built)
    write_json(Path(out), content)
    print(out)
    log({"dashboard/file": Path(out)})
    if owner is None:
        print("not saved in W&B, as no account is logged in: run `wandb login`, then this again")
    else:
        print(wandb_workspace.push(built))
    return content


def sections() -> list[Any]:
    """The sections of the workspace, one per command that logs anything to be shown."""
    from qsdm.run.trackers.wandb_workspace import Section

    def keys(command: str, kind: Kind) -> list[str]:
        return [key for key, other in PANELS[command].items() if other is kind]

    return [
        Section(
            f"{title} ({command})",
            keys(command, Kind.media),
            keys(command, Kind.table),
            keys(command, Kind.file),
        )
        for command, title in TITLES.items()
    ]
