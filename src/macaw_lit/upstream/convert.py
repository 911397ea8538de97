"""A checkpoint of the original → a model folder: read file by file, checked name by name, written whole."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.prompt import Prompt
from macaw_lit.errors import WeightsError
from macaw_lit.model import Macaw
from macaw_lit.upstream.names import KINDS, TABLE, VARIANTS, left_out, our_names, recognise, wanted
from macaw_lit.upstream.sizes import TAGS, Facts, heads_of, sizes
from macaw_lit.upstream.tokenizer import has_tokenizer, read_tokenizer, stand_in
from macaw_lit.weight_files import read_shard, shards_of
from macaw_lit.weights import load_exactly

DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TEXT_LENGTH = 256  # positions of text in every row of the original's training
_ANSWER = "\n "  # what the original's responses begin with
_NEW_TOKENS = 128  # in the original's answers


class Checkpoint(NamedTuple):
    """The weights that some version of the original uses, and how many numbers stand under every name of the whole."""

    state: dict[str, Tensor]
    counts: dict[str, int]


def convert(
    source: Path,
    target: Path,
    variant: str = "auto",
    heads: int | None = None,
    tokenizer: Path | None = None,
    dtype: str = "auto",
    say: Callable[[str], None] = print,
    track: Callable[[Collection[Path]], Iterable[Path]] = iter,
) -> None:
    """Write the model in `source` as a model folder that computes the same.

    Memory: all used weights in the precision they get, and one file of the source beside them.

    Args:
        source: folder with config.json and weights as the original saves them, in one file or several.
        target: folder that is not there yet, or empty.
        variant: `v1` (the released weights), `v2`, `v3`, or `auto`.
        heads: of the alignment attentions; None takes them from config.json.
        tokenizer: folder; None is `source`. If that has none, the model computes with ids and refuses text.
        dtype: of the weights, `float32`, `float16` or `bfloat16`; `auto` keeps theirs.
        say: told what was found, line by line.
        track: shows the progress through the files.

    Raises:
        WeightsError: the checkpoint, its config or its tokenizer is damaged, incomplete, or another model's.
        ConfigError: sizes that no model can have.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target} is there already: give another target=, or remove it to import again")
    if dtype not in DTYPES:
        raise WeightsError(f"dtype={dtype}: expected {', '.join(DTYPES)}")
    facts = Facts(source)
    layers = facts.layers()
    useful = {name for version in VARIANTS for name in wanted(version, layers)}
    state, counts = read_checkpoint(source, useful, DTYPES[dtype], track)
    version, reason = recognise(counts.keys(), variant)
    needed = wanted(version, layers)
    dead = left_out(counts.keys(), needed)
    for name in state.keys() - needed:
        del state[name]
    head_counts = heads_of(facts, version, heads)
    say(f"variant {version}: {reason}")
    origin = "config.json says attention_heads" if heads is None else "you say heads"
    say(f"heads: {head_counts.align} in the alignment, {head_counts.frames} across frames, as {origin}")
    rows = state[TABLE].shape[0]
    if tokenizer is None and not has_tokenizer(source):
        say(f"tokenizer: {source} has none; control ids are kept, but text needs LLaMA's: give tokenizer=<folder>")
        vocabulary = stand_in(TAGS, rows)
    else:
        vocabulary = read_tokenizer(tokenizer or source, TAGS, rows)
    with TemporaryDirectory() as folder:
        vocabulary.save_pretrained(folder)
        config = sizes(facts, version, head_counts, {name: tuple(each.shape) for name, each in state.items()}, folder)
        with torch.device("meta"):
            model = Macaw.from_config(config)
        checked = (f"variant={version}", f"heads={head_counts.align}")
        coverage = load_exactly(model, our_names(state, version), source.resolve().name, dead, checked, assign=True)
        model.config["identities"] = {"original": coverage.identity()}
        model.llm.generation = {"do_sample": False, "max_new_tokens": _NEW_TOKENS}
        model.eval().save_pretrained(target, _preprocess(model))
    say(f"weights: {sum(counts[name] for name in needed):,} read, of {next(iter(model.parameters())).dtype}")
    say(f"left out, as nothing uses them: {_listed(dead, counts)}")
    say(f"written: {target}")


def read_checkpoint(
    source: Path,
    useful: Collection[str],
    dtype: torch.dtype | None,
    track: Callable[[Collection[Path]], Iterable[Path]] = iter,
) -> Checkpoint:
    """Read the weights named in `useful`, one file after the other, and the names of all others.

    Raises:
        WeightsError: a file is missing or damaged, weights are no numbers, or None as `dtype` leaves several kinds.
    """
    state: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    files = shards_of(source)
    for file in track(files):
        shard = read_shard(file, files[file])
        for name in list(shard):
            tensor = shard.pop(name)  # freed at once if it is of no use
            counts[name] = tensor.numel() if isinstance(tensor, Tensor) else 0
            if name not in useful or not isinstance(tensor, Tensor):
                continue
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise WeightsError(f"{file}: {name} holds {tensor.dtype} that are no finite numbers: fetch it again")
            state[name] = tensor.to(dtype or tensor.dtype)
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    if len(kinds) > 1:
        raise WeightsError(f"{source} holds weights of {' and '.join(sorted(kinds))}: say dtype=float32, or another")
    return Checkpoint(state, counts)


def _preprocess(model: Macaw) -> Preprocessor:
    """As the original was trained: all three blocks in every row, absent media as zeros."""
    specs = model.specs()
    length = _TEXT_LENGTH + sum(spec.num_tokens + 2 for spec in specs.values())
    return Preprocessor(
        model.llm.tokenizer, specs, order=KINDS, missing="zeros", max_length=length, prompt=Prompt(answer=_ANSWER)
    )


def _listed(names: Collection[str], counts: Mapping[str, int]) -> str:
    """Names by module, with the numbers under each."""
    groups: Counter[str] = Counter()
    for name in names:
        module, *inner = name.split(".")
        groups[f"{module}.{inner[0]}" if module.endswith("_encoder") or module == "llm" else module] += counts[name]
    return ", ".join(f"{group} ({count:,})" for group, count in sorted(groups.items())) or "nothing"
