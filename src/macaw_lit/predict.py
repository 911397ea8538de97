"""Answers a question about media: `python -m macaw_lit.predict model=<folder> image=cat.jpg instruction="…"`."""

import warnings

from omegaconf import DictConfig, ListConfig

from macaw_lit.cli import command
from macaw_lit.errors import ConfigError


@command("predict", text=("model.path", "instruction"), paths=("image", "video", "audio"))
def main(cfg: DictConfig) -> None:
    """Print the answer of the model in the folder `cfg.model.path`, and nothing else."""
    if cfg.instruction is None and not _paths(cfg.audio):
        raise ConfigError("instruction must be given: add instruction=…, or audio=… in which the question is spoken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(_answer(cfg))


def _answer(cfg: DictConfig) -> str:
    from macaw_lit.data.media import with_sounds  # heavy imports wait until the configuration is known to be sound
    from macaw_lit.inference import load_answerer
    from macaw_lit.types import MediaRef, Sample, Turn

    answerer = load_answerer(cfg.model.path, cfg.device, cfg.max_new_tokens)
    media = tuple(MediaRef(kind, path) for kind in ("image", "video", "audio") for path in _paths(cfg[kind]))
    if "audio" in answerer.preprocess.specs:
        media = with_sounds(media)
    asked = Turn("user", cfg.instruction or "", media, spoken=cfg.instruction is None)
    return answerer([Sample((asked,), uid="question", source="predict")])[0]


def _paths(value: str | ListConfig | None) -> list[str]:
    if value is None:
        return []
    return [str(path) for path in value] if isinstance(value, ListConfig) else [value]


if __name__ == "__main__":
    main()
