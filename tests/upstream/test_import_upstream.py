"""The command as a user meets it: an import that predicts, one line for whatever is bad, and bounded memory."""

import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from macaw_lit.errors import SampleError
from macaw_lit.import_upstream import main
from macaw_lit.inference import Answerer
from macaw_lit.model import Macaw
from macaw_lit.predict import main as predict
from macaw_lit.types import Sample, Turn

TABLE = "llm.model.embed_tokens.weight"


@pytest.fixture
def run(call: Callable, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`python -m macaw_lit.import_upstream source=source target=target …` beside the folder `source`."""
    return lambda *words: call(main, tmp_path, "source=source", "target=target", *words)


def test_an_imported_folder_predicts(run, call, source, picture, tone, tmp_path):
    source("v1", shards=2)
    code, told, complaint = run()
    assert (code, complaint) == (0, "")
    assert "variant v1: no video_long_self_attention.*" in told
    assert "heads: 4" in told
    assert "audio_encoder.decoder (12,288)" in told
    answers = set()
    for words in ([], [f"image={picture(200)}"], [f"audio={tone(0.5)}"]):
        code, answer, complaint = call(
            predict, tmp_path, "model=target", "instruction=What?", "max_new_tokens=8", *words
        )
        assert (code, complaint) == (0, "")
        answers.add(answer)
    assert len(answers) > 1, "the random model says the same whatever it is given"


def test_a_second_run_says_that_the_folder_is_there(run, source, tmp_path):
    source("v3")
    assert run()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*")}
    code, told, complaint = run()
    assert (code, told) == (1, "")
    assert complaint == "error: target is there already: give another target=, or remove it to import again\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*")} == before


def test_without_words_it_says_what_it_needs(call, tmp_path):
    assert call(main, tmp_path)[2] == "error: source, target must be given: add source=… target=…\n"


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return __import__("os").mkdir, (self.folder,)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(path: Path, change: Callable[[dict], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def flip(path: Path, content: bytes) -> None:
    """Turn one byte of the bytes `content` within the file."""
    whole = bytearray(path.read_bytes())
    place = whole.index(content) + len(content) // 2
    whole[place] ^= 0x40
    path.write_bytes(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


BIN, SAFE = "pytorch_model-00002-of-00003.bin", "model-00002-of-00003.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BAD = {  # what is done to the folder of a v3 in three shards → what must be said
    "no folder": ("bin", lambda at: at.rename(at.parent / "elsewhere"), "source is no checkpoint"),
    "no config": ("bin", lambda at: (at / "config.json").unlink(), "source is no checkpoint"),
    "config of text": ("bin", lambda at: (at / "config.json").write_text("{"), "config.json is not JSON"),
    "config of another model": ("bin", lambda at: (at / "config.json").write_text("{}"), "no original Macaw-LLM's"),
    "config with a hole": (
        "bin",
        lambda at: edit_json(at / "config.json", lambda config: config["audio_config"].pop("d_model")),
        "lacks audio_config.d_model",
    ),
    "config with words for numbers": (
        "bin",
        lambda at: edit_json(at / "config.json", lambda config: config.update(n_frames="six")),
        "says n_frames = 'six'",
    ),
    "another activation": (
        "bin",
        lambda at: edit_json(
            at / "config.json", lambda config: config["audio_config"].update(activation_function="relu")
        ),
        "activation_function = 'relu': expected 'gelu'",
    ),
    "no shard": ("bin", lambda at: (at / BIN).unlink(), "lacks 1 of 3 shards"),
    "truncated bin": ("bin", lambda at: cut(at / BIN), f"{BIN} is damaged"),
    "truncated safetensors": ("safetensors", lambda at: cut(at / SAFE), f"{SAFE} is damaged"),
    "index without a name": (
        "bin",
        lambda at: edit_json(at / BIN_INDEX, lambda index: index["weight_map"].pop(TABLE)),
        f"the index beside it differ, as in {TABLE}",
    ),
    "index that leads elsewhere": (
        "bin",
        lambda at: edit_json(at / BIN_INDEX, lambda index: index["weight_map"].update({TABLE: "../secret.bin"})),
        "has no weight_map of names to files beside it",
    ),
    "index of nothing": ("bin", lambda at: (at / BIN_INDEX).write_text("[]"), "expected a JSON object"),
    "NaN": (
        "safetensors",
        lambda at: edit_weights(at / SAFE, lambda state: state[max(state)].fill_(float("nan"))),
        "no finite numbers",
    ),
    "a weight of another width": (
        "safetensors",
        lambda at: edit_weights(
            at / SAFE, lambda state: state.update({min(state): state[min(state)][..., :-1].clone()})
        ),
        "of another shape",
    ),
    "config of another width": (
        "bin",
        lambda at: edit_json(at / "config.json", lambda config: config["llm_config"].update(hidden_size=96)),
        "of another shape",
    ),
    "config of another vocabulary": (
        "bin",
        lambda at: edit_json(at / "config.json", lambda config: config["llm_config"].update(vocab_size=32000)),
        f"{TABLE} has 128 rows, but source/config.json says vocab_size 32000",
    ),
    "config of another kernel": (
        "bin",
        lambda at: edit_json(at / "config.json", lambda config: config.update(image_conv_kernel=9)),
        "project_image has the kernel 8, but source/config.json says 9",
    ),
    "a tokenizer of zeros": ("bin", lambda at: (at / "tokenizer.json").write_bytes(b"\0" * 9), "can be read"),
    "no weights": ("bin", lambda at: [each.unlink() for each in at.glob("pytorch*")], "source holds no weights"),
}


def check_refusal(outcome: tuple[int, str, str], expected: str, folder: Path) -> None:
    code, _, complaint = outcome
    assert code == 1
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert expected in complaint
    left = {path.name for path in folder.iterdir()} - {"source", "elsewhere", "tokenizer"}
    assert not left, "something half-written"


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_one_line_and_leave_nothing(run, source, tmp_path, name):
    form, spoil, expected = BAD[name]
    spoil(source("v3", form=form, shards=3))
    check_refusal(run(), expected, tmp_path)


def test_without_a_tokenizer_ids_are_computed_with_and_text_is_refused(run, source, tmp_path):
    folder = source("v3")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    code, said, complaint = run()
    assert code == 0, complaint
    assert "has none" in said
    model = Macaw.from_pretrained(tmp_path / "target")
    tokens = model.llm.tokenizer.convert_ids_to_tokens([1, 2, 121, 122, 127])
    assert tokens == ["<s>", "</s>", "<image>", "</image>", "[PAD]"]
    with pytest.raises(SampleError, match="knows no part of the text"):
        Answerer(model, model.preprocess)([Sample((Turn("user", "Hello"),), "a", "b")])


def test_an_altered_bin_is_refused(run, source, version, tmp_path):
    """A torch archive has a checksum for each tensor; safetensors has none, so that there only NaN would tell."""
    folder = source("v3", shards=3)
    name = next(iter(torch.load(folder / BIN)))
    flip(folder / BIN, version("v3")[1][name].numpy().tobytes())
    check_refusal(run(), f"{BIN} is damaged", tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["variant=v4"], "variant=v4: expected auto, v1, v2, v3"),
        (["heads=7"], "heads=7: v3 aligns with 2 × attention_heads; give a multiple of 2"),
        (["heads=6"], "6 heads on a width of 64"),
        (["heads=0"], "heads=0"),
        (["heads=many"], "heads=many: expected a positive whole number"),
        (["heads=128"], "128 heads on a width of 64"),
        (["dtype=int8"], "dtype=int8: expected auto, float32, float16, bfloat16"),
        (["tokenizer=/nowhere"], "/nowhere has no tokenizer.json"),
        (["varaint=v1"], "variant"),
        (["target=source"], "source is there already"),
    ],
)
def test_bad_words_are_one_line(run, source, tmp_path, words, expected):
    source("v3")
    check_refusal(run(*words), expected, tmp_path)


def test_earlier_weights_that_the_last_code_saved_again_are_what_the_user_says(run, source):
    source("v3")
    code, said, complaint = run("variant=v1")
    assert code == 0, complaint
    assert "variant v1: as you say, although video_long_self_attention.* is there" in said
    assert "video_long_self_attention (" in said.partition("left out")[2]


def test_heads_that_config_json_lacks_are_asked_for(run, version, write, tmp_path):
    config, state = version("v3")
    heads = config.pop("attention_heads")
    write(tmp_path / "source", config, state)
    check_refusal(run(), "lacks attention_heads, and weights do not tell them: say heads=", tmp_path)
    code, said, complaint = run(f"heads={2 * heads}")
    assert code == 0, complaint
    assert f"heads: {2 * heads} in the alignment, {heads} across frames, as you say heads" in said


def test_v3_without_its_attention_is_refused(run, source, tmp_path):
    source("v1")
    check_refusal(run("variant=v3"), "lacks video_long_self_attention.*: say variant=v1 or variant=v2", tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("audio_encoder.encoder.conv1.bias"), "1 missing: audio_encoder.encoder.conv1.bias"),
        (lambda state: state.update({"lora.weight": torch.ones(2)}), "1 unknown: lora.weight"),
        (lambda state: state.update({TABLE: state[TABLE].half()}), "weights of float16 and float32: say dtype=float32"),
        (lambda state: state.update({TABLE: state[TABLE].long()}), "no finite numbers"),
        (lambda state: state.update({TABLE: state[TABLE][:-1]}), "has 127 rows"),
    ],
)
def test_other_weights_are_named(run, version, write, tmp_path, change, expected):
    config, state = version("v3")
    change(state)
    write(tmp_path / "source", config, state)
    check_refusal(run(), expected, tmp_path)


def test_code_in_a_pickle_is_not_run(run, source, tmp_path):
    folder = source("v3")
    canary = tmp_path / "canary"
    for save in (
        lambda path: torch.save({"x": Code(canary)}, path),
        lambda path: path.write_bytes(pickle.dumps(Code(canary))),
    ):
        save(folder / "pytorch_model.bin")
        check_refusal(run(), "pytorch_model.bin is damaged or holds more than tensors", tmp_path)
        assert not canary.exists()


CHILD = """
    import os, resource, sys
    from pathlib import Path
    import torch, macaw_lit.model, macaw_lit.upstream.convert
    from macaw_lit.upstream.convert import convert

    def megabytes(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

    source, warm, target = (Path(word) for word in sys.argv[1:])
    convert(warm, target.with_name("warm_target"), say=lambda line: None)  # what is imported on the way is no weight
    before = megabytes("VmRSS")
    convert(source, target, say=lambda line: None)
    print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_memory_stays_below_the_largest_shard_and_the_target(version, write, original, tmp_path, form):
    config, small = version("v3")
    warm = write(tmp_path / "warm", config, small, form=form)
    config["llm_config"] |= {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 8192}
    config["llm_config"]["num_attention_heads"] = 8
    config["audio_config"] |= {"vocab_size": 200_000, "decoder_layers": 2}  # dead weights: 26 MB
    state = original(config, "v3").state_dict()
    source = write(tmp_path / "source", config, state, form=form, shards=4)
    del state
    command = [sys.executable, "-c", textwrap.dedent(CHILD), *map(str, (source, warm, tmp_path / "target"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    largest = max(path.stat().st_size for path in source.glob("*-of-*")) / 2**20
    target = sum(path.stat().st_size for path in (tmp_path / "target").glob("*.safetensors")) / 2**20
    assert target > 200
    peak = float(done.stdout)
    print(f"{form}: peak {peak:.0f} MiB, largest shard {largest:.0f} MiB, target {target:.0f} MiB")
    assert peak <= 1.3 * largest + target
