"""Every `aligner=` works at the top of the train command with every `model=`, without a word about the modalities."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from macaw_lit.cli import conf_dir
from macaw_lit.errors import ConfigError
from macaw_lit.model import Macaw

ALIGNERS = sorted(path.stem for path in (conf_dir() / "aligner").glob("*.yaml"))
TOKENS = {"demo": (4, 6, 5), "macaw": (5, 39, 6)}  # image, video, audio


def blueprint(tokenizer: Path, *overrides: str) -> Macaw:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(
            "train", overrides=["llm=llama_tiny", "paths.data_dir=data", f"model.llm.tokenizer={tokenizer}", *overrides]
        )
    sizes = OmegaConf.to_container(cfg.model, resolve=True)
    sizes.pop("pretrained")
    with torch.device("meta"):
        return Macaw.from_config(sizes)


def counts(model: Macaw) -> tuple[int, ...]:
    return tuple(model.specs()[kind].num_tokens for kind in ("image", "video", "audio"))


@pytest.mark.parametrize("model", TOKENS)
@pytest.mark.parametrize("aligner", ALIGNERS)
def test_the_model_is_laid_out_with_its_numbers_of_tokens(tokenizer_folder, aligner, model):
    assert counts(blueprint(tokenizer_folder, f"aligner={aligner}", f"model={model}")) == TOKENS[model]


def test_a_resampler_can_be_told_how_many_tokens(tokenizer_folder):
    said = "++model.modalities.image.aligner={kernel: null, stride: null, num_tokens: 32}"
    assert counts(blueprint(tokenizer_folder, "aligner=perceiver", said)) == (32, 39, 6)


def test_a_second_way_to_count_is_not_ignored(tokenizer_folder):
    with pytest.raises(ConfigError, match="num_tokens=32, kernel=48, stride=36: give either"):
        blueprint(tokenizer_folder, "aligner=perceiver", "+model.aligner.num_tokens=32")
