"""Draw the pictures of the README and the docs from a store that `make demo` filled.

    python experiments/docs_pictures.py                      # store/emoji_unet => docs/*.png
    python experiments/docs_pictures.py --store DIRECTORY --model emoji_unet --out FOLDER

The figures are those of the page and the notebooks. Takes seconds; nothing is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm.report import figures, results
from qsdm.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN: dict[str, Callable[[results.Results], Figure]] = {
    "front": figures.front,
    "sensitivity": figures.sensitivity,
    "interventions": figures.interventions,
}


def contents(artifacts: results.Results) -> dict[str, bytes]:
    """Draw the figures, and take the comparison of pictures from the store.

    Args:
        artifacts: of a model whose stages have all run.

    Returns:
        PNG by name.

    Raises:
        NotRun: a stage has not run; the message names it.
    """
    if "comparison" not in artifacts.pictures:
        raise results.NotRun(artifacts.denoiser, "pictures", "realize")
    drawn = {name: figures.png(draw(artifacts)) for name, draw in DRAWN.items()}
    if artifacts.certificate is not None:  # the demo measures none
        drawn["certificate"] = figures.png(figures.certificate(artifacts, 9.0))
    return drawn | {"comparison": artifacts.pictures["comparison"]}


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of the artifacts")
    parser.add_argument("--model", default="emoji_unet", help="whose artifacts to draw")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, png in contents(results.read(Store(options.store, options.model))).items():
        (options.out / f"{name}.png").write_bytes(png)
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
