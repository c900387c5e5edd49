"""A workspace of W&B as code: sections of panels that show what commands log.

    https://docs.wandb.ai: a saved view of a project; its panels show keys of the runs beside it.

The library checks every panel when it is made, and nothing needs an account until `push`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsdm.run.conf import BadInput
from qsdm.run.trackers import plain_name

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under one heading.

    Attributes:
        title: the heading.
        media: keys of pictures and pages.
        tables: keys of tables.
        files: keys of files and folders, which are artifacts.
    """

    title: str
    media: Sequence[str] = ()
    tables: Sequence[str] = ()
    files: Sequence[str] = ()


def library() -> tuple[Any, Any]:
    """The modules of wandb-workspaces with the panels, and with workspaces.

    Raises:
        BadInput: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # 0.4.13 validates in the style of pydantic 1.
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise BadInput(
            "a dashboard needs the package wandb-workspaces: run pip install 'qsdm[dashboard]'"
        ) from error
    return reports, spaces


def workspace(name: str, project: str, entity: str, sections: Sequence[Section]) -> Workspace:
    """Build a workspace, whose runs are grouped by command and sweep.

    Args:
        name: of the saved view.
        project: in which commands log.
        entity: a user or team of W&B.
        sections: in order; one without keys is left out.

    Raises:
        BadInput: the library is not installed, or refuses a name.
    """
    from pydantic import ValidationError  # wandb depends on it

    reports, spaces = library()

    def panels(section: Section) -> list[Any]:
        return [
            *(reports.MediaBrowser(title=key, media_keys=[key]) for key in section.media),
            *(reports.WeavePanelSummaryTable(table_name=key) for key in section.tables),
            *(reports.WeavePanelArtifact(artifact=plain_name(key)) for key in section.files),
        ]

    try:
        return spaces.Workspace(
            name=name,
            project=project,
            entity=entity,
            sections=[
                spaces.Section(name=section.title, panels=shown, is_open=True)
                for section in sections
                if (shown := panels(section))
            ],
            runset_settings=spaces.RunsetSettings(
                groupby=[spaces.Metric("JobType"), spaces.Metric("Group")]
            ),
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadInput(f"W&B takes no workspace of the name {name!r}: {reason}") from error


def specification(built: Workspace) -> dict[str, Any]:
    """What W&B stores of a workspace, as plain data.

    Args:
        built: by `workspace`.
    """
    # There is no public name for it; `save` sends the same.
    view = built._to_model()
    content: dict[str, Any] = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    return content


def shown(specified: Mapping[str, Any]) -> set[str]:
    """The keys of media and tables, and the names of artifacts, that a specification shows.

    Args:
        specified: by `specification`.
    """
    keys: set[str] = set()
    for section in specified["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config = panel["config"]
            keys.update(config.get("mediaKeys", ()))
            if "panel2Config" in config:
                keys.update(_constants(config["panel2Config"]["exp"]))
    return keys


def _constants(expression: Mapping[str, Any]) -> set[str]:
    """The texts by which a query picks a column of the runs' summaries, or an artifact."""
    inputs = expression.get("fromOp", {}).get("inputs", {})
    names = {inputs[key]["val"] for key in ("key", "artifactName") if "val" in inputs.get(key, {})}
    return names.union(*(_constants(value) for value in inputs.values()))


def account() -> str | None:
    """The entity of the account that is logged in; None if there is none. Nothing asks for it."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return None
    return wandb.Api().default_entity


def push(built: Workspace) -> str:
    """Save a workspace as a new view of its project.

    Args:
        built: by `workspace`, of the account's entity.

    Returns:
        Its address.

    Raises:
        BadInput: W&B cannot be reached or refuses it.
    """
    try:
        return str(built.save().url)
    except Exception as error:  # whatever the network and the server do
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        raise BadInput(
            f"W&B did not take the workspace ({type(error).__name__}: {reason}): check the network,"
            f" and that {built.entity!r} may write to the project {built.project!r}"
        ) from error
