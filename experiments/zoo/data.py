"""Build the emoji set: 32-pixel captioned pictures in four drawing styles, from npm packages.

    python experiments/zoo/data.py

It writes store/zoo/emoji.safetensors and store/zoo/emoji.json. The pictures are Noto Emoji and
Twemoji sheets (emoji-datasource-*), and Fluent Emoji Flat and Noto v1 as SVG (@iconify-json/*),
without skin tones. The captions are the CLDR names in emojibase-data, such as "grinning face,
twemoji". A code point belongs to the training captions or to the held-out captions in all four
styles. Independently of that, every picture belongs to fold "a" (its caption may be drawn from) or
to fold "b" (it is a reference picture of a Fréchet distance).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "names": "emojibase-data@17.0.0",
}
CELL_PX, PITCH_PX, BORDER_PX = 64, 66, 1  # one cell of a 64-pixel sheet
RESOLUTION_PX = 32


def download(package: str, folder: Path) -> tarfile.TarFile:
    """Fetch one npm package (once) and open it."""
    name = package.replace("@", "-").replace("/", "-").strip("-")
    target = folder / f"{name}.tgz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        printed = subprocess.run(
            ["npm", "pack", "--silent", package],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        (folder / printed.stdout.split()[-1]).rename(target)
    return tarfile.open(target)


def read(archive: tarfile.TarFile, path: str) -> bytes:
    member = archive.extractfile(f"package/{path}")
    assert member is not None, path
    return member.read()


def shrink(image: Image.Image) -> np.ndarray:
    """RGBA => uint8 [32, 32, 3] on white, by exact averaging."""
    image = image.convert("RGBA").resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
    rgba = np.asarray(image, dtype=np.float32)
    opaque = rgba[..., 3:] / 255
    rgb = rgba[..., :3] * opaque + 255 * (1 - opaque)
    n = CELL_PX // RESOLUTION_PX
    return rgb.reshape(RESOLUTION_PX, n, RESOLUTION_PX, n, 3).mean((1, 3)).round().astype(np.uint8)


def slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(
        r"-+", "-", re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "").replace(".", ""))
    ).strip("-")


def code_points(text: str) -> str:
    """Canonical key of a code point sequence: upper case, without the presentation selector."""
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


def from_sheet(archive: tarfile.TarFile, vendor: str) -> dict[str, np.ndarray]:
    sheet = Image.open(io.BytesIO(read(archive, f"img/{vendor}/sheets/64.png"))).convert("RGBA")
    pictures = {}
    for entry in json.loads(read(archive, "emoji.json")):
        if entry[f"has_img_{vendor}"]:
            x, y = (PITCH_PX * entry[k] + BORDER_PX for k in ("sheet_x", "sheet_y"))
            pictures[code_points(entry["unified"])] = shrink(
                sheet.crop((x, y, x + CELL_PX, y + CELL_PX))
            )
    return pictures


def from_icons(archive: tarfile.TarFile, keys: dict[str, str]) -> dict[str, np.ndarray]:
    """SVG icons by the slug of their name; ``keys``: slug => code points."""
    import resvg_py

    icons = json.loads(read(archive, "icons.json"))
    bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
    bodies |= {
        name: bodies[a["parent"]]
        for name, a in icons.get("aliases", {}).items()
        if a["parent"] in bodies
    }
    size = icons["width"]
    pictures = {}
    for name, body in bodies.items():
        if name in keys and keys[name] not in pictures:
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{body}</svg>'
            )
            png = bytes(
                resvg_py.svg_to_bytes(svg_string=svg, width=4 * CELL_PX, height=4 * CELL_PX)
            )
            pictures[keys[name]] = shrink(Image.open(io.BytesIO(png)))
    return pictures


def share(*parts: str) -> float:
    """A fixed pseudo-random number in [0, 1) of the parts."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:6], "big") / 2**48


def build(store: Path) -> None:
    archives = {style: download(package, store / "npm") for style, package in PACKAGES.items()}
    names = {}
    for entry in json.loads(read(archives["names"], "en/data.json")):
        if (
            "group" in entry and entry["group"] != 2
        ):  # 2: components such as skin tones, no pictures of their own
            names[code_points(entry["hexcode"])] = (entry["label"].lower(), entry.get("tags", []))
    keys = {slug(label): key for key, (label, _) in names.items()}
    pictures = {
        "noto": from_sheet(archives["noto"], "google"),
        "twemoji": from_sheet(archives["twemoji"], "twitter"),
        "fluent": from_icons(archives["fluent"], keys),
        "blob": from_icons(archives["blob"], keys),
    }
    rows, images = [], []
    for style, drawings in pictures.items():
        for key in sorted(drawings.keys() & names.keys()):
            label, tags = names[key]
            held_out = share("held-out", key) < 0.1
            fold = "a" if share("fold", key, style) < 0.5 else "b"
            rows.append(
                {
                    "key": key,
                    "style": style,
                    "caption": f"{label}, {style}",
                    "tags": tags,
                    "held_out": held_out,
                    "fold": fold,
                }
            )
            images.append(drawings[key])
        print(f"{style}: {len(drawings.keys() & names.keys())} pictures")
    store.mkdir(parents=True, exist_ok=True)
    save_file({"images": np.stack(images)}, store / "emoji.safetensors")
    (store / "emoji.json").write_text(json.dumps({"packages": PACKAGES, "rows": rows}, indent=0))
    print(
        f"{len(rows)} pictures of {len({row['key'] for row in rows})} emoji => "
        f"{store / 'emoji.safetensors'}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, default=Path("store/zoo"), help="where data and checkpoints go"
    )
    build(parser.parse_args().store)
