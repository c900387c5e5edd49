"""Features of reference pictures, with which metrics compare, by network in one file.

The file is written once from a folder of pictures, and named by data set, resolution and number:

    python -m qsdm.metrics.reference PICTURES --name coco_val2017 --resolution 512 --num 5000
    => store/references/coco_val2017-512px-5000.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from qsdm.metrics import MetricError, file_digest, networks
from qsdm.store import ZOO
from qsdm.store.tensors import load_tensors, write_tensors

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Reference:
    """A file of reference features.

    Attributes:
        source: safetensors file that `write_features` wrote; ``zoo`` for that of 1,000 pictures of
            the emoji set.
    """

    source: str

    @property
    def path(self) -> Path:
        """The file, whether or not it exists."""
        if self.source == "zoo":
            return ZOO / "emoji_unet" / "reference_features.safetensors"
        return Path(self.source).expanduser()

    @property
    def version(self) -> str:
        """A text that changes with the content of the file."""
        return f"reference {file_digest(self.path)}"

    def features(self, network: str, num_features: int | None) -> np.ndarray:
        """The features of M reference pictures.

        Args:
            network: lite0, inception or clip.
            num_features: the D that the file must have; None: any.

        Returns:
            float32 [M, D].

        Raises:
            MetricError: the file is missing or damaged, or of other features.
        """
        features = _read(self.path, file_digest(self.path)).get(network)
        if features is None or (num_features is not None and features.shape[1] != num_features):
            actual = "none" if features is None else f"{features.shape[1]} numbers each"
            raise MetricError(
                f"wanted reference features of {network}, {num_features} numbers each "
                f"(got {actual} in {self.path}): write them with python -m qsdm.metrics.reference"
            )
        return features


@lru_cache(maxsize=8)
def _read(path: Path, _digest: str) -> dict[str, np.ndarray]:
    try:
        return {name: features.astype(np.float32) for name, features in load_tensors(path).items()}
    except (OSError, ValueError) as error:
        raise MetricError(
            f"{path} is damaged or not a file of reference features ({error}): restore it"
        ) from error


def write_features(
    path: Path, features: dict[str, np.ndarray], about: dict[str, str | int]
) -> None:
    """Write features as float16.

    Args:
        path: the safetensors file, replaced if it exists.
        features: by network, [M, D].
        about: what they were computed from, stored beside them.

    Raises:
        StoreError: it cannot be written.
    """
    write_tensors(
        path, {name: values.astype(np.float16) for name, values in features.items()}, about
    )


def read_pictures(folder: Path, resolution_px: int, num: int | None) -> Iterator[np.ndarray]:
    """Read the pictures of a folder in the order of their names.

    Args:
        folder: with its subfolders.
        resolution_px: edge to which the center squares are resized.
        num: how many to read; None: all.

    Yields:
        uint8 [resolution_px, resolution_px, 3].

    Raises:
        MetricError: there are fewer than ``num``, or one cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths or (num is not None and len(paths) < num):
        raise MetricError(
            f"wanted {num or 'some'} pictures in {folder} "
            f"(got {len(paths)} of {', '.join(SUFFIXES)})"
        )
    for path in paths[:num]:
        try:
            with Image.open(path) as picture:
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                square = picture.convert("RGB").crop((left, top, left + side, top + side))
                yield np.asarray(
                    square.resize((resolution_px, resolution_px), Image.Resampling.BICUBIC)
                )
        except (OSError, UnidentifiedImageError) as error:
            raise MetricError(
                f"{path} cannot be read as a picture ({error}): remove or restore it"
            ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the features of the pictures that the command line names.

    Args:
        arguments: of the command line; None: those of this process.

    Raises:
        SystemExit: with a sentence, if they cannot be computed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="folder of pictures, with its subfolders")
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument(
        "--resolution",
        type=int,
        required=True,
        help="edge in pixels to which the center squares are resized",
    )
    parser.add_argument("--num", type=int, help="number of pictures, first by name (default: all)")
    parser.add_argument(
        "--networks", nargs="+", default=["inception"], choices=("inception", "clip", "lite0")
    )
    parser.add_argument(
        "--clip", default="openai/clip-vit-base-patch16", help="CLIP of cmmd: hub id or directory"
    )
    parser.add_argument("--store", type=Path, default=Path("store"))
    args = parser.parse_args(arguments)
    try:
        print(f"=> {compute(args)}")
    except MetricError as error:
        raise SystemExit(str(error)) from None


def compute(args: argparse.Namespace) -> Path:
    """Write the features and, for Inception, the moments that `qsdm.metrics.frechet` reads.

    Args:
        args: the options of `main`.

    Returns:
        The file of the features.

    Raises:
        MetricError: there are too few pictures, or a network is missing.
    """
    from tqdm import tqdm

    from qsdm.metrics import frechet

    computations = {
        "lite0": networks.lite0,
        "inception": networks.inception,
        "clip": lambda images: networks.clip_pictures(args.clip, None, images),
    }
    parts: dict[str, list[np.ndarray]] = {name: [] for name in args.networks}
    batch: list[np.ndarray] = []

    def flush() -> None:
        for name in args.networks:
            parts[name].append(computations[name](np.stack(batch)))
        batch.clear()

    count = 0
    for picture in tqdm(
        read_pictures(args.pictures, args.resolution, args.num), "reference", args.num, disable=None
    ):
        batch.append(picture)
        count += 1
        if len(batch) == networks.BATCH:
            flush()
    if batch:
        flush()
    features = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    path = args.store / "references" / f"{args.name}-{args.resolution}px-{count}.safetensors"
    about: dict[str, str | int] = {
        "dataset": args.name,
        "resolution_px": args.resolution,
        "num_images": count,
    }
    write_features(path, features, about)
    if "inception" in features:
        frechet.write_reference(
            path.with_name(f"{path.stem}-moments.safetensors"), features["inception"]
        )
    return path


if __name__ == "__main__":
    main()
