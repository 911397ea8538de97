"""Teaches the demo's tiny LLaMA to read: questions about captions it can see as text, and the world's text tasks."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.managers import ValueProxy
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from macaw_lit.data.collate import Collator
from macaw_lit.data.demo.phrases import avsd_captions, coco_captions
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.sources import alpaca
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.training.optim import MuonAdamW, cosine_with_warmup
from macaw_lit.types import IGNORE, Batch, Sample, Turn

BATCH = 24
TURNS = 6  # questions about one caption in one text
TEXT_TASKS = 0.3  # share of Alpaca rows
_ASKED = 256  # held-out questions in the score

Page = tuple[str, list[dict[str, str]]]
"""A caption, and the question–answer rows about the medium it tells of."""


def teach_reading(llm: HFCausalLM, root: Path, seed: int, steps: int, done: ValueProxy[float]) -> dict[str, Any]:
    """Trains `llm` on the responses to questions about captions; returns the share of held-out ones it answers."""
    rng = random.Random(seed)
    preprocess = Preprocessor(llm.tokenizer, {})
    collate = Collator(preprocess.pad, {}, "right")
    pages = list(_pages(root, "train", "train"))
    tasks = [row for row in alpaca.read(root / "alpaca" / "alpaca_data_train.json") if isinstance(row, Sample)]
    optimizer = MuonAdamW(llm, lr=4e-3, adamw_lr=2e-3, weight_decay=0.01, betas=(0.9, 0.95))
    schedule = cosine_with_warmup(optimizer, steps, warmup_ratio=0.05)
    for step in range(steps):
        drawn = (
            rng.choice(tasks) if rng.random() < TEXT_TASKS else _text(rng, rng.choice(pages)) for _ in range(BATCH)
        )
        batch = collate([preprocess(sample) for sample in drawn])
        output = llm(llm.embed(batch.input_ids), batch.attention_mask, batch.labels)
        optimizer.zero_grad()
        (output.nll / output.tokens).backward()
        clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done.value = (step + 1) / steps
    unseen = list(_pages(root, "val", "valid"))
    heldout = rng.sample(unseen, min(_ASKED, len(unseen)))
    return _score(llm, collate([preprocess(_text(rng, page, turns=1)) for page in heldout]))


@torch.no_grad()
def _score(llm: HFCausalLM, batch: Batch) -> dict[str, Any]:
    logits = llm(llm.embed(batch.input_ids), batch.attention_mask).logits
    assert logits is not None
    assert batch.labels is not None
    targets = batch.labels[:, 1:]
    right = ((logits[:, :-1].argmax(-1) == targets) | (targets == IGNORE)).all(1)
    return {
        "what": "questions on captions",
        "heldout": len(right),
        "measure": "exact",
        "score": float(right.float().mean()),
    }


def _text(rng: random.Random, page: Page, turns: int = TURNS) -> Sample:
    """The caption where a medium would stand, then the prompt and questions as they are asked about the medium."""
    caption, rows = page
    asked = rng.sample(rows, min(turns, len(rows)))
    talk = (turn for row in asked for turn in (Turn("user", row["instruction"]), Turn("assistant", row["response"])))
    return Sample((Turn("system", caption), *talk), uid=caption, source="reading")


def _pages(root: Path, split: str, dstc: str) -> Iterator[Page]:
    coco, avsd, audio = root / "coco", root / "avsd", root / "audio"
    watched = avsd_captions(avsd / f"{dstc}_set4DSTC7-AVSD.json", "caption")
    heard = avsd_captions(avsd / f"{dstc}_set4DSTC7-AVSD.json", "summary")
    captions = {
        coco / f"generated_examples_coco_{split}.json": coco_captions(coco / f"annotations/captions_{split}2017.json"),
        avsd / f"generated_examples_avsd_{split}.json": {
            name: [f"{own[0]} {heard[name][0]}"] for name, own in watched.items()
        },
        audio / f"generated_examples_audio_{split}.json": coco_captions(audio / f"captions_{split}.json"),
    }
    for path, own in captions.items():
        rows: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in json.loads(path.read_text(encoding="utf-8"))["data"]:
            rows[row["id"]].append(row)
        yield from ((own[name][0], asked) for name, asked in rows.items())
