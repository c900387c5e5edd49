"""CLIP score: the same code for any CLIP in the layout of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qsdm.metrics import MetricError
from qsdm.metrics.clip_score import ClipScore


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import build_tiny_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("judge")
    tokenizer = build_tiny_tokenizer(max_length=24)
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, **size, **ids}
    vision = {"image_size": 16, "patch_size": 8, **size}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edge = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(
        size=edge, crop_size=edge, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
    return folder


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def test_is_a_cosine_per_picture_and_its_own_caption(judge: Path) -> None:
    metric = ClipScore(str(judge))
    captions = ["a red house", "the moon", "two fish"]
    cosines = metric.features(images(3), captions, None)
    assert cosines.shape == (3, 1)
    assert np.abs(cosines).max() <= 1 + 1e-6
    order = [2, 0, 1]
    shuffled = metric.features(images(3)[order], [captions[i] for i in order], None)
    np.testing.assert_allclose(shuffled, cosines[order], atol=1e-6)
    assert not np.allclose(
        metric.features(images(3), captions[::-1], None)[[0, 2]], cosines[[0, 2]], atol=1e-4
    )


def test_equals_the_model_s_own_logits(judge: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(judge).eval()
    tokens = CLIPTokenizer.from_pretrained(judge)(["a red house"], return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(judge)(
        images=[Image.fromarray(images(1)[0])], return_tensors="pt"
    )
    with torch.inference_mode():
        cosine = (model(**tokens, **pixels).logits_per_image / model.logit_scale.exp()).item()
    assert ClipScore(str(judge)).features(images(1), ["a red house"], None)[0, 0] == pytest.approx(
        cosine, abs=1e-5
    )


def test_negative_cosines_count_as_nothing() -> None:
    assert ClipScore().reduce(np.array([[0.4], [-0.2]], dtype=np.float32)) == pytest.approx(0.2)


def test_a_missing_judge_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="no CLIP model and processor at"):
        ClipScore(str(tmp_path)).features(images(1), ["a"], None)
