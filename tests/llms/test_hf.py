"""Causal LMs of transformers against transformers' own loss, logits, generation and folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.types import IGNORE

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.18,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.18}
CONFIGS = {
    "llama": LLAMA,
    "llama_tied": {**LLAMA, "tie_word_embeddings": True},
    "llama_grouped": {**LLAMA, "num_key_value_heads": 2},
    "gpt2": GPT2,
    "gpt2_untied": {**GPT2, "tie_word_embeddings": False},
}
VOCABULARY = 309  # of the tokenizer that the tests share
DELIMITERS = ["<image>", "</image>", "<depth>", "</depth>"]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGS[request.param]


@pytest.fixture
def llm(config: dict[str, Any], tokenizer_folder: Path) -> HFCausalLM:
    return HFCausalLM(config, str(tokenizer_folder), DELIMITERS).eval()


@pytest.fixture(scope="session")
def plain_tokenizer(make_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a language model that has never heard of media, nor of padding."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = make_tokenizer(["<unk>", "<s>", "</s>"])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


def rows(llm: HFCausalLM, lengths: list[int], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Random embeddings, padded with noise that nothing may depend on, and their mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if side == "left" else mask
    return torch.randn(len(lengths), max(lengths), llm.dim), mask


def test_loss_is_the_negative_log_likelihood_of_the_response_tokens(llm):
    embeds, mask = rows(llm, [7, 5, 6])
    labels = torch.full((3, 7), IGNORE)
    labels[0, 3:7] = torch.tensor([11, 12, 13, 14])
    labels[1, [2, 4]] = torch.tensor([15, 16])  # two answers of a dialogue
    labels[2, 0] = 17  # nothing stands before the first position: it cannot be predicted
    output = llm(embeds, mask, labels)
    log_probabilities = llm(embeds, mask).logits.double().log_softmax(-1)
    wanted = [(0, 2, 11), (0, 3, 12), (0, 4, 13), (0, 5, 14), (1, 1, 15), (1, 3, 16)]
    expected = -sum(log_probabilities[row, place, token] for row, place, token in wanted)
    assert int(output.tokens) == 6
    # float32 logits of width 32 against the same logits, normalised in float64
    assert output.nll.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.logits is None


def test_loss_and_gradients_are_transformers_own(llm):
    embeds, mask = rows(llm, [7, 5])
    labels = torch.where(mask, torch.randint(10, VOCABULARY, mask.shape), IGNORE)
    labels[:, :2] = IGNORE
    output = llm(embeds, mask, labels)
    published = llm.model(inputs_embeds=embeds, attention_mask=mask.long(), labels=labels)
    assert (output.nll / output.tokens).item() == pytest.approx(published.loss.item(), rel=1e-5)
    weights = list(llm.parameters())
    found = torch.autograd.grad(output.nll / output.tokens, weights, allow_unused=True)
    wanted = torch.autograd.grad(published.loss, weights, allow_unused=True)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)  # float32, fewer rows in the head's product


def test_only_positions_that_bear_loss_reach_the_head(llm):
    seen = []
    llm.model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    embeds, mask = rows(llm, [9, 4])
    labels = torch.full((2, 9), IGNORE)
    labels[0, 6:] = 20
    llm(embeds, mask, labels)
    assert seen == [(3, llm.dim)]


def test_a_batch_without_response_tokens_has_no_loss_and_zero_gradients(llm):
    embeds, mask = rows(llm, [4, 3])
    output = llm(embeds, mask, torch.full((2, 4), IGNORE))
    assert (output.nll.item(), int(output.tokens)) == (0.0, 0)
    output.nll.backward()
    assert not llm.model.get_output_embeddings().weight.grad.any()


def test_logits_are_transformers_own_and_do_not_see_the_padding(llm):
    embeds, mask = rows(llm, [6, 4])
    logits = llm(embeds, mask).logits
    published = llm.model(inputs_embeds=embeds, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits, published)
    alone = llm(embeds[1:, :4], mask[1:, :4]).logits
    # A masked softmax over 6 keys and one over 4 sum in another order: a few ulp of values up to 10.
    torch.testing.assert_close(logits[1:, :4], alone, rtol=1e-4, atol=1e-4)


def test_embedding_ids_and_feeding_the_embeddings_is_feeding_the_ids(llm):
    ids = torch.randint(0, VOCABULARY, (2, 6))
    assert torch.equal(llm.embed(ids), llm.table[ids])
    logits = llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool)).logits
    torch.testing.assert_close(logits, llm.model(input_ids=ids).logits)


def test_left_padded_rows_continue_as_each_does_alone(llm):
    lengths = [3, 8, 5]
    embeds, mask = rows(llm, lengths, "left")
    together = llm.generate(embeds, mask, max_new_tokens=6, do_sample=False)
    assert together.shape == (3, 6)
    for row, length in enumerate(lengths):
        alone = llm.generate(
            embeds[row : row + 1, -length:], mask[row : row + 1, -length:], max_new_tokens=6, do_sample=False
        )
        assert together[row].tolist() == alone[0].tolist()


def test_generation_is_the_argmax_step_by_step(llm):
    embeds, mask = rows(llm, [5])
    found = llm.generate(embeds, mask, max_new_tokens=5, do_sample=False)[0].tolist()
    expected = []
    for _ in range(5):  # without a cache: the whole row anew each time
        expected.append(int(llm(embeds, torch.ones(1, embeds.shape[1], dtype=torch.bool)).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, llm.embed(torch.tensor([[expected[-1]]]))], dim=1)
    assert found == expected


def test_a_row_that_ended_is_padded(llm):
    embeds, mask = rows(llm, [6, 6])
    free = llm.generate(embeds, mask, max_new_tokens=6, do_sample=False)
    end = int(free[0, 1])
    length = free[0].tolist().index(end) + 1
    ended = llm.generate(embeds, mask, max_new_tokens=6, do_sample=False, eos_token_id=end)[0].tolist()
    assert ended[:length] == free[0, :length].tolist()
    assert set(ended[length:]) <= {llm.tokenizer.pad_token_id}
    assert llm.model.generation_config.eos_token_id == llm.tokenizer.eos_token_id


def test_delimiters_are_added_once_and_the_vocabulary_grows(config, tokenizer_folder, plain_tokenizer, tmp_path):
    llm = HFCausalLM(config, str(tokenizer_folder), DELIMITERS)
    ids = llm.tokenizer.convert_tokens_to_ids(DELIMITERS)
    assert ids == [4, 5, VOCABULARY, VOCABULARY + 1], "<image> was there already, <depth> was not"
    assert llm.table.shape == (VOCABULARY + 2, 32)
    bare = HFCausalLM(config, str(plain_tokenizer), DELIMITERS)
    control = [bare.tokenizer.bos_token_id, bare.tokenizer.eos_token_id, bare.tokenizer.pad_token_id]
    found = [*control, *bare.tokenizer.convert_tokens_to_ids(DELIMITERS)]
    assert len(set(found)) == 7
    assert bare.table.shape[0] == len(bare.tokenizer) == max(found) + 1
    again = HFCausalLM(**bare.save_config(tmp_path), tokenizer=str(tmp_path), delimiters=DELIMITERS)
    assert [again.tokenizer.convert_tokens_to_ids(token) for token in DELIMITERS] == found[3:]
    assert again.table.shape == bare.table.shape
    assert again.config_dict == bare.config_dict


def test_a_vocabulary_that_is_large_enough_stays(tokenizer_folder):
    assert HFCausalLM({**LLAMA, "vocab_size": 400}, str(tokenizer_folder), DELIMITERS).table.shape[0] == 400


def test_fresh_embeddings_have_the_spread_that_is_asked_for(config, tokenizer_folder):
    torch.manual_seed(0)
    plain = HFCausalLM(config, str(tokenizer_folder))
    torch.manual_seed(0)
    spread = HFCausalLM(config, str(tokenizer_folder), embedding_std=1.0)
    # Ten thousand numbers: their deviation is known to 0.7 %, and 5 % is seven times that.
    assert plain.table.std().item() == pytest.approx(0.18, rel=0.05)
    assert spread.table.std().item() == pytest.approx(1.0, rel=0.05)
    head = spread.model.get_output_embeddings().weight
    assert head is spread.table or torch.equal(head, plain.model.get_output_embeddings().weight)


def published_model(config: dict[str, Any], folder: Path, vocabulary: int) -> Any:
    """A model as transformers saves it; untied tables differ."""
    sizes = {**config, "vocab_size": vocabulary}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes)).eval()
    model.save_pretrained(folder)
    return model


def test_weights_arrive_and_added_rows_are_the_mean(config, plain_tokenizer, tmp_path):
    llm = HFCausalLM(config, str(plain_tokenizer), DELIMITERS).eval()
    known = llm.table.shape[0] - len(DELIMITERS) - 1  # one more for padding
    published = published_model(config, tmp_path, known)
    llm.load_pretrained(str(tmp_path))
    ids = torch.randint(0, known, (2, 6))
    logits = llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool)).logits
    torch.testing.assert_close(logits[..., :known], published(input_ids=ids).logits)
    for mine, theirs in [
        (llm.table, published.get_input_embeddings().weight),
        (llm.model.get_output_embeddings().weight, published.get_output_embeddings().weight),
    ]:
        assert torch.equal(mine[:known], theirs)
        torch.testing.assert_close(mine[known:], theirs.mean(0).expand(len(DELIMITERS) + 1, -1))
    tied = llm.table.data_ptr() == llm.model.get_output_embeddings().weight.data_ptr()
    assert tied == published.config.tie_word_embeddings


def test_a_model_folder_serves_as_config_too(tokenizer_folder, tmp_path):
    published_model(CONFIGS["llama_grouped"], tmp_path, VOCABULARY)
    llm = HFCausalLM(str(tmp_path), str(tokenizer_folder), DELIMITERS)
    llm.load_pretrained(str(tmp_path))
    assert llm.model.config.num_key_value_heads == 2


def test_building_two_models_of_one_config_does_not_change_it(tokenizer_folder):
    config = dict(LLAMA)
    first = HFCausalLM(config, str(tokenizer_folder))
    second = HFCausalLM(config, str(tokenizer_folder))
    assert config == LLAMA
    assert first.config_dict == second.config_dict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    published_model(LLAMA, path, VOCABULARY)
    return path


def write(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "not found: give a folder"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no causal LM"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (cut, "incomplete metadata"),
        (write("model.safetensors", ""), "header too small"),
        (write("config.json", "{"), "not a valid JSON"),
        (write("config.json", "[]"), "model_type"),
        (write("config.json", '{"model_type": "clip"}'), "CLIPConfig"),
        (write("config.json", json.dumps({**LLAMA, "hidden_size": "wide"})), "expected int, got str"),
        (edit_weights(lambda state: state.pop("model.norm.weight")), "lacks 1 weights, among them model.norm.weight"),
        (edit_weights(lambda state: state.update({"model.norm.weight": torch.ones(31)})), "lacks 1 weights.*norm.*31"),
    ],
)
def test_a_folder_that_is_none_or_damaged_is_one_clear_line(folder, tokenizer_folder, tmp_path, damage, message):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    damage(broken)
    with pytest.raises(WeightsError, match=message) as caught:
        HFCausalLM(LLAMA, str(tokenizer_folder)).load_pretrained(str(broken))
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, r"of another shape: model\.embed_tokens\.weight \[309, 32\], wanted \[309, 64\]"),
        ({"num_hidden_layers": 3}, r"9 missing: model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"9 unexpected: model\.layers\.1"),
    ],
)
def test_weights_of_another_size_are_refused(folder, tokenizer_folder, change, message):
    with pytest.raises(WeightsError, match=message):
        HFCausalLM({**LLAMA, **change}, str(tokenizer_folder)).load_pretrained(str(folder))


def test_a_larger_vocabulary_than_configured_is_refused(tokenizer_folder, tmp_path):
    published_model(LLAMA, tmp_path, 400)
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight \[400, 32\], wanted \[309, 32\]"):
        HFCausalLM(LLAMA, str(tokenizer_folder)).load_pretrained(str(tmp_path))


def test_code_in_a_folder_is_neither_run_nor_offered_to_be_run(folder, tokenizer_folder, tmp_path, capsys):
    stranger, canary = tmp_path / "stranger", tmp_path / "canary"
    shutil.copytree(folder, stranger)
    foreign = {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.LM"},
    }
    (stranger / "config.json").write_text(json.dumps({**LLAMA, **foreign}))
    (stranger / "foreign.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    with pytest.raises(WeightsError, match="stranger holds no causal LM"):
        HFCausalLM(LLAMA, str(tokenizer_folder)).load_pretrained(str(stranger))
    with pytest.raises(ConfigError, match="stranger holds no transformers config"):
        HFCausalLM(str(stranger), str(tokenizer_folder))
    assert not canary.exists()
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"hidden_size": 32}, "model_type"),
        ({"model_type": "clip"}, "CLIPConfig"),
        ({**LLAMA, "hidden_size": 33}, "33.*multiple of the number of attention heads"),
        ({**LLAMA, "hidden_size": "wide"}, "expected int, got str"),
        ({**LLAMA, "num_attention_heads": 0}, "division"),
        ("/nowhere", "/nowhere holds no transformers config"),
    ],
)
def test_a_config_that_cannot_work_is_one_clear_line(tokenizer_folder, config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        HFCausalLM(config, str(tokenizer_folder))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_folder_that_is_none_or_damaged_is_one_clear_line(tokenizer_folder, tmp_path):
    with pytest.raises(ConfigError, match="none not found: give a folder with tokenizer.json"):
        HFCausalLM(LLAMA, str(tmp_path / "none"))
    for number, damage in enumerate(
        [write("tokenizer.json", "{"), lambda folder: (folder / "tokenizer.json").unlink()]
    ):
        broken = tmp_path / f"broken{number}"
        shutil.copytree(tokenizer_folder, broken)
        damage(broken)
        with pytest.raises(ConfigError, match=f"broken{number} holds no tokenizer"):
            HFCausalLM(LLAMA, str(broken))
