"""Any audio encoder of transformers: HuBERT, wav2vec 2.0, WavLM, Whisper and their kin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import AutoFeatureExtractor, FeatureExtractionMixin

from macaw_lit.encoders.hf import LOCAL, HFEncoder, ItemTransform
from macaw_lit.errors import ConfigError
from macaw_lit.hub import local_folder

_SAMPLE_RATE = 16_000


class SoundTransform(ItemTransform):
    """Preprocessing of one waveform, float32 [samples] at 16 kHz, by a feature extractor of transformers.

    Waveforms are cut or padded with silence to `samples`; attention over the padding is not masked.
    """

    def __init__(self, processor: Any, samples: int) -> None:
        super().__init__(processor)
        self.samples = samples

    def arguments(self, decoded: np.ndarray) -> dict[str, Any]:
        length = {"padding": "max_length", "max_length": self.samples, "truncation": True}
        return {"raw_speech": decoded, "sampling_rate": _SAMPLE_RATE, **length}


class HFAudioEncoder(HFEncoder):
    """The last hidden state of an audio encoder, position by position.

    Args:
        config, processor: as in `HFEncoder`; a processor dict names its class as `feature_extractor_type`.
        seconds: length that every sound is cut or padded to; Whisper hears nothing but its own 30.
    """

    medium = "audio"

    def __init__(
        self,
        config: Mapping[str, Any] | str,
        processor: Mapping[str, Any] | str | None = None,
        seconds: int | float = 30,
    ) -> None:
        if seconds <= 0:
            raise ConfigError(f"seconds={seconds}: expected the positive length of a sound, such as 30")
        self.samples = round(seconds * _SAMPLE_RATE)
        super().__init__(config, processor, np.zeros(self.samples, np.float32))

    def read_processor(self, processor: Mapping[str, Any] | str | Path) -> SoundTransform:
        if isinstance(processor, Mapping):
            kind: Any = getattr(transformers, str(processor.get("feature_extractor_type")), None)
            if not (isinstance(kind, type) and issubclass(kind, FeatureExtractionMixin)):
                name = processor.get("feature_extractor_type")
                raise ConfigError(f"feature_extractor_type {name!r} is none of transformers")
            extractor: Any = kind.from_dict(dict(processor))
        else:
            extractor = AutoFeatureExtractor.from_pretrained(local_folder(str(processor), weights=False), **LOCAL)
        if extractor.sampling_rate != _SAMPLE_RATE:
            raise ConfigError(
                f"the feature extractor wants {extractor.sampling_rate} Hz: sounds are decoded at 16000 Hz"
            )
        return SoundTransform(extractor, self.samples)
