"""Frames in, one long sequence per video out."""

import torch

from macaw_lit.encoders.frames import FrameSequence


def test_each_frames_position_is_added_and_time_runs_along_the_sequence():
    frames = FrameSequence(frames=3, dim=4)
    features = torch.randn(2 * 3, 5, 4)
    joined = frames(features)
    assert joined.shape == (2, 15, 4)
    for video in range(2):
        for frame in range(3):
            for place in range(5):
                expected = features[3 * video + frame, place] + frames.position[frame, 0]
                assert torch.equal(joined[video, 5 * frame + place], expected)


def test_unrolled_frames_come_back_in_order():
    frames = FrameSequence(frames=3, dim=4)
    values = torch.randn(2, 3, 3, 8, 8)
    unrolled = frames.unroll(values)
    assert unrolled.shape == (6, 3, 8, 8)
    assert torch.equal(unrolled[4], values[1, 1])


def test_the_order_of_frames_matters():
    frames = FrameSequence(frames=2, dim=4)
    features = torch.randn(2, 5, 4)
    there, back = frames(features), frames(features.flip(0))
    swapped = back.unflatten(1, (2, 5)).flip(1).flatten(1, 2)
    assert not torch.allclose(there, swapped, atol=1e-3)


def test_no_videos_give_an_empty_sequence_and_a_zero_gradient():
    frames = FrameSequence(frames=3, dim=4)
    assert frames.unroll(torch.zeros(0, 3, 3, 8, 8)).shape == (0, 3, 8, 8)
    joined = frames(torch.zeros(0, 5, 4))
    assert joined.shape == (0, 15, 4)
    joined.sum().backward()
    assert frames.position.grad is not None
    assert not frames.position.grad.any()
