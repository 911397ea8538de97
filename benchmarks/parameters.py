"""Counts the parameters of the paper's model at full size, by part, on the meta device: no weight is allocated.

    python benchmarks/parameters.py

LLaMA-7B's sizes are those it was published with; the vocabulary is its 32 000 tokens, six delimiters and padding.
"""

import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from macaw_lit.cli import conf_dir
from macaw_lit.data.demo.tokenizer import train_tokenizer
from macaw_lit.model import Macaw

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32_007,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def count(aligner: str, tokenizer: Path) -> dict[str, int]:
    """Parameters by part of `model=macaw` with one of the aligners."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[f"aligner={aligner}", f"model.llm.tokenizer={tokenizer}"])
    sizes = OmegaConf.to_container(cfg.model, resolve=True)
    sizes["llm"]["config"] = LLAMA_7B
    with torch.device("meta"):
        model = Macaw.from_config(sizes)
    parts = {**dict(model.encoders.items()), **dict(model.modalities.items()), "llm": model.llm}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def main() -> None:
    """Print a row per part and a column per aligner."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["a b"], Path(folder))
        columns = {aligner: count(aligner, Path(folder)) for aligner in ("macaw_mha", "macaw")}
    table = Table("part", *(f"aligner={name}" for name in columns))
    for part in next(iter(columns.values())):
        table.add_row(part, *(f"{counts[part]:,}" for counts in columns.values()))
    table.add_row("all", *(f"{sum(counts.values()):,}" for counts in columns.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
