"""Clips of the demo world as MP4 files: H.264 pictures with an AAC sound track."""

from pathlib import Path

import av
import numpy as np

from macaw_lit.data.demo.draw import draw_frames
from macaw_lit.data.demo.scenes import FPS, SIDE, Clip
from macaw_lit.data.demo.sound import RATE, waveform


def write_clip(path: Path, clip: Clip) -> None:
    """Writes 24 frames at 10 per second and, if the clip has one, its mono 16 kHz sound track."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        video.codec_context.thread_count = 1
        audio = None
        if clip.sound is not None:
            audio = container.add_stream("aac", rate=RATE, layout="mono")
            audio.bit_rate = 48000
        for picture in draw_frames(clip):
            container.mux(video.encode(av.VideoFrame.from_image(picture)))
        container.mux(video.encode(None))
        if audio is not None and clip.sound is not None:
            frame = av.AudioFrame.from_ndarray(waveform(clip.sound)[np.newaxis], format="fltp", layout="mono")
            frame.sample_rate = RATE
            frame.pts = 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
