"""Causal LMs of transformers against transformers' own loss, logits, generation and folders."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.types import IGNORE
from macaw_lit.weights import fingerprint

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
    "mistral": {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4},
    "qwen2_tied": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {**LLAMA, "model_type": "gpt_neox"},
    "gpt_neox_tied": {**LLAMA, "model_type": "gpt_neox", "tie_word_embeddings": True},
    "phi": {**LLAMA, "model_type": "phi"},  # its head has a bias
    "granite": {**LLAMA, "model_type": "granite", "logits_scaling": 4.0},  # divides its logits
}
# Looks embeddings up scaled, and caps its logits.
GEMMA = {**LLAMA, "model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 3.0, "num_key_value_heads": 2}
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


def test_a_model_that_scales_its_embeddings_and_caps_its_logits_keeps_doing_so(tokenizer_folder):
    llm = HFCausalLM(GEMMA, str(tokenizer_folder), DELIMITERS).eval()
    ids = torch.randint(0, VOCABULARY, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(llm.embed(ids), llm.table[ids])
    published = llm.model(input_ids=ids, labels=ids)
    torch.testing.assert_close(llm(llm.embed(ids), mask).logits, published.logits)
    output = llm(llm.embed(ids), mask, ids)
    assert (output.nll / output.tokens).item() == pytest.approx(published.loss.item(), rel=1e-5)
    assert published.logits.abs().max() <= 3


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


def test_a_generation_config_is_not_overruled_by_the_defaults(llm):
    embeds, mask = rows(llm, [5])
    asked = GenerationConfig(max_new_tokens=3, num_beams=2, eos_token_id=None)
    with_beams = llm.generate(embeds, mask, generation_config=asked)
    assert with_beams.shape == (1, 3), "and not 64, as the defaults say"
    assert torch.equal(with_beams, llm.generate(embeds, mask, max_new_tokens=3, num_beams=2))


@pytest.mark.parametrize("settings", [{"nonsense": 3}, {"max_new_tokens": 0}, {"max_new_tokens": "x"}])
def test_generation_settings_that_cannot_work_are_named(llm, settings):
    [(name, value)] = settings.items()
    with pytest.raises(ConfigError, match=f"{name}={value}.*GenerationConfig"):
        llm.generate(*rows(llm, [5]), **settings)


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


def test_what_arrived_is_reported_and_constants_of_old_versions_are_left_out(tokenizer_folder, tmp_path):
    published_model(LLAMA, tmp_path, VOCABULARY)
    edit_weights(lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(tmp_path)
    llm = HFCausalLM(LLAMA, str(tokenizer_folder))
    coverage = llm.load_pretrained(str(tmp_path))
    assert coverage.loaded == tuple(llm.model.state_dict())
    assert coverage.missing == coverage.unexpected == coverage.mismatched == ()
    assert coverage.left_out in {(), ("model.layers.0.self_attn.rotary_emb.inv_freq",)}, "transformers may hide it"
    assert coverage.sha256 == fingerprint(llm.model.state_dict())


def test_a_model_folder_serves_as_config_too(tokenizer_folder, tmp_path):
    published_model(CONFIGS["llama_grouped"], tmp_path, VOCABULARY)
    llm = HFCausalLM(str(tmp_path), str(tokenizer_folder), DELIMITERS)
    llm.load_pretrained(str(tmp_path))
    assert llm.model.config.num_key_value_heads == 2
    assert str(tmp_path) not in json.dumps(llm.save_config(tmp_path / "saved")), "nor does it matter where it was"


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


def altered(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(state, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(state["lm_head.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "not found: give an existing file or folder, or a hub id"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no weights: expected model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights: expected model.safetensors"),
        (altered, r"pytorch_model\.bin is damaged \(the checksum of"),
        (cut, "incomplete metadata"),
        (write("model.safetensors", ""), "header too small"),
        (write("config.json", "{"), "not a valid JSON"),
        (write("config.json", "[]"), "model_type"),
        (write("config.json", '{"model_type": "clip"}'), "CLIPConfig"),
        (write("config.json", json.dumps({**LLAMA, "hidden_size": "wide"})), "expected int, got str"),
        (edit_weights(lambda state: state.pop("model.norm.weight")), r"does not fit .*1 missing: model\.norm\.weight"),
        (
            edit_weights(lambda state: state.update({"model.norm.weight": torch.ones(31)})),
            r"1 of another shape: model\.norm\.weight \[31\], wanted \[32\]",
        ),
        (
            edit_weights(lambda state: state.update({"model.gate.weight": torch.ones(2)})),
            r"1 unexpected: model\.gate\.weight",
        ),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_attention_heads": 2},
            "was made with num_attention_heads=4.*but is configured with num_attention_heads=2",
        ),
        (
            {"hidden_act": "gelu"},
            "was made with hidden_act=silu, but is configured with hidden_act=gelu: configure what",
        ),
        ({"rms_norm_eps": 1e-3}, "was made with rms_norm_eps=1e-06"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "was made with rope_parameters=.*10000"),
    ],
)
def test_what_shapes_do_not_show_is_held_against_the_config(folder, tokenizer_folder, change, message):
    llm = HFCausalLM({**LLAMA, **change}, str(tokenizer_folder))
    before = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        llm.load_pretrained(str(folder))
    assert all(torch.equal(before[name], tensor) for name, tensor in llm.state_dict().items())


def test_a_larger_vocabulary_than_configured_is_refused(tokenizer_folder, tmp_path):
    published_model(LLAMA, tmp_path, 400)
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight \[400, 32\], wanted \[309, 32\]"):
        HFCausalLM(LLAMA, str(tokenizer_folder)).load_pretrained(str(tmp_path))


def test_code_among_weights_is_not_run_and_nothing_else_is_printed(folder, tokenizer_folder, tmp_path, capfd):
    stranger, canary = tmp_path / "stranger", tmp_path / "canary"
    shutil.copytree(folder, stranger)
    (stranger / "model.safetensors").unlink()
    (stranger / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(canary)))
    llm = HFCausalLM(LLAMA, str(tokenizer_folder))
    with pytest.raises(WeightsError, match="damaged or holds more than tensors") as caught:
        llm.load_pretrained(str(stranger))
    assert "weights_only" not in str(caught.value), "the reader's own advice is to lift its restriction"
    assert not canary.exists()
    llm.load_pretrained(str(folder))
    assert capfd.readouterr() == ("", ""), "bars of progress would stand above the line that teaches"


class Trap:
    """Makes the folder `canary` when it is unpickled without restriction."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def test_code_in_a_folder_is_neither_run_nor_offered_to_be_run(folder, tokenizer_folder, tmp_path, capsys):
    stranger, canary = tmp_path / "stranger", tmp_path / "canary"
    shutil.copytree(folder, stranger)
    foreign = {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.LM"},
    }
    (stranger / "config.json").write_text(json.dumps({**LLAMA, **foreign}))
    (stranger / "foreign.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    with pytest.raises(WeightsError, match="stranger holds no causal LM of transformers: it brings code of its own"):
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
    ],
)
def test_a_config_that_cannot_work_is_one_clear_line(tokenizer_folder, config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        HFCausalLM(config, str(tokenizer_folder))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_folder_that_is_none_or_damaged_is_one_clear_line(tokenizer_folder, tmp_path):
    with pytest.raises(WeightsError, match="none not found"):
        HFCausalLM(LLAMA, str(tmp_path / "none"))
    for number, damage in enumerate(
        [write("tokenizer.json", "{"), lambda folder: (folder / "tokenizer.json").unlink()]
    ):
        broken = tmp_path / f"broken{number}"
        shutil.copytree(tokenizer_folder, broken)
        damage(broken)
        with pytest.raises(ConfigError, match=f"broken{number} holds no tokenizer"):
            HFCausalLM(LLAMA, str(broken))


@pytest.mark.parametrize("name", ["tokenizer", "config", "weights"])
def test_a_hub_id_without_network_is_one_clear_line(tokenizer_folder, name):
    with pytest.raises(
        WeightsError, match=r"owner/name is neither a folder nor a hub id that can be reached"
    ) as caught:
        if name == "weights":
            HFCausalLM(LLAMA, str(tokenizer_folder)).load_pretrained("owner/name")
        elif name == "config":
            HFCausalLM("owner/name", str(tokenizer_folder))
        else:
            HFCausalLM(LLAMA, "owner/name")
    assert "\n" not in str(caught.value)


# ---- tokenizers as they are published

ENDOFTEXT = "<|endoftext|>"
TOKENIZERS = {  # control tokens in the vocabulary, and their roles; None takes one away
    "llama": (["<unk>", "<s>", "</s>"], {"pad_token": None}),
    "llama_padded_with_unk": (["<unk>", "<s>", "</s>"], {"pad_token": "<unk>"}),
    "gpt2": ([ENDOFTEXT], {**dict.fromkeys(("unk_token", "bos_token", "eos_token"), ENDOFTEXT), "pad_token": None}),
    "gpt_neox": (
        [ENDOFTEXT, "<|padding|>"],
        {"unk_token": None, "bos_token": ENDOFTEXT, "eos_token": ENDOFTEXT, "pad_token": "<|padding|>"},
    ),
    "qwen": ([ENDOFTEXT], {"unk_token": None, "bos_token": None, "eos_token": ENDOFTEXT, "pad_token": ENDOFTEXT}),
    "qwen_chat": (
        [ENDOFTEXT, "<|im_start|>", "<|im_end|>"],
        {"unk_token": None, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": ENDOFTEXT},
    ),
}


@pytest.fixture(params=TOKENIZERS)
def published_tokenizer(request: pytest.FixtureRequest, make_tokenizer: Callable[..., Any], tmp_path: Path) -> Path:
    control, roles = TOKENIZERS[request.param]
    tokenizer = make_tokenizer(control)
    for role, token in roles.items():
        setattr(tokenizer, role, token)
    tokenizer.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_every_published_kind_of_tokenizer_gets_distinct_control_ids(published_tokenizer, tmp_path):
    before = AutoTokenizer.from_pretrained(published_tokenizer)
    llm = HFCausalLM(LLAMA, str(published_tokenizer), DELIMITERS)
    tokenizer = llm.tokenizer
    ids = [tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.convert_tokens_to_ids(DELIMITERS)]
    assert len(set(ids)) == len(ids)
    assert tokenizer.bos_token_id == (before.eos_token_id if before.bos_token is None else before.bos_token_id)
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.eos_token_id == before.eos_token_id
    assert llm.table.shape[0] == max(tokenizer.get_vocab().values()) + 1
    text = f"A {ENDOFTEXT} or <image> is text."
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(plain) & {*ids, tokenizer.bos_token_id}
    assert tokenizer.decode(plain) == text
    assert set(llm.added) == {token for token in [tokenizer.pad_token, *DELIMITERS] if token not in before.get_vocab()}
    tokenizer.save_pretrained(tmp_path / "again")
    again = HFCausalLM(LLAMA, str(tmp_path / "again"), DELIMITERS)
    assert again.added == []
    assert again.tokenizer.bos_token_id == tokenizer.bos_token_id


def test_rows_that_a_vocabulary_has_to_spare_are_noise_until_a_token_takes_them(plain_tokenizer, tmp_path):
    llm = HFCausalLM({**LLAMA, "vocab_size": 400}, str(plain_tokenizer), DELIMITERS)
    published = published_model(LLAMA, tmp_path, 400)
    llm.load_pretrained(str(tmp_path))
    added = llm.tokenizer.convert_tokens_to_ids(llm.added)
    assert len(added) == len(DELIMITERS)
    known = [row for row in range(400) if row not in added]
    wanted = published.get_input_embeddings().weight
    assert torch.equal(llm.table[known], wanted[known])
    torch.testing.assert_close(llm.table[added], wanted[known].mean(0).expand(len(DELIMITERS), -1))


def test_control_tokens_that_cannot_be_told_apart_are_refused(make_tokenizer, tmp_path):
    endless = make_tokenizer()
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(ConfigError, match="endless has no EOS token"):
        HFCausalLM(LLAMA, str(tmp_path / "endless"))
    make_tokenizer(eos_token="<image>").save_pretrained(tmp_path / "shared")
    with pytest.raises(ConfigError, match="shared share an id"):
        HFCausalLM(LLAMA, str(tmp_path / "shared"), DELIMITERS)
