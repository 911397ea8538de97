"""One process of a training of experts, to which each sends tokens of its own; `figures.py` starts it."""

import os
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from rank import fit
from torch.utils.data import DataLoader

from conftest import tiny_batch, tiny_sizes
from macaw_lit.model import Macaw
from macaw_lit.types import Batch

KINDS = ("plain", "fsdp2", "zero3")
# Of the models of transformers this one calls a module for each expert that has tokens, whatever the machine.
EXPERTS = {
    "model_type": "longcat_flash",
    "hidden_size": 32,
    "ffn_hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 60,
    "zero_expert_num": 4,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 16,
    "initializer_range": 0.18,
}


class Rows(LightningDataModule):
    """The first process has one short row, whose tokens reach few experts, the second one four rows with media."""

    def __init__(self, model: Macaw) -> None:
        super().__init__()
        self.model = model

    def train_dataloader(self) -> DataLoader[Batch]:
        batches: list[Any] = []
        for step in range(4):
            dealt: list[Any] = [[(step, {})], [(10 * step + row, {"image": 1, "audio": 1}) for row in range(1, 5)]]
            if os.environ.get("WORLD_SIZE") == "2":
                batches.append(tiny_batch(self.model, dealt[int(os.environ["RANK"])]))
            else:
                batches.append(tiny_batch(self.model, [row for rows in dealt for row in rows]))
        return DataLoader(batches, batch_size=None)


def main(tokenizer_folder: Path, out: Path, kinds: list[str]) -> None:
    sizes = tiny_sizes(tokenizer_folder)
    sizes["llm"]["config"] = EXPERTS
    blueprint = Macaw.from_config(sizes)
    for kind in kinds:
        fit(out / kind, kind, sizes, Rows(blueprint), max_epochs=1)
