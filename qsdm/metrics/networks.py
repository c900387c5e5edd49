"""What several metrics share: pixels for networks; features of Lite0, Inception and CLIP, computed once for the same
pictures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.metrics import MetricError, file_digest
from qsdm.store import ZOO

BATCH = 64
_KEPT = 12  # of three networks: the pictures at hand, those of full precision, and what was before

_known: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()


def once(
    network: str, images: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """``compute(images)``, or what it gave for equal pictures before.

    Args:
        network: names the computation with all that changes it.
    """
    key = network, pictures_digest(images)
    if key not in _known:
        _known[key] = compute(images)
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    _known.move_to_end(key)
    return _known[key]


def pictures_digest(images: np.ndarray) -> str:
    """sha256 of pictures uint8 [N, H, W, 3]."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def pixels(images: np.ndarray) -> Any:
    """uint8 [N, H, W, 3] => float32 tensor [N, 3, H, W], 0 to 1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def lite0(images: np.ndarray) -> np.ndarray:
    """Pictures => float32 [N, 112] (see `qsdm.metrics.lite0`)."""
    from qsdm.metrics import lite0 as network

    return once("lite0", images, network.features)


def inception(images: np.ndarray) -> np.ndarray:
    """Pictures => the 2048 pooled features of the Inception network of the original FID, float32 [N, 2048].

    Raises:
        MetricError: torch-fidelity is missing, or the weights, which are downloaded once, cannot be had.
    """

    def compute(images: np.ndarray) -> np.ndarray:
        import torch

        network = _inception()
        with torch.inference_mode():
            batches = (
                torch.from_numpy(images[i : i + 32]).permute(0, 3, 1, 2)
                for i in range(0, len(images), 32)
            )
            return torch.cat([network(batch)[0] for batch in batches]).numpy().astype(np.float32)

    return once("inception", images, compute)


@lru_cache(maxsize=1)
def _inception() -> Any:
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as port

        path = downloaded(port.URL_INCEPTION_V3)
    except (ImportError, OSError) as error:
        raise MetricError(
            f"features of Inception need torch-fidelity and its weights ({error}): pip install 'qsdm[inception]', "
            "or measure without the metrics of Inception"
        ) from error
    return port.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    ).eval()


def downloaded(url: str) -> Path:
    """The file in torch's cache, fetched if it is not there. Its name ends with the beginning of its sha256.

    A library that takes the file would run whatever code lay in it: so it must be the published one.

    Raises:
        OSError: it cannot be fetched.
        MetricError: it is another one, or damaged.
    """
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    wanted = path.stem.rpartition("-")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(path))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise MetricError(
            f"{path} is damaged, or not the published one (wanted sha256 {wanted}..., got {found[:8]}...): delete it"
        )
    return path


def clip_source(judge: str) -> str:
    """Hub id or directory of a judge; ``zoo`` is the small CLIP of the emoji set."""
    return str(ZOO / "judge") if judge == "zoo" else judge


def clip_version(judge: str, revision: str | None) -> str:
    directory = Path(clip_source(judge)).expanduser()
    if directory.is_dir() or judge == "zoo":
        return f"clip {file_digest(directory)}"
    return f"clip {judge}@{revision or 'main'}"


def clip_pictures(judge: str, revision: str | None, images: np.ndarray) -> np.ndarray:
    """Pictures => embeddings of length 1, float32 [N, D].

    Raises:
        MetricError: there is no such CLIP.
    """

    def compute(images: np.ndarray) -> np.ndarray:
        import torch
        from PIL import Image
        from torch.nn import functional as F

        model, processor, _ = _clip(clip_source(judge), revision)
        found = []
        with torch.inference_mode():
            for i in range(0, len(images), BATCH):
                shown = processor(
                    images=[Image.fromarray(image) for image in images[i : i + BATCH]],
                    return_tensors="pt",
                )
                found.append(
                    F.normalize(
                        _pooled(model.get_image_features(pixel_values=shown["pixel_values"])),
                        dim=-1,
                    )
                )
            return torch.cat(found).numpy()

    return once(f"clip {judge} {revision}", images, compute)


@lru_cache(maxsize=16384)
def clip_caption(judge: str, revision: str | None, caption: str) -> Any:
    """The caption's embedding of length 1, float32 tensor [D]. Of more tokens than the CLIP reads (77), the first ones
    and the end mark count."""
    import torch
    from torch.nn import functional as F

    model, _, tokenizer = _clip(clip_source(judge), revision)
    with torch.inference_mode():
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer([caption], truncation=True, max_length=limit, return_tensors="pt")
        return F.normalize(_pooled(model.get_text_features(**tokens)), dim=-1)[0]


def _pooled(out: Any) -> Any:
    return getattr(out, "pooler_output", out)  # transformers 5 wraps the embedding


@lru_cache(maxsize=2)
def _clip(source: str, revision: str | None) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    try:
        model = (
            CLIPModel.from_pretrained(source, revision=revision or "main", dtype="float32")
            .eval()
            .requires_grad_(False)
        )
        processor = CLIPImageProcessorPil.from_pretrained(source, revision=revision or "main")
        return model, processor, AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise MetricError(
            f"no CLIP model and processor at {source!r}: give the judge of the metric in conf/metrics, "
            f"or download it once with `hf download {source}`"
        ) from error
