"""Networks that several metrics share: features of Lite0, Inception and CLIP, cached by picture."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.metrics import MetricError, file_digest
from qsdm.store import ZOO

if TYPE_CHECKING:
    import torch

BATCH = 64
_MAX_CACHED_BYTES = 2**27  # of Inception those of 16,000 pictures, of Lite0 of 300,000

_cache: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()


def once(
    network: str, images: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """``compute(images)``, or its cached result for the same pictures.

    Args:
        network: names the computation, with everything that changes its result.
        images: uint8 [N, H, W, 3].
        compute: pictures => features [N, F].

    Returns:
        The features, to be read only.
    """
    key = network, pictures_digest(images)
    if key not in _cache:
        _cache[key] = compute(images)
        while len(_cache) > 1 and sum(kept.nbytes for kept in _cache.values()) > _MAX_CACHED_BYTES:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def pictures_digest(images: np.ndarray) -> str:
    """The sha256 of pictures.

    Args:
        images: uint8 [N, H, W, 3].
    """
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def pixels(images: np.ndarray) -> torch.Tensor:
    """Pictures as networks take them.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        float32 [N, 3, H, W], 0 to 1.
    """
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def lite0(images: np.ndarray) -> np.ndarray:
    """Features of `qsdm.metrics.lite0`.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        float32 [N, 112].
    """
    from qsdm.metrics import lite0 as network

    return once("lite0", images, network.features)


def inception(images: np.ndarray) -> np.ndarray:
    """The pooled features of the Inception network of the original FID.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        float32 [N, 2048].

    Raises:
        MetricError: torch-fidelity is missing, or the weights, which are downloaded once, cannot be
            downloaded.
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
            f"features of Inception need torch-fidelity and its weights ({error}): run pip install "
            "'qsdm[inception]', or measure without the metrics of Inception"
        ) from error
    return port.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    ).eval()


def downloaded(url: str) -> Path:
    """A file in torch's cache, downloaded if it is not there.

    The library that unpickles the file would run any code in it, so its checksum is compared.

    Args:
        url: of the file, whose name ends with the beginning of its sha256.

    Raises:
        OSError: it cannot be downloaded.
        MetricError: it is damaged or another file.
    """
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    expected = path.stem.rpartition("-")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(path))
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise MetricError(
            f"{path} is damaged or not the published file "
            f"(wanted sha256 {expected}..., got {actual[:8]}...): delete it"
        )
    return path


def clip_source(judge: str) -> str:
    """The hub id or directory of a judge.

    Args:
        judge: either, or ``zoo`` for the small CLIP of the emoji set.
    """
    return str(ZOO / "judge") if judge == "zoo" else judge


def clip_version(judge: str, revision: str | None) -> str:
    """A text that changes with the weights of a CLIP, as far as its files tell.

    Args:
        judge: see `clip_source`.
        revision: branch, tag or commit of the hub repository; None for its main branch.

    Raises:
        MetricError: ``zoo`` is missing.
    """
    directory = Path(clip_source(judge)).expanduser()
    if directory.is_dir() or judge == "zoo":
        return f"clip {file_digest(directory)}"
    return f"clip {judge}@{revision or 'main'}"


def clip_pictures(judge: str, revision: str | None, images: np.ndarray) -> np.ndarray:
    """Embeddings of pictures.

    Args:
        judge: see `clip_source`.
        revision: branch, tag or commit of the hub repository; None for its main branch.
        images: uint8 [N, H, W, 3].

    Returns:
        float32 [N, D], each of length 1.

    Raises:
        MetricError: there is no such CLIP.
    """

    def compute(images: np.ndarray) -> np.ndarray:
        import torch
        from PIL import Image
        from torch.nn import functional as F

        model, processor, _ = _clip(clip_source(judge), revision)
        batches = []
        with torch.inference_mode():
            for i in range(0, len(images), BATCH):
                inputs = processor(
                    images=[Image.fromarray(image) for image in images[i : i + BATCH]],
                    return_tensors="pt",
                )
                embeddings = model.get_image_features(pixel_values=inputs["pixel_values"])
                batches.append(F.normalize(_pooled(embeddings), dim=-1))
            return torch.cat(batches).numpy()

    return once(f"clip {judge} {revision}", images, compute)


@lru_cache(maxsize=16384)
def clip_caption(judge: str, revision: str | None, caption: str) -> torch.Tensor:
    """The embedding of a caption.

    Args:
        judge: see `clip_source`.
        revision: branch, tag or commit of the hub repository; None for its main branch.
        caption: any text; it is cut to the tokens that the CLIP reads (77), end mark included.

    Returns:
        float32 [D], of length 1.

    Raises:
        MetricError: there is no such CLIP.
    """
    import torch
    from torch.nn import functional as F

    model, _, tokenizer = _clip(clip_source(judge), revision)
    with torch.inference_mode():
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer([caption], truncation=True, max_length=limit, return_tensors="pt")
        return F.normalize(_pooled(model.get_text_features(**tokens)), dim=-1)[0]


def _pooled(out: Any) -> torch.Tensor:
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
            f"no CLIP model and processor at {source!r}: set the metric's judge in conf/metrics, "
            f"or download it once with `hf download {source}`"
        ) from error
