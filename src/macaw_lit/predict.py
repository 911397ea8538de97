"""Answers a question about media: `python -m macaw_lit.predict model=<folder> image=cat.jpg instruction="…"`."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from macaw_lit.cli import command
from macaw_lit.types import MediaRef


@command("predict", text=("model.path", "image", "video", "audio", "instruction"))
def main(cfg: DictConfig) -> None:
    """Print the answer of the model in the folder `cfg.model.path`."""
    from macaw_lit.data.media import has_audio  # heavy imports wait until the configuration is known to be sound
    from macaw_lit.inference import load_answerer
    from macaw_lit.types import Sample, Turn

    answerer = load_answerer(Path(cfg.model.path), cfg.device, cfg.max_new_tokens)
    videos = _paths(cfg.video)
    media = [MediaRef(kind, path) for kind in ("image", "video", "audio") for path in _paths(cfg[kind])]
    if "audio" in answerer.preprocess.specs:
        media += [MediaRef("audio", path) for path in videos if has_audio(path)]
    question = Turn("user", str(cfg.instruction), tuple(media))
    print(answerer([Sample((question,), uid="predict", source="predict")])[0])


def _paths(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [str(path) for path in value] if isinstance(value, ListConfig) else [str(value)]


if __name__ == "__main__":
    main()
