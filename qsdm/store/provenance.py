"""Where an artifact came from."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Versions, commit and time, to be stored in an artifact.

    Returns:
        An object that JSON can hold, without names or paths of the machine. ``commit`` is None
        outside a git checkout.
    """
    versions = {}
    for package in ("qsdm", "torch", "diffusers", "transformers", "numpy", "torch-geometric"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": versions,
        "commit": git.stdout.strip() if git.returncode == 0 else None,
    }
