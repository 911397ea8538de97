"""Frames in, one long sequence per video out."""

import math

import pytest
import torch
from torch import nn

from macaw_lit.encoders.frames import FrameAttention, FramePositions, FrameSequence, sinusoid
from macaw_lit.errors import ConfigError

SEQUENCES = {
    "positions": lambda: FramePositions(frames=3, dim=4, seq_len=5),
    "sinusoid attention": lambda: FrameAttention(frames=3, dim=4, seq_len=5, heads=2),
    "learned attention": lambda: FrameAttention(frames=3, dim=4, seq_len=5, heads=2, positions="learned"),
}


@pytest.fixture(params=SEQUENCES)
def frames(request: pytest.FixtureRequest) -> FrameSequence:
    return SEQUENCES[request.param]()


def test_each_frames_position_is_added_and_time_runs_along_the_sequence():
    frames = FramePositions(frames=3, dim=4, seq_len=5)
    features = torch.randn(2 * 3, 5, 4)
    joined = frames(features)
    assert joined.shape == (2, 15, 4)
    for video in range(2):
        for frame in range(3):
            for place in range(5):
                expected = features[3 * video + frame, place] + frames.position[frame, 0]
                assert torch.equal(joined[video, 5 * frame + place], expected)


@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_attention_is_torchs_over_all_positions_of_a_video_and_replaces_them(positions):
    frames = FrameAttention(frames=3, dim=8, seq_len=5, heads=2, positions=positions)
    reference = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True)  # sequence first, as the original
    reference.load_state_dict(frames.attention.state_dict())
    features = torch.randn(2 * 3, 5, 8)
    joined = frames(features)
    for video in range(2):
        rows = []
        for frame in range(3):
            for place in range(5):
                learned = frames.position[frame, 0]
                fixed = sinusoid(15, 8)[5 * frame + place]
                rows.append(features[3 * video + frame, place] + (learned if positions == "learned" else fixed))
        placed = torch.stack(rows)[:, None]
        expected = reference(placed, placed, placed)[0][:, 0]
        torch.testing.assert_close(joined[video], expected, atol=1e-6, rtol=0)  # values about 1: ten roundings of fp32


@pytest.mark.parametrize(("length", "dim"), [(7, 4), (40, 32), (1176, 64)])
def test_the_sinusoid_is_the_originals_bit_for_bit(length, dim):
    """Written out as facts give it: fp32 throughout but for the exponent, one number at a time."""
    expected = torch.zeros(length, dim)
    for channel in range(0, dim, 2):
        step = torch.exp(torch.tensor(-(math.log(10000.0) / dim * (2 * channel))))
        for place in range(length):
            expected[place, channel] = torch.sin(place * step)
            expected[place, channel + 1] = torch.cos(place * step)
    assert torch.equal(sinusoid(length, dim), expected)


def test_most_upper_channels_of_the_sinusoid_hardly_move():
    """The doubled exponent leaves 201 of 512 channels constant to 1e-3 over the 1176 positions of full size."""
    assert int((sinusoid(1176, 512).std(0) < 1e-3).sum()) == 201


def test_unrolled_frames_come_back_in_order(frames):
    values = torch.randn(2, 3, 3, 8, 8)
    unrolled = frames.unroll(values)
    assert unrolled.shape == (6, 3, 8, 8)
    assert torch.equal(unrolled[4], values[1, 1])


def test_the_order_of_frames_matters(frames):
    features = torch.randn(3, 5, 4)
    there, back = frames(features), frames(features.flip(0))
    swapped = back.unflatten(1, (3, 5)).flip(1).flatten(1, 2)
    assert not torch.allclose(there, swapped, atol=1e-3)


def test_no_videos_give_an_empty_sequence_and_a_zero_gradient(frames):
    assert frames.unroll(torch.zeros(0, 3, 3, 8, 8)).shape == (0, 3, 8, 8)
    joined = frames(torch.zeros(0, 5, 4))
    assert joined.shape == (0, 15, 4)
    joined.sum().backward()
    for name, weight in frames.named_parameters():
        assert weight.grad is not None, name
        assert not weight.grad.any(), name


def test_every_weight_is_used(frames):
    frames(torch.randn(6, 5, 4)).square().sum().backward()
    for name, weight in frames.named_parameters():
        assert weight.grad is not None, name


def test_the_fixed_positions_are_no_weights():
    assert "position" not in SEQUENCES["sinusoid attention"]().state_dict()
    assert "position" in SEQUENCES["learned attention"]().state_dict()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="3 heads do not divide the width 4"):
        FrameAttention(frames=2, dim=4, seq_len=1, heads=3)
    with pytest.raises(ConfigError, match="frames 0"):
        FramePositions(frames=0, dim=4, seq_len=1)
