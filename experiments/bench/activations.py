"""How much longer drawing takes with rounded activations, side by side.

    python experiments/bench/activations.py --models emoji_unet emoji_mmdit emoji_pixart

One process draws the same pictures in turn without rounding and with the inputs of all layers in 8
bits, and takes the least CPU time of each, so that other programs on the machine do not count. The
weights are in full precision: those of a configuration cost the same once they are written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

import qsdm
from qsdm.denoisers import prompts_of
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.protocol import seed_of
from qsdm.qconfig import QuantConfig, input_bits
from qsdm.quant.activations import Rounding

ALLOWED = 1.3


def ratio(name: str, num_images: int, rounds: int, bits: int) -> tuple[float, float]:
    """CPU seconds per picture without and with rounding.

    Args:
        name: of the model.
        num_images: pictures of a batch.
        rounds: how often each is drawn.
        bits: of the activations.
    """
    workspace = qsdm.open(name)
    drawer = Drawer(workspace.model, workspace.graph, None, num_images)
    full = QuantConfig(name, {})
    rounded = input_bits(workspace.graph, full.with_activations(bits))
    prompts = prompts_of(workspace.model)
    drawings = [Drawing(i, prompts[i], seed_of(0, i)) for i in range(num_images)]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * rounds + 2):  # the first of each compiles and encodes captions
        rounds_inputs = turn % 2 == 1
        rounding = Rounding(drawer.denoiser, rounded if rounds_inputs else {}, rounds_inputs)
        began = time.process_time()
        drawer.draw(full, drawings)
        seconds[rounds_inputs].append(time.process_time() - began)
        rounding.remove()
    plain, slow = (min(times[1:]) / num_images for times in seconds.values())
    return plain, slow


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["emoji_unet", "emoji_mmdit"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bits", type=int, default=8)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.models:
        plain, slow = ratio(name, given.images, given.rounds, given.bits)
        print(
            f"{name}: {plain:.4f} s per picture at A16, {slow:.4f} at A{given.bits}: "
            f"{slow / plain:.2f} times (at most {ALLOWED} wanted)",
            flush=True,
        )


if __name__ == "__main__":
    main()
