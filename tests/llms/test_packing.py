"""Samples that share a row against the same samples alone, for every architecture that may be packed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from macaw_lit.errors import ConfigError
from macaw_lit.llms.hf import PACKABLE, HFCausalLM
from macaw_lit.types import IGNORE

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.18,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.18}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**SIZES, "num_key_value_heads": 4},
    **{name: {**SIZES, "head_dim": 8} for name in ("gemma", "gemma2", "gemma3_text", "qwen3")},
}
WINDOWS = {"mistral": {}, "qwen2": {"use_sliding_window": True, "max_window_layers": 1}, "gemma2": {}, "starcoder2": {}}
CASES = {name: {"model_type": name, **OWN.get(name, SIZES)} for name in PACKABLE}
CASES |= {f"{name}_window": {**CASES[name], "sliding_window": 4, **more} for name, more in WINDOWS.items()}
LENGTHS = [7, 5, 9, 1, 3]
ROWS = [[0, 1, 3], [2, 4]]  # 13 and 12 of 15 positions


@pytest.fixture(params=CASES)
def llm(request: pytest.FixtureRequest, tokenizer_folder: Path) -> HFCausalLM:
    return HFCausalLM(CASES[request.param], str(tokenizer_folder)).eval()


def packed(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[int, slice]]]:
    """Rows of embeddings padded with noise, their mask, their positions, and where each sample is."""
    embeds, mask = torch.randn(2, 15, 32), torch.zeros(2, 15, dtype=torch.bool)
    positions, places = torch.zeros(2, 15, dtype=torch.long), {}
    for row, members in enumerate(ROWS):
        start = 0
        for member in members:
            place = row, slice(start, start := start + LENGTHS[member])
            embeds[place], mask[place], places[member] = samples[member], True, place
            positions[place] = torch.arange(LENGTHS[member])
    return embeds, mask, positions, [places[member] for member in range(len(LENGTHS))]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_loss_and_gradients_are_those_of_each_sample_alone(llm, attention):
    try:
        llm.model.set_attn_implementation(attention)
    except ValueError:
        pytest.skip(f"{llm.model.config.model_type} has no {attention}")
    llm.check_packing()
    samples = [torch.randn(length, 32) for length in LENGTHS]
    embeds, mask, positions, places = packed(samples)
    labels = torch.full(mask.shape, IGNORE)
    for place in places:
        labels[place][2:] = torch.randint(10, 300, labels[place][2:].shape)
    logits = llm(embeds, mask, positions=positions).logits
    output = llm(embeds, mask, labels, positions)
    own = {name: weight for name, weight in llm.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(output.nll, list(own.values()), allow_unused=True)
    nll, tokens = torch.zeros(()), 0
    for sample, place in zip(samples, places, strict=True):
        here = torch.ones(1, len(sample), dtype=torch.bool)
        # float32 sums over 15 masked keys instead of a few: 2e-6 was seen, of logits up to 4
        torch.testing.assert_close(logits[place], llm(sample[None], here).logits[0], rtol=1e-5, atol=1e-5)
        alone = llm(sample[None], here, labels[place][None])
        nll, tokens = nll + alone.nll, tokens + int(alone.tokens)
    assert int(output.tokens) == tokens == 5 + 3 + 7 + 1
    assert output.nll.item() == pytest.approx(nll.item(), rel=1e-5)
    wanted = torch.autograd.grad(nll, list(own.values()), allow_unused=True)
    for name, mine, theirs in zip(own, gradients, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:  # sums in another order, of 16 tokens' gradients
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5, msg=name)


def test_no_sample_depends_on_another_or_on_padding(llm):
    """To the bit: what is masked has weight 0. A length that is forgotten or a window that reaches over would show."""
    samples = [torch.randn(length, 32) for length in LENGTHS]
    embeds, mask, positions, places = packed(samples)
    with torch.no_grad():
        before = llm(embeds, mask, positions=positions).logits
        for changed, place in enumerate(places):
            other = embeds.clone()
            other[place] = torch.randn_like(other[place])
            other[~mask] = 5.0
            after = llm(other, mask, positions=positions).logits
            for member, where in enumerate(places):
                assert torch.equal(after[where], before[where]) == (member != changed), (changed, member)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
        {**SIZES, "model_type": "opt", "word_embed_proj_dim": 32, "ffn_dim": 64, "num_key_value_heads": 4},
        {**SIZES, "model_type": "mamba", "state_size": 4},
    ],
    ids=lambda config: config["model_type"],
)
def test_what_cannot_keep_samples_apart_is_refused(tokenizer_folder, config):
    llm = HFCausalLM(config, str(tokenizer_folder)).eval()
    embeds, mask, positions, _ = packed([torch.randn(length, 32) for length in LENGTHS])
    for call in (llm.check_packing, lambda: llm(embeds, mask, positions=positions)):
        with pytest.raises(
            ConfigError, match=f"type {config['model_type']} is not known.* data.pack_rows=false"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
    sizes = {"vocab_size": 320, "pad_token_id": 3, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes)).eval()
    taken = {"position_ids": positions} if config["model_type"] == "opt" else {}
    with torch.no_grad():
        before = model(inputs_embeds=embeds, use_cache=False, **taken).logits
        embeds[0, :7] = 1.0
        after = model(inputs_embeds=embeds, use_cache=False, **taken).logits
    assert not torch.allclose(before[0, 7:12], after[0, 7:12], atol=1e-3), "or else it need not be refused"


def test_another_attention_is_refused(tokenizer_folder):
    llm = HFCausalLM(CASES["llama"], str(tokenizer_folder))
    llm.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="attn_implementation=flash_attention_2 .*: expected sdpa or eager"):
        llm.check_packing()
