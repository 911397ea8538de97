"""The model card: what is known of a model, and nothing else."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from macaw_lit.data.preprocess import Preprocessor

_HEAD = """\
---
library_name: macaw-lit
tags:
- macaw-lit
- multimodal
---

# A Macaw-LLM model

A language model with soft tokens for {kinds}, in the architecture of
[Macaw-LLM](https://arxiv.org/abs/2306.09093). This card lists what the files say; nothing is known here about
training data, quality or licence unless it is written below by hand.

| part | class | parameters |
|---|---|---|
{rows}

| medium | through | soft tokens an item |
|---|---|---|
{media}

Rows have at most {max_length} positions. Media stand {layout}.
{origins}
## Use

```python
from macaw_lit.model import Macaw
from macaw_lit.processor import MacawProcessor

model, processor = Macaw.from_pretrained(folder), MacawProcessor.from_pretrained(folder)
messages = [{{"role": "user", "content": [{parts}{{"type": "text", "text": "What is this?"}}]}}]
inputs = processor.apply_chat_template(messages)
print(processor.batch_decode(model.generate(**inputs)))
```
"""
_LAYOUTS = {"prefix": "after the first token, kind by kind", "inline": "before the text of the turn they belong to"}


def model_card(model: nn.Module, config: Mapping[str, Any], preprocess: Preprocessor) -> str:
    """Markdown for the hub: parts, sizes, origins of the weights as far as they were recorded, and how to use it."""
    parts = {
        f"{family}.{name}": part
        for family in ("encoders", "modalities")
        for name, part in model.get_submodule(family).named_children()
    }
    parts["llm"] = model.get_submodule("llm")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    rows = [f"| {name} | {_class(config, name)} | {count:,} |" for name, count in counts.items()]
    through = {kind: str(config["modalities"][kind]["encoder"]) for kind in preprocess.specs}
    media = [f"| {kind} | {through[kind]} | {spec.num_tokens} |" for kind, spec in preprocess.specs.items()]
    identities = config.get("identities") or {}
    origins = [f"- {name}: SHA-256 {identity['sha256']}" for name, identity in identities.items()]
    kind = next(iter(preprocess.specs), None)
    return _HEAD.format(
        kinds=", ".join(preprocess.specs) or "no media",
        rows="\n".join([*rows, f"| all | | {sum(counts.values()):,} |"]),
        media="\n".join(media),
        max_length=preprocess.max_length,
        layout=_LAYOUTS[preprocess.layout],
        origins="\n".join(["\nParts that training started from:\n", *origins, ""]) if origins else "",
        parts=f'{{"type": "{kind}", "path": path}}, ' if kind else "",
    )


def _class(config: Mapping[str, Any], name: str) -> str:
    """The class that a part is built from; of a modality, its aligner's."""
    family, _, key = name.partition(".")
    if family == "modalities":
        part = {**config["aligner"], **(config["modalities"][key].get("aligner") or {})}
    else:
        part = config[family][key] if key else config[family]
    return str(part["_target_"]).rpartition(".")[2]
