"""Captions with pictures: folders and JSON files, and one sentence for each way in which they do
not fit a pipeline.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from edit_files import write_edits
from PIL import Image

from qsdm.denoisers import conditioning
from qsdm.measurement.frames import evenly_spaced, pictures_of
from qsdm.measurement.protocol import prompts_digest
from qsdm.measurement.scoring import ScoredShard, outcome_of, splits
from qsdm.outcome import EvaluationError, Protocol
from qsdm.prompts import PromptsError
from qsdm.prompts.edits import Edit, Edits, read_picture
from qsdm.qconfig import QuantConfig


def test_a_folder_and_a_json_say_the_same(tmp_path: Path) -> None:
    folder = write_edits(tmp_path / "edits")
    read = Edits(str(folder)).read()
    assert [str(edit) for edit in read] == [f"a cat, number {i}" for i in range(4)]
    assert read[2].mask_image == str(folder / "2.mask.png")
    rows = [
        {
            "prompt": f"a cat, number {i}",
            "image": f"edits/{i}.png",
            "mask_image": f"edits/{i}.mask.png",
            "control_image": f"edits/{i}.control.png",
        }
        for i in range(4)
    ]
    (tmp_path / "edits.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    listed = Edits(str(tmp_path / "edits.json")).read()
    assert prompts_digest(listed) == prompts_digest(read)


def test_the_digest_follows_the_pictures_not_their_names(tmp_path: Path) -> None:
    folder = write_edits(tmp_path / "edits")
    before = prompts_digest(Edits(str(folder)).read())
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert prompts_digest(Edits(str(moved)).read()) == before
    with Image.open(folder / "1.png") as picture:
        changed = np.array(picture)
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(folder / "1.png")
    assert prompts_digest(Edits(str(folder)).read()) != before


def test_the_middle_square_is_resized_and_photographs_stand_upright(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (np.array(read_picture(tmp_path / "wide.png", 20)) == 200).all()
    mask = np.zeros((2, 2), np.uint8)
    mask[:, 1] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert set(np.unique(np.array(read_picture(tmp_path / "mask.png", 7, "L")))) == {0, 255}
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    top = np.zeros((8, 8, 3), np.uint8)
    top[:4] = 255
    Image.fromarray(top).save(tmp_path / "photo.png", exif=exif)
    assert np.array(read_picture(tmp_path / "photo.png", 8))[-1].min() == 255


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "empty",
        lambda folder: [file.unlink() for file in folder.iterdir()],
        "no pictures in .*give prompts.path=FOLDER",
    ),
    ("orphan", lambda folder: (folder / "z.txt").write_text("x"), "'z' in .* has no picture"),
    ("twice", lambda folder: (folder / "1.jpg").write_bytes(b""), "two files of '1'"),
    (
        "truncated",
        lambda folder: (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:80]),
        r"1\.png cannot be read as a picture",
    ),
    (
        "text",
        lambda folder: (folder / "1.png").write_text("version https://git-lfs"),
        r"1\.png cannot be read as a picture",
    ),
    (
        "deep",
        lambda folder: Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "1.control.png"),
        "more than 8 bits per channel",
    ),
]


@pytest.mark.parametrize(
    ("damage", "words"), [case[1:] for case in BROKEN], ids=[name for name, *_ in BROKEN]
)
def test_a_broken_folder_gets_one_sentence(
    damage: Callable[[Path], object],
    words: str,
    tmp_path: Path,
) -> None:
    folder = write_edits(tmp_path / "edits")
    damage(folder)
    with pytest.raises(PromptsError, match=words):
        prompts_digest(Edits(str(folder)).read())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"image": "a.png"}', "it does not hold a list of entries"),
        ("[]", "it does not hold a list of entries"),
        ('["a.png"]', "entry 0 is not a mapping"),
        ('[{"picture": "a.png"}]', "entry 0 has a 'picture', but takes prompt, image"),
        ('[{"image": 3}]', "the image of entry 0 is not a string"),
        ('[{"prompt": "x"}]', "entry 0 of .* has no picture"),
        ('[{"image": "a.png"}]', r"no file .*a\.png, which entry 0 of"),
        ("[{", "truncated or of another kind"),
    ],
)
def test_a_broken_json_gets_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "edits.json").write_text(content)
    with pytest.raises(PromptsError, match=words):
        Edits(str(tmp_path / "edits.json")).read()


def without(edits: list[Edit], **fields: None) -> list[Edit]:
    return [dataclasses.replace(edit, **fields) for edit in edits]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("StableDiffusionPipeline", {}, "takes no picture: give prompts=captions"),
        ("StableDiffusionInpaintPipeline", None, "wants a picture and a mask for every caption"),
        ("StableDiffusionInpaintPipeline", {"mask_image": None}, "wants a mask, and '0' in .* has"),
        ("StableDiffusionImg2ImgPipeline", {"image": None}, r"add NAME\.png"),
        ("FluxControlPipeline", {"control_image": None, "image": None}, "wants a control picture"),
        ("StableDiffusionInstructPix2PixPipeline", {"prompt": None}, "wants a caption, and '0'"),
        ("WanImageToVideoPipeline", None, "wants a picture for every caption"),
        ("KandinskyV22Pipeline", None, "wants image_embeds, which no prompts of qsdm contain"),
        ("WanVideoToVideoPipeline", None, "wants video, which no prompts of qsdm contain"),
    ],
)
def test_prompts_that_do_not_fit_are_told(
    kind: str, change: dict[str, None] | None, words: str, tmp_path: Path
) -> None:
    edits = Edits(str(write_edits(tmp_path / "edits", 2))).read()
    prompts = ["a cat"] if change is None else without(edits, **change)
    with pytest.raises(PromptsError, match=words):
        conditioning.check(getattr(diffusers, kind), prompts)


@pytest.mark.parametrize(
    "kind",
    [
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "FluxFillPipeline",
        "FluxKontextPipeline",
        "StableVideoDiffusionPipeline",
    ],
)
def test_prompts_that_fit_pass(kind: str, tmp_path: Path) -> None:
    conditioning.check(
        getattr(diffusers, kind), Edits(str(write_edits(tmp_path / "edits", 2))).read()
    )


def test_masks_of_another_size_are_told(tmp_path: Path) -> None:
    folder = write_edits(tmp_path / "edits", 2)
    Image.new("L", (32, 64)).save(folder / "1.mask.png")
    with pytest.raises(PromptsError, match=r"has 32 x 64 px, its picture 64 x 64"):
        conditioning.check(diffusers.FluxFillPipeline, Edits(str(folder)).read())


def test_pictures_are_an_option_of_editors_that_draw_from_text_too() -> None:
    for kind in (diffusers.FluxKontextPipeline, diffusers.Flux2Pipeline):
        conditioning.check(kind, ["a cat"])
        assert conditioning.sources(kind) == {"image": ("image",)}


def test_the_picture_of_a_controlnet_is_the_control_picture() -> None:
    found = conditioning.sources(diffusers.StableDiffusionControlNetPipeline)
    assert found == {"image": ("control_image", "image")}
    found = conditioning.sources(diffusers.StableDiffusionControlNetInpaintPipeline)
    assert found == {
        "image": ("image",),
        "control_image": ("control_image",),
        "mask_image": ("mask_image",),
    }


def test_all_of_several_controlnets_get_the_control_picture(tmp_path: Path) -> None:
    """A list would be taken as one picture for each of them, whatever is drawn."""
    net = SimpleNamespace(nets=[None, None])
    several: Any = type("StableDiffusionControlNetPipeline", (_Controlled,), {})(net)
    one: Any = type("StableDiffusionControlNetPipeline", (_Controlled,), {})(None)
    edits = Edits(str(write_edits(tmp_path / "edits", 2))).read()
    (alone,) = conditioning.pictures(one, edits[:1], 16).values()
    assert conditioning.pictures(several, edits[:1], 16) == {"image": [alone, alone]}
    assert len(conditioning.fabricated(several, 16)["image"]) == 2
    assert conditioning.is_batched(one, edits)
    assert not conditioning.is_batched(several, edits)


class _Controlled:
    def __init__(self, controlnet: object) -> None:
        self.controlnet = controlnet

    def __call__(self, prompt: str, image: object) -> None: ...


def test_what_returns_no_pictures_is_told_before_it_is_loaded() -> None:
    with pytest.raises(PromptsError, match="returns AudioPipelineOutput, neither pictures nor"):
        conditioning.check(diffusers.StableAudioPipeline, ["rain"])
    assert conditioning.not_pictures(diffusers.StableDiffusionPipeline) is None


def test_every_pipeline_of_diffusers_is_read_without_an_error() -> None:
    """Whatever a class's signatures are; and those of plain text are no editors."""
    kinds = []
    for name in dir(diffusers):
        if not re.fullmatch(r"[A-Z]\w+Pipeline", name) or name.startswith(("Onnx", "AutoPipe")):
            continue
        try:
            kind = getattr(diffusers, name)
        except RuntimeError:  # of a model that only a newer transformers has
            continue
        if "__call__" in dir(kind) and not getattr(kind, "_backends", None):
            kinds.append(kind)
    assert len(kinds) > 150
    for kind in kinds:
        conditioning.unavailable(kind)
        assert conditioning.needed(kind).keys() <= conditioning.sources(kind).keys()
    for kind in (diffusers.StableDiffusionPipeline, diffusers.FluxPipeline, diffusers.WanPipeline):
        assert not conditioning.sources(kind)
        assert conditioning.unavailable(kind) is None
    assert {kind.__name__ for kind in kinds} >= conditioning.BATCHED


# ---- videos


@pytest.mark.parametrize(
    ("num", "length", "expected"),
    [
        (4, 9, [1, 3, 5, 7]),
        (1, 9, [4]),
        (3, 3, [0, 1, 2]),
        (2, 4, [1, 3]),
        (4, 81, [10, 30, 50, 70]),
    ],
)
def test_frames_are_spaced_evenly(num: int, length: int, expected: list[int]) -> None:
    assert evenly_spaced(num, length) == expected


@pytest.mark.parametrize("form", ["tensor", "array", "arrays", "pil"])
def test_videos_come_in_many_forms(form: str) -> None:
    import torch
    from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

    video = np.zeros((2, 5, 4, 6, 3), np.float32)  # the value is video and frame
    video += np.arange(2)[:, None, None, None, None] / 2
    video += np.arange(5)[:, None, None, None] / 10
    forms = {
        "tensor": lambda: torch.from_numpy(video).permute(0, 1, 4, 2, 3),
        "array": lambda: video,
        "arrays": lambda: list(video),
        "pil": lambda: [
            [Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in one]
            for one in video
        ],
    }
    pictures = pictures_of(WanPipelineOutput(frames=forms[form]()), 2)
    assert pictures.shape == (4, 3, 4, 6)
    values = pictures.mean(dim=(1, 2, 3)).numpy()
    assert values == pytest.approx([0.1, 0.3, 0.6, 0.8], abs=1e-2)
    with pytest.raises(EvaluationError, match="videos of 5 frames, of which 6 cannot"):
        pictures_of(WanPipelineOutput(frames=forms[form]()), 6)


def test_what_holds_neither_pictures_nor_videos_is_told() -> None:
    with pytest.raises(EvaluationError, match="returns SimpleNamespace, neither"):
        pictures_of(SimpleNamespace(image_embeds=1), 1)


class Mean:
    name, version, larger_is_better = "mean", "1", True

    def features(
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        raise NotImplementedError

    def reduce(self, features: np.ndarray) -> float:
        return float(features.mean())


def test_frames_of_a_video_stay_together_in_halves() -> None:
    """A video whose frames are all alike measures as one picture does."""
    values = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    outcomes = []
    for frames in (1, 3):
        protocol = Protocol("x", "", "", "", 1, 1.0, 8, "float32", "", 0, 20, frames=frames)
        features = np.repeat(values, frames, axis=0)
        about = {"drawing_s": 1.0, "scoring_s": 1.0}
        shard = ScoredShard({"mean": features}, np.zeros((20 * frames, 32), np.uint8), about)
        outcomes.append(outcome_of(QuantConfig("x", {}), protocol, {"mean": Mean()}, [shard]))
    picture, video = outcomes
    assert video.num_images == picture.num_images == 20
    assert len(video.halves["mean"]) == len(splits(20))
    assert np.array(video.halves["mean"]) == pytest.approx(
        np.array(picture.halves["mean"]), rel=1e-5
    )
    assert video.prefixes[16]["mean"] == pytest.approx(values[:16].mean())
    assert video.protocol != picture.protocol


def test_a_protocol_that_says_nothing_of_frames_has_one() -> None:
    protocol = Protocol("x", "", "", "", 1, 1.0, 8, "float32", "", 0, 2)
    silent = {key: value for key, value in protocol.to_json().items() if key != "frames"}
    assert Protocol.from_json(silent).digest == protocol.digest
    three = dataclasses.replace(protocol, frames=3)
    assert Protocol.from_json(three.to_json()) == three
    assert three.digest != protocol.digest
