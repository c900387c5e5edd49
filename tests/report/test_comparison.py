"""The page of a comparison says what its JSON says, and no more than the intervals carry."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from qsdm.report import comparison, grids

METRICS = {
    "fid": {"label": "FID", "larger_is_better": False, "digits": 1},
    "psnr": {"label": "PSNR, dB", "larger_is_better": True, "digits": 2},
}


def pipeline(name: str, fid: float, psnr: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "protocol": {
            "sampler": "DDIMScheduler 0123",
            "steps": 10,
            "guidance": 2.0,
            "resolution_px": 32,
            "dtype": "float32",
        },
        "metrics": {"fid": fid, "psnr": psnr},
        "standard_errors": {"fid": 8.0, "psnr": None if psnr is None else 0.25},
        "per_drawing": {} if psnr is None else {"psnr": [psnr - 1, psnr + 1]},
        "size_bytes": None if psnr is None else 1_500_000,
        "picture_s": 0.0625,
        "load_s": 1.25,
        "peak_bytes": None,
        "device": "cpu",
    }


def pair(first: str, second: str, value: float, low: float, high: float, verdict: str) -> Any:
    return {
        "first": first,
        "second": second,
        "metric": "fid",
        "value": value,
        "standard_error": (high - low) / 3.92,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


CONTENT: dict[str, Any] = {
    "num_images": 2,
    "seed_set": 0,
    "metrics": METRICS,
    "fidelity": ["psnr"],
    "pipelines": [pipeline("A", 20, None), pipeline("B<b>", 25, 24), pipeline("C", 21, 30)],
    "differences": [
        pair("A", "B<b>", 5, 3.5, 6.5, "worse"),
        pair("A", "C", 1, -0.5, 2.5, "no difference seen"),
        pair("B<b>", "C", -4, -5.5, -2.5, "better"),
    ],
    "captions": [
        {"number": 1, "caption": "a & b", "values": {"B<b>": {"psnr": 23}, "C": {"psnr": 29}}}
    ],
    "limits": [
        {"pipeline": "B<b>", "metric": "psnr", "limit": 25, "value": 24, "kept": False},
        {"pipeline": "C", "metric": "psnr", "limit": 25, "value": 30, "kept": True},
    ],
    "provenance": {"made": "2026-01-02T03:04:05", "versions": {"qsdm": "1.0"}},
}
PICTURES = {name: np.zeros((1, 8, 8, 3), np.uint8) for name in ("A", "B<b>", "C")}


@pytest.fixture(scope="module")
def text() -> str:
    return comparison.render(CONTENT, PICTURES)


def test_the_heading_says_what_intervals_carry() -> None:
    assert comparison.heading(CONTENT) == (
        "Against A. B<b>: worse in FID; PSNR 24.00 dB. C: no difference seen in FID; PSNR 30.00 dB."
    )


def test_the_heading_begins_with_what_was_found() -> None:
    verdicts = {"psnr": "no difference seen", "fid": "worse", "ssim": "better"}
    metrics = {**METRICS, "ssim": {"label": "SSIM", "larger_is_better": True, "digits": 3}}
    found = [
        {**pair("A", "C", 1, 0, 2, verdict), "metric": metric}
        for metric, verdict in verdicts.items()
    ]
    pipelines = [CONTENT["pipelines"][0], CONTENT["pipelines"][2]]
    content = {**CONTENT, "metrics": metrics, "differences": found, "pipelines": pipelines}
    assert comparison.heading(content) == (
        "Against A. C: better in SSIM; worse in FID; no difference seen in PSNR; PSNR 30.00 dB."
    )


def test_wide_tables_are_reached_by_the_keyboard(text: str) -> None:
    assert text.count('class="scroll"') == 4
    labels = re.findall(r'class="scroll" tabindex="0" role="region" aria-label="([^"]+)"', text)
    assert labels == ["Measured", "B&lt;b&gt; − A", "C − A", "C − B&lt;b&gt;"]
    assert ".scroll:focus-visible" in text


def test_differences_stand_by_pair_with_their_intervals() -> None:
    first, _, last = comparison.pairs(CONTENT)
    assert first["title"] == "B<b> − A"
    assert first["rows"] == [
        {"metric": "FID", "value": "+5.0", "interval": "+3.5 to +6.5", "verdict": "worse"}
    ]
    assert last["rows"][0]["interval"] == "−5.5 to −2.5"


def test_what_is_not_known_is_a_dash() -> None:
    assert comparison.table(CONTENT) == {
        "heads": ["", "A", "B<b>", "C"],
        "rows": [
            ["denoiser's files", "–", "1.5 MB", "1.5 MB"],
            ["drawing a picture", "0.0625 s", "0.0625 s", "0.0625 s"],
            ["peak memory", "–", "–", "–"],
            ["FID", "20.0 ± 8.0", "25.0 ± 8.0", "21.0 ± 8.0"],
            ["PSNR, dB", "–", "24.00 ± 0.25", "30.00 ± 0.25"],
        ],
    }


def test_the_terminal_shows_the_same_numbers() -> None:
    lines = comparison.as_text(CONTENT).splitlines()
    assert lines[4].split() == ["FID", "20.0", "±", "8.0", "25.0", "±", "8.0", "21.0", "±", "8.0"]
    assert lines[-1].split() == ["FID", "−4.0", "−5.5", "to", "−2.5", "better"]


def test_names_are_text_and_limits_are_said(text: str) -> None:
    assert "<b>" not in text
    assert "B&lt;b&gt;: psnr 24 is below limit.psnr=25" in text
    assert "C keeps limit.psnr=25" in text
    assert "a &amp; b" in text
    assert text.count("<img") == 3
    assert "<script" not in text


def test_large_pictures_are_scaled_down_and_small_ones_kept() -> None:
    large = np.zeros((1024, 512, 3), np.uint8)
    large[:512] = 200
    small = grids.thumbnails(large[None], 256)[0]
    assert small.shape == (256, 128, 3)
    assert (small[:128] == 200).all()
    assert not small[128:].any()
    kept = np.zeros((2, 32, 32, 3), np.uint8)
    assert grids.thumbnails(kept, 256) is kept
