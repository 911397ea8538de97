"""Sounds of the demo world as waveforms and WAV files."""

import random
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from macaw_lit.data.demo.scenes import PITCHES, SECONDS, Sound

RATE = 16000  # Hz
RAMP = 160  # samples (10 ms) of fading in and out: no clicks


def waveform(sound: Sound) -> Float32[np.ndarray, " samples"]:
    """2.4 s at 16 kHz, mono, within ±1."""
    rng, noise = random.Random(sound.seed), np.random.default_rng(sound.seed)
    wave = noise.standard_normal(round(SECONDS * RATE)) * rng.uniform(0.002, 0.008)
    gain = rng.uniform(0.3, 0.8)
    frequency = PITCHES[sound.pitch] * rng.uniform(0.93, 1.07) if sound.pitch else 0.0
    for onset, length in _rhythm(rng, sound.count):
        time = np.arange(length) / RATE
        if sound.kind == "tone":
            beep = 0.9 * np.sin(2 * np.pi * frequency * time) + 0.1 * np.sin(4 * np.pi * frequency * time)
        else:
            beep = np.clip(0.4 * noise.standard_normal(length), -1, 1)
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)) / RAMP
        wave[onset : onset + length] += gain * np.minimum(ramp, 1) * beep
    return np.clip(wave, -1, 1).astype(np.float32)


def write_sound(path: Path, sound: Sound) -> None:
    """Writes the sound as 16-bit PCM WAV."""
    soundfile.write(path, waveform(sound), RATE, subtype="PCM_16")


def _rhythm(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """(onset, length) of each beep in samples: 0.16–0.26 s long, at least 0.15 s apart, the rest spread at random."""
    lengths = [rng.uniform(0.16, 0.26) for _ in range(count)]
    spare = SECONDS - 0.1 - sum(lengths) - 0.15 * max(0, count - 1)
    cuts = sorted(rng.uniform(0, spare) for _ in range(count))
    beeps, used = [], 0.05
    for cut, length in zip(cuts, lengths, strict=True):
        beeps.append((round((used + cut) * RATE), round(length * RATE)))
        used += length + 0.15
    return beeps
