"""Axes of a forward's arguments, as its code tells them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qsdm import tracing
from qsdm.tracing import axes, inputs


class Told(nn.Module):
    """Colours last, and a second input that only the docstring describes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"in_channels": 12, "num_layers_of_text": 3}
        self.proj = nn.Linear(12, 8)
        self.notes = nn.Linear(5, 8)

    def forward(self, hidden_states: Tensor, notes: Tensor, order_ids: Tensor) -> Tensor:
        """Draw.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch size, in_channels)`):
                A video.
            notes (`torch.Tensor` of shape `(batch_size, num_layers_of_text, text_len, 5)`): A note.
            order_ids (`torch.LongTensor` of shape `(text_len, 2)`, *optional*): Not optional.
        """
        batch, frames, height, width, channels = hidden_states.shape
        assert (batch, channels) == (1, 12)
        assert min(frames, height, width) > 0
        assert order_ids.dtype == torch.int64
        return self.proj(hidden_states) + self.notes(notes).mean((1, 2))[:, None, None, None]


def test_the_docstring_decides_how_many_axes_there_are() -> None:
    assert axes.of_forward(Told.forward) == {
        "hidden_states": ("batch_size", "in_channels"),
        "notes": ("batch_size", "num_layers_of_text", "text_len", "5"),
        "order_ids": ("text_len", "2"),
    }


def test_an_unpacked_shape_names_the_axes() -> None:
    def forward(x: Tensor, y: Tensor) -> None:
        """
        x (`torch.Tensor` of shape `(batch, frames, channels, height, width)`): Wrong order.
        """
        b, c, t, h, w = x.shape
        (rows, columns) = y.size()
        rows, columns, more = y.shape
        return b, c, t, h, w, rows, columns, more

    assert axes.of_forward(forward) == {"x": ("b", "c", "t", "h", "w"), "y": ("rows", "columns")}
    assert axes.unpacked_in("    b, n = hidden.shape") == ("hidden", ("b", "n"))
    assert axes.unpacked_in("    b = hidden.shape[0]") is None


@pytest.mark.parametrize(
    ("names", "letters"),
    [
        (("batch_size", "num_channels", "num_frames", "height", "width"), "BCFHW"),
        (("batch_size", "image_sequence_length", "in_channels"), "BNC"),
        (("b", "_", "h", "w"), "BCHW"),
        (("batch", "num_frames", "height", "width", "2_*_in_visual_dim_+_1"), "BFHWC"),
        (("batch", "num_latent_pixels"), None),
        (("h", "h"), None),
    ],
)
def test_layouts_are_read_off_names(names: axes.Axes, letters: str | None) -> None:
    assert axes.layout(names) == letters


def test_inputs_follow_what_the_code_tells() -> None:
    built = inputs.build(Told())
    assert built["notes"].shape == (1, 3, 64, 5)
    assert (built["order_ids"].shape, built["order_ids"].dtype) == ((64, 2), torch.int64)


def test_a_class_without_a_file_tells_nothing() -> None:
    scope: dict = {}
    exec("def forward(x):\n    a, b = x.shape", scope)
    assert axes.of_forward(scope["forward"]) == {}


def test_a_layout_that_only_the_docstring_tells_is_tried() -> None:
    class ChannelsLast(Told):
        def forward(self, hidden_states: Tensor, return_dict: bool = True) -> Tensor:
            """
            hidden_states (`Tensor` of shape `(batch, num_frames, height, width, channels)`): Video.
            """
            if hidden_states.dim() != 5:
                raise ValueError("no video")
            return self.proj(hidden_states)

    graph, how = tracing.trace_unaided(ChannelsLast(), {}, "last")
    assert graph.node_of("proj").activation == (1, 9, 32, 32, 8)
    assert how == "repaired: hidden_states as BFHWC of 9 frames"
