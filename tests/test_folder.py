"""Model folders: bit for bit back in every form of model, whole or not there at all, and nothing altered passes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig

from macaw_lit import hub
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.data.prompt import Prompt
from macaw_lit.errors import ConfigError, WeightsError
from macaw_lit.inference import load_answerer
from macaw_lit.llms.hf import HFCausalLM
from macaw_lit.model import Macaw
from macaw_lit.types import Sample, Turn

MIXED = [(1, {"image": 1}), (2, {}), (3, {"image": 1, "video": 1, "audio": 1})]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LLMS = {
    "llama": {},
    "llama_tied": {"tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 2, **SMALL},
    "xglm": {"model_type": "xglm", "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    "gpt_neox_tied": {"model_type": "gpt_neox", "tie_word_embeddings": True, **SMALL},
}


@pytest.fixture
def make_model(sizes: dict[str, Any]) -> Callable[[str], Macaw]:
    def make(name: str) -> Macaw:
        own = LLMS[name]
        sizes["llm"]["config"] = own if "model_type" in own else {**sizes["llm"]["config"], **own}
        return Macaw.from_config(sizes).eval()

    return make


def same(first: Macaw, second: Macaw) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(tensor.dtype == theirs[name].dtype for name, tensor in mine.items())
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("llm", LLMS)
def test_a_model_comes_back_to_the_bit_in_its_precision(make_model, make_batch, tmp_path, llm, precision):
    model = make_model(llm).to(precision)
    model.save_pretrained(tmp_path / "model")
    torch.manual_seed(9)
    again = Macaw.from_pretrained(str(tmp_path / "model"))
    assert same(model, again)
    own = dict(model.named_buffers())  # those that no file holds, too: rotary frequencies in fp32, tables as weights
    assert all(torch.equal(buffer, own[name]) for name, buffer in again.named_buffers())
    assert all(buffer.dtype == own[name].dtype for name, buffer in again.named_buffers())
    assert not any(parameter.is_meta for parameter in again.parameters())
    batch = make_batch(model, MIXED)
    assert torch.equal(again(batch).nll, model(batch).nll)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in again.named_parameters() if parameter.requires_grad]
    assert (again.llm.model.get_output_embeddings().weight is again.llm.table) == ("tied" in llm or llm == "gpt2")
    again.train()(batch).nll.backward()  # its weights are its own, and can be trained on


def test_parts_of_different_precision_keep_theirs(model, tmp_path):
    model.encoders["vision"].bfloat16()
    model.save_pretrained(tmp_path / "model")
    assert same(model, Macaw.from_pretrained(tmp_path / "model"))


def test_weights_above_a_size_are_written_in_shards(model, make_batch, tmp_path):
    model.eval().save_pretrained(tmp_path / "model", max_shard_size="100KB")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2
    again = Macaw.from_pretrained(tmp_path / "model")
    assert same(model, again)
    names = []
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            names += list(opened.keys())
    assert sorted(names) == sorted(model.state_dict())
    again.save_pretrained(tmp_path / "model")  # in one piece: no shard may stay behind
    assert sorted(path.name for path in (tmp_path / "model").glob("model*")) == ["model.safetensors"]
    assert same(model, Macaw.from_pretrained(tmp_path / "model"))


def test_all_files_may_be_read_by_whom_the_user_s_files_may(model, tmp_path):
    (tmp_path / "usual").touch()
    model.save_pretrained(tmp_path / "model")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert set(modes.values()) == {(tmp_path / "usual").stat().st_mode}, modes


def test_no_weights_are_drawn_before_those_of_the_file_arrive(model, monkeypatch, tmp_path):
    model.save_pretrained(tmp_path / "model")
    seen = []
    monkeypatch.setattr("macaw_lit.folder.load_weights", lambda folder, module, facts: seen.append(module))
    Macaw.from_pretrained(tmp_path / "model")
    assert all(parameter.is_meta for parameter in seen[0].parameters()), "7 B numbers take minutes, and memory twice"
    assert not any(buffer.is_meta for buffer in seen[0].buffers()), "the file does not hold them all"


# ---- what lies beside the weights


def test_preprocessing_travels_with_the_model_and_is_kept(model, tmp_path):
    own = Preprocessor(
        model.llm.tokenizer, model.specs(), layout="inline", max_length=99, prompt=Prompt(header="Look.")
    )
    model.save_pretrained(tmp_path / "first", own)
    Macaw.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    settings = [(tmp_path / name / "preprocess.json").read_text() for name in ("first", "second")]
    assert settings[0] == settings[1]
    found = load_answerer(tmp_path / "second").preprocess
    assert (found.layout, found.max_length, found.prompt.header) == ("inline", 99, "Look.")


def test_a_model_saved_alone_answers_with_the_defaults(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    answerer = load_answerer(tmp_path / "model", max_new_tokens=2)
    assert answerer.preprocess.prompt == Prompt()
    assert isinstance(answerer([Sample((Turn("user", "Why?"),), "x", "test")])[0], str)


def test_generation_settings_travel_and_give_way(model, make_batch, tmp_path):
    model.eval().llm.generation = {"do_sample": False, "max_new_tokens": 3}
    model.save_pretrained(tmp_path / "model")
    again = Macaw.from_pretrained(tmp_path / "model")
    batch = make_batch(model, MIXED, "left")
    assert again.generate(batch).shape[1] <= 3
    assert again.generate(batch, max_new_tokens=1).shape[1] == 1
    assert GenerationConfig.from_pretrained(tmp_path / "model").max_new_tokens == 3


def test_the_tokenizer_serves_others_with_the_prompt_as_its_template(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model" / "tokenizer")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert text == f"<s>{Prompt().header}\n\n### Instruction:\nWhy?\n\n### Response:"


def test_the_card_states_sizes_and_claims_nothing(model, tmp_path):
    model.config["identities"] = {"vision": {"sha256": "ab12", "source": "/home/me/clip.pt"}}
    model.save_pretrained(tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "macaw-lit"
    for part in (model.encoders["vision"], model.modalities["video"], model.llm, model):
        assert f"| {sum(p.numel() for p in part.parameters()):,} |" in card.text
    assert "| video | vision | 3 |" in card.text
    assert "- vision: SHA-256 ab12" in card.text
    assert "/home/me" not in card.text
    assert Macaw.from_pretrained(tmp_path / "model").config["identities"] == model.config["identities"]


# ---- whole or not at all


def test_a_save_that_fails_leaves_nothing_behind(model, monkeypatch, tmp_path):
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("macaw_lit.folder.write_preprocess", full)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_model_that_was_there(model, monkeypatch, tmp_path):
    model.save_pretrained(tmp_path / "model")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    with monkeypatch.context() as context:
        context.setattr("macaw_lit.folder.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(tmp_path / "model")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before
    assert same(model, Macaw.from_pretrained(tmp_path / "model"))


def test_files_of_the_user_stay_where_they_are(model, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "model_of_mine.safetensors.bak").write_text("mine too")
    model.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "model_of_mine.safetensors.bak").exists()
    assert same(model, Macaw.from_pretrained(folder))
    with pytest.raises(ConfigError, match=r"notes\.txt is a file"):
        model.save_pretrained(folder / "notes.txt")


# ---- folders that are not what they were


@pytest.fixture
def sharded(model: Macaw, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    return tmp_path / "model"


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def flip(folder: Path) -> None:
    content = bytearray(shard(folder).read_bytes())
    content[-5] ^= 1
    shard(folder).write_bytes(content)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


def lose_delimiter(folder: Path) -> None:
    for path in (folder / "tokenizer").glob("tokenizer*.json"):
        content = json.loads(path.read_text())
        for name in ("added_tokens", "extra_special_tokens", "additional_special_tokens"):
            tokens = [token for token in content.get(name, []) if "<audio>" not in str(token)]
            content |= {name: tokens} if name in content else {}
        content.get("model", {"vocab": {}})["vocab"].pop("<audio>", None)
        path.write_text(json.dumps(content))


def swap_words(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["A"], words["B"] = words["B"], words["A"]
    path.write_text(json.dumps(content))


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "is not what was written"),
        (lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-9]), "damaged"),
        (lambda folder: shard(folder).unlink(), "lacks 1 of"),
        (edit(INDEX, weight_map={"x": "../../etc/passwd"}), "weight_map"),
        (edit(INDEX, weight_map=3), "weight_map"),
        (edit(INDEX, weight_map={}), "missing"),
        (lambda folder: (folder / INDEX).write_text("{"), "not JSON"),
        (edit("config.json", weights={}), "differs"),
        (edit("config.json", format="macaw-lit/9"), "does not say format"),
        (
            edit("config.json", llm={"_target_": "macaw_lit.llms.hf.HFCausalLM", "config": "owner/name"}),
            "expected sizes",
        ),
        (lose_delimiter, "lacks <audio>"),
        (swap_words, "its vocabulary differs"),
        (edit("preprocess.json", layout="spiral"), "preprocess.json cannot be used"),
        (lambda folder: (folder / "generation_config.json").write_text("["), "generation_config.json is not JSON"),
    ],
)
def test_an_altered_folder_is_one_clear_line(sharded, damage, message):
    damage(sharded)
    with pytest.raises(WeightsError, match=message) as caught:
        Macaw.from_pretrained(sharded)
    assert "\n" not in str(caught.value)
    assert str(sharded) in str(caught.value)


@pytest.mark.parametrize("sizes_of", ["vocab_size", "hidden_size"])
def test_a_folder_of_another_width_or_vocabulary_is_refused(sharded, sizes_of):
    config = json.loads((sharded / "config.json").read_text())
    config["llm"]["config"][sizes_of] *= 2
    (sharded / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"of another shape: .* \[(309|32), .* wanted \[(618|64), "):
        Macaw.from_pretrained(sharded)


# ---- the hub


def test_a_model_is_pushed_whole(model, monkeypatch, tmp_path):
    seen: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            seen["repo"] = (repo_id, options)

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            seen["same"] = same(model, Macaw.from_pretrained(folder_path))
            return f"commit in {repo_id}"

    monkeypatch.setattr(hub, "HfApi", Hub)
    assert model.push_to_hub("me/macaw", private=True, token="secret") == "commit in me/macaw"
    assert seen == {"token": "secret", "repo": ("me/macaw", {"private": True, "exist_ok": True}), "same": True}


def test_a_hub_that_cannot_be_reached_is_one_clear_line(model):
    with pytest.raises(WeightsError, match="me/macaw cannot be written on the hub") as caught:
        model.push_to_hub("me/macaw")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="me/macaw is neither a folder nor a hub id that can be reached"):
        Macaw.from_pretrained("me/macaw")


def test_a_language_model_without_delimiters_gets_them_before_it_is_saved(model, make_tokenizer, sizes, tmp_path):
    make_tokenizer(["<unk>", "<s>", "</s>"]).save_pretrained(tmp_path / "plain")
    sizes["llm"]["tokenizer"] = str(tmp_path / "plain")
    plain = Macaw.from_config(sizes)
    assert isinstance(plain.llm, HFCausalLM)
    assert len(plain.llm.added) == 6
    plain.save_pretrained(tmp_path / "model")
    assert Macaw.from_pretrained(tmp_path / "model").llm.added == []
