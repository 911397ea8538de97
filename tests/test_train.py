"""Training as a user meets it: what a run leaves behind, how it goes on, and what it says of bad data and settings."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

from macaw_lit import record
from macaw_lit.cli import conf_dir
from macaw_lit.errors import ConfigError, TrainingError
from macaw_lit.inference import load_answerer
from macaw_lit.train import _fit, _start, main

HEAVY = "torch transformers lightning numpy librosa decord av matplotlib open_clip whisper".split()
SOURCES = list(OmegaConf.load(conf_dir() / "data" / "demo.yaml").train)


def test_commands_answer_mistakes_before_anything_heavy_is_imported():
    names = [f"macaw_lit.{name}" for name in ("cli", "train", "predict", "evaluate")]
    code = f"import sys, {', '.join(names)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# What a run leaves behind


@pytest.mark.slow
def test_the_last_line_is_the_folder_that_holds_all_of_the_run(tiny_run):
    assert tiny_run.stdout.splitlines()[-1] == str(tiny_run.folder)
    found = {path.name for path in tiny_run.folder.iterdir()}
    pictures = {"loss.png", "accuracy.png", "gallery.png"}
    records = {"config.yaml", "metrics.csv", "metrics.json", "ledger.json", "modality_use.json"}
    assert found == {"model", "checkpoints", "gallery", "gallery.html", ".hydra", ".lock", *pictures, *records}
    for name in pictures:
        with Image.open(tiny_run.folder / name) as picture:
            assert min(picture.size) > 200, name


@pytest.mark.slow
def test_it_shows_the_settings_and_the_table_and_no_noise(tiny_run):
    assert "── seed: 0" in tiny_run.stdout
    assert "Which media the answers depend on" in tiny_run.stdout
    assert "gating types pass" in tiny_run.stdout
    assert complaints(tiny_run.stderr) == []
    assert "rows read" not in tiny_run.stdout, "no row of the demo world is bad"
    assert "skipped" not in tiny_run.stdout


@pytest.mark.slow
def test_metrics_config_and_ledger_say_what_happened(tiny_run):
    with (tiny_run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["1", "3"], "after every second batch"
    assert all(float(row[name]) > 0 for row in rows for name in ("train/loss", "val/loss") if row[name])
    counts = ledger(tiny_run.folder)
    assert totals(counts) == {"seen": 16, "used": 16, "truncated": 0, "skipped": {}}  # 4 steps of 4 rows
    assert counts["sources"] == counts["epochs"]["0"]
    assert sum(source["used"] for source in counts["sources"].values()) == 16
    assert {read["source"] for read in counts["read"]} == set(SOURCES)
    mixes = [row for row in rows if row["mix/text"]]
    assert [float(row["mix/text"]) for row in mixes] == [counts["sources"].get("text", {"used": 0})["used"]]
    config = OmegaConf.load(tiny_run.folder / "config.yaml")
    assert (config.trainer.max_steps, config.data.batch_size) == (4, 4)
    assert config.paths.run_dir == str(tiny_run.folder)


@pytest.mark.slow
def test_the_model_folder_is_the_model_of_the_last_checkpoint(tiny_run):
    state = torch.load(tiny_run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model = load_answerer(tiny_run.folder / "model").model.state_dict()
    assert {f"_model.{name}" for name in model} == set(state)
    assert all(torch.equal(tensor, state[f"_model.{name}"]) for name, tensor in model.items())


@pytest.mark.slow
def test_modality_use_has_every_type_of_the_world(tiny_run):
    use = json.loads((tiny_run.folder / "modality_use.json").read_text())
    types = json.loads((tiny_run.root / "data/demo/question_types.json").read_text())
    assert set(use) == set(types)
    for name, kind in types.items():
        row = use[name]
        assert {key: row[key] for key in ("media", "gating", "chance")} == kind
        assert 1 <= row["n"] <= 2
        assert 0 <= row["true"] <= 1
        assert set(row["absent"]) >= set(kind["media"])
        assert set(row["shuffled"]) <= set(row["absent"])
        assert row["verdict"] in ("pass", "fail")
    assert use["text.last"]["absent"] == {}
    assert set(use["av.both"]["absent"]) == {"audio", "video"}


# How a run goes on, repeats and is tried out


def ledger(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ledger.json").read_text())


def totals(ledger: dict[str, Any]) -> dict[str, Any]:
    return {name: ledger[name] for name in ("seen", "used", "truncated", "skipped")}


def brief(words: list[str]) -> list[str]:
    """The words of the tiny run without its evaluation."""
    return [*(word for word in words if not word.startswith("evaluation")), "~evaluation"]


@pytest.fixture
def train(call: Callable, tiny_run: Any) -> Callable[..., tuple[int, str, str]]:
    """`python -m macaw_lit.train` in the tiny world, with the tiny run's words and others."""
    return lambda *words: call(main, tiny_run.root, *brief(tiny_run.words), *words)


def complaints(err: str) -> list[str]:
    """The lines on stderr, progress bars excepted."""
    return [line for line in err.splitlines() if line and "it/s]" not in line]


def run_of(done: tuple[int, str, str]) -> tuple[str, str]:
    """The last line and all of the output of a command that succeeded without a warning."""
    code, out, err = done
    assert code == 0, err
    assert complaints(err) == []
    return out.splitlines()[-1], out


def one_line(done: tuple[int, str, str]) -> str:
    """What a user's mistake is answered with."""
    code, _, err = done
    (line,) = complaints(err)
    assert code == 1
    assert line.startswith("error: ")
    return line


@pytest.mark.slow
def test_a_checkpoint_goes_on_where_it_stopped(tiny_run, train, tmp_path):
    before = tiny_run.folder / "checkpoints" / "last.ckpt"
    last, _ = run_of(train(f"ckpt_path={before}", "trainer.max_steps=6", f"hydra.run.dir={tmp_path}/on"))
    assert last == f"{tmp_path}/on"
    with (tmp_path / "on" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["4", "5"]
    assert ledger(tmp_path / "on")["used"] == 24, "the counts of the first run go on too"
    assert torch.load(tmp_path / "on/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_a_sweep_makes_a_folder_for_each_seed(train, tmp_path):
    words = (
        "seed=1,2",
        "-m",
        "trainer.max_steps=1",
        "trainer.val_check_interval=null",
        f"hydra.sweep.dir={tmp_path}/m",
    )
    last, _ = run_of(train(*words))
    assert last == f"{tmp_path}/m/1"
    states = []
    for number, seed in enumerate((1, 2)):
        folder = tmp_path / "m" / str(number)
        assert OmegaConf.load(folder / "config.yaml").seed == seed
        states.append(load_file(folder / "model" / "model.safetensors"))
    aligner = "modalities.image.aligner.compress.conv.weight"
    assert aligner in states[0]
    assert not torch.equal(states[0][aligner], states[1][aligner]), "another seed starts elsewhere"
    metrics = tmp_path / "m" / "1" / "metrics.json"
    before = json.loads(metrics.read_text())["metrics"]
    metrics.unlink()  # as if it had been killed just before its end
    code, out, _ = train(*words)
    assert code == 0
    assert f"job 0 is done: {tmp_path}/m/0" in out
    assert f"going on from {tmp_path}/m/1/checkpoints/step" in out
    after = json.loads(metrics.read_text())["metrics"]
    assert {name for name in before if "loss" in name} <= set(after), "those that metrics.csv has"
    assert after["steps"] == before["steps"] == 1


@pytest.mark.slow
def test_fast_dev_run_leaves_no_checkpoint_and_no_metrics(call, tiny_run, tmp_path):
    words = [word for word in tiny_run.words if not word.startswith(("trainer", "data"))]
    done = call(main, tiny_run.root, *words, "debug=fdr", "trainer.profiler=simple", f"hydra.run.dir={tmp_path}/try")
    last, _ = run_of(done)
    assert "run_training_epoch" in done[1], "the profiler's table"
    assert last == f"{tmp_path}/try"
    found = {path.name for path in (tmp_path / "try").iterdir()}
    assert found == {".hydra", ".lock", "config.yaml", "ledger.json", "profile.txt"}
    assert ledger(tmp_path / "try")["used"] == 16  # one batch


# Bad data


@pytest.fixture
def bad_pictures(tmp_path: Path) -> list[str]:
    """Ten pictures of which three are damaged and one is gone, and rows of which four are bad: where they are read."""
    for number in range(9):
        Image.new("RGB", (64, 64), (25 * number, 99, 0)).save(tmp_path / f"{number}.jpg")
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) - 20])
    (tmp_path / "6.jpg").write_text("no picture at all")
    (tmp_path / "7.jpg").write_bytes(b"")
    rows: list[Any] = [{"id": f"{number}.jpg", "instruction": "Which?", "response": "This."} for number in range(10)]
    rows += [{"id": "0.jpg", "instruction": "Which?"}, ["no", "object"]]
    rows += [{"id": "0.jpg", "instruction": "  ", "response": "This."}]
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}))
    read = "data.train.image.read"
    return [f"{read}.path={tmp_path / 'rows.json'}", f"{read}.media_root={tmp_path}"]


@pytest.fixture
def bad_texts(tmp_path: Path) -> str:
    """Three texts: one full of control tokens, which is a text like any other, and one far too long."""
    texts = ["Say </s> <image> <pad> ### Response: [INST].", "word " * 20_000, "Say it."]
    (tmp_path / "texts.json").write_text(json.dumps([{"instruction": text, "output": "So."} for text in texts]))
    return f"data.train.text.read.path={tmp_path / 'texts.json'}"


EPOCH = ["trainer.max_steps=-1", "trainer.max_epochs=1", "trainer.limit_val_batches=0", "data.batch_size=3"]
ALL_ROWS = ["data.repeat=false", "data.preprocessor.drop_media=0.0", "data.train.image.read.turns=1"]


def alone(*names: str) -> list[str]:
    """Train on these sources alone, on each row of theirs once."""
    counts = [f"data.train.{name}.count=null" for name in names]
    return [*counts, *(f"~data.train.{name}" for name in SOURCES if name not in names), *EPOCH, *ALL_ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_rows_and_media_are_counted_and_shown(train, bad_pictures, bad_texts, tmp_path, workers):
    words = [*alone("image", "text"), *bad_pictures, bad_texts, f"data.num_workers={workers}", "data.max_skip_rate=0.9"]
    _, out = run_of(train(*words, f"hydra.run.dir={tmp_path}/run"))
    # Of nine usable rows, number 3 is replaced by 4, number 6 by 8 after 7 failed too, number 7 by 8.
    skipped = {"truncated": 1, "unreadable": 1, "empty": 2, "text_too_long": 1}
    counts = ledger(tmp_path / "run")
    assert totals(counts) == {"seen": 17, "used": 12, "truncated": 0, "skipped": skipped}
    assert counts["sources"]["text"]["skipped"] == {"text_too_long": 1}
    rejected = [{"media_missing": 1, "missing_key": 1, "not_an_object": 1, "empty_instruction": 1}, {}]
    assert [read["rejected"] for read in counts["read"] if read["split"] == "train"] == rejected
    assert "17 samples seen, 12 used, 0 used with a cut response; skipped: empty 2, " in out
    table = " ".join(next(line for line in out.splitlines() if "media_missing 1" in line).split())
    assert table.startswith("│ train │ image │ 9 │ 4 │ ")
    assert all(f"{cause} 1" in out for cause in ("media_missing", "missing_key", "not_an_object", "empty_instruction"))
    assert f"first media_missing: {tmp_path / 'rows.json'}[9]: '9.jpg' is not under {tmp_path}" in "".join(
        out.split("\n")
    )


@pytest.mark.slow
def test_a_run_too_short_to_log_a_loss_ends_well(train, tmp_path):
    run_of(train("trainer.max_steps=1", "trainer.log_every_n_steps=10", f"hydra.run.dir={tmp_path}/run"))
    assert (tmp_path / "run" / "model").is_dir()
    assert not (tmp_path / "run" / "loss.png").exists()


@pytest.mark.slow
def test_too_many_bad_rows_end_the_run_in_one_line_before_training_and_after(train, bad_pictures, tmp_path):
    words = [*alone("image"), *bad_pictures, f"hydra.run.dir={tmp_path}/run"]
    line = one_line(train(*words))
    assert "train source 'image': 4 of 13 rows were rejected (" in line
    assert "expected at most max_skip_rate=0.01 of them; the first: " in line
    assert not (tmp_path / "run" / "checkpoints").exists()
    rows = json.loads((tmp_path / "rows.json").read_text())["data"]
    (tmp_path / "rows.json").write_text(json.dumps(rows[:9]))
    line = one_line(train(*words))
    assert "the model is saved, but train source 'image', epoch 0: 4 of 13 rows were skipped (" in line
    assert load_answerer(tmp_path / "run" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_media_that_are_all_bad_end_the_run_in_one_line(train, bad_pictures, tmp_path, workers):
    for path in tmp_path.glob("*.jpg"):
        path.write_bytes(b"\xff\xd8\xff no more")
    words = [*alone("image"), *bad_pictures, f"data.num_workers={workers}", f"hydra.run.dir={tmp_path}/run"]
    line = one_line(train(*words, "data.max_skip_rate=0.9"))
    assert "9 samples in a row of macaw_image are unusable (truncated 9)" in line
    assert re.search(r"the last one: '\S+/\d\.jpg': ", line)
    assert not (tmp_path / "run" / "model").exists()


FILES = {
    "not UTF-8": (b'[{"instruction": "caf\xe9", "output": "x"}]', "byte 0xe9 at position 21, expected UTF-8 text"),
    "not JSON": (b'[{"instruction": ', "at line 1 column"),
    "no list": (b'{"rows": []}', "top level is an object with 'rows', expected a list of rows"),
    "no row": (b"[]", "train source 'text' has no usable row (it is empty)"),
    "bad rows": (b'[{"output": "x"}, 3]', "has no usable row (missing_key 1, not_an_object 1, first at"),
    "gone": (None, "no such file, expected a data file; check the path"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_data_file_that_cannot_be_used_is_one_line(train, tmp_path, name):
    content, expected = FILES[name]
    path = tmp_path / "texts.json"
    if content is not None:
        path.write_bytes(content)
    line = one_line(train(f"data.train.text.read.path={path}", f"hydra.run.dir={tmp_path}/run"))
    assert expected in line
    assert str(path) in line or content == b"[]"


# Bad settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "expected"),
    {
        "data.train.image.read.media_root=/nowhere": "/nowhere: no such folder, expected the folder of the media",
        "model.pretrained.vision=/nowhere.pt": "/nowhere.pt not found: give an existing file or folder",
        "model.pretrained.smell=/nowhere.pt": "model.pretrained.smell: no such key",
        "model.llm.tokenizer=/nowhere": "/nowhere not found: give an existing file or folder",
        "ckpt_path=/nowhere.ckpt": "ckpt_path=/nowhere.ckpt: no such file; expected a checkpoint",
        "trainer=gpu": "trainer.accelerator=gpu, and no GPU is to be seen",
        "trainer.precision=7": "trainer.precision=7: expected 64 or 32",
        "data.batch_size=0": "data.batch_size=0: expected a number from 1 to",
        "data.num_workers=-1": "data.num_workers=-1: expected a number from 0 to",
        "trainer.val_check_interval=1000000": "`val_check_interval` (1000000) must be less than or equal to",
        "optimized_metric=val/los": "optimized_metric=val/los: nothing measures it; did you mean val/loss? there",
        "optimized_metric=speed/padding": "nothing measures it; there will be train/loss, val/loss, steps, seconds",
        "logger=null": "logger=null: a group takes a name of its options; leave it out with ~logger",
    }.items(),
)
def test_a_setting_that_cannot_work_is_one_line(train, tmp_path, word, expected):
    if word == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    line = one_line(train(word, f"hydra.run.dir={tmp_path}/run"))
    assert expected in line
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_one_line(tiny_run, train, tmp_path):
    last = (tiny_run.folder / "checkpoints" / "last.ckpt").resolve()  # a link to the newest
    (tmp_path / "no.ckpt").write_text("no checkpoint")
    for words in (
        [f"ckpt_path={tmp_path / 'no.ckpt'}"],
        [f"ckpt_path={tmp_path}"],
    ):
        line = one_line(train(*words, f"hydra.run.dir={tmp_path}/run"))
        assert "cannot be continued" in line, words
        assert words[0] in line
    for word, expected in {
        "model.modalities.image.aligner.kernel=2": "model.modalities.image.aligner.kernel was 4, now is 2",
        "model.adapt.llm=frozen": "model.adapt.llm was full, now is frozen",
        "optim=adamw": "of another optimizer: optimizer was MuonAdamW, now is adamw",
        "seed=9": "made with other data: seed was 0, now is 9",
        "data.train.text.count=7": "made with other data: source text was ",
    }.items():
        assert expected in one_line(train(f"ckpt_path={last}", word, f"hydra.run.dir={tmp_path}/run"))


@pytest.mark.slow
def test_what_evaluation_lacks_is_said_before_training(call, tiny_run, tmp_path):
    for word, expected in (
        ("types=/nowhere.json", "/nowhere.json"),
        ("max_new_tokens=0", "expected a whole number of at least 1"),
        ("n=many", "evaluation.n=many"),
    ):
        words = [*tiny_run.words, f"evaluation.{word}", f"hydra.run.dir={tmp_path}/run"]
        assert expected in one_line(call(main, tiny_run.root, *words))
        assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_bad_heldout_medium_leaves_the_model_and_says_how_to_go_on(call, tiny_run, tmp_path):
    coco = tiny_run.root / "data/demo/coco"
    shutil.copytree(coco / "val2017", tmp_path / "val")
    for path in (tmp_path / "val").iterdir():
        path.write_bytes(b"")
    words = [f"data.heldout.image.read.media_root={tmp_path / 'val'}", f"hydra.run.dir={tmp_path}/run"]
    words += ["trainer.limit_val_batches=0", "trainer.max_steps=1"]
    line = one_line(call(main, tiny_run.root, *tiny_run.words, *words))
    assert "the model is saved" in line
    assert f"python -m macaw_lit.evaluate model={tmp_path}/run/model" in line
    assert load_answerer(tmp_path / "run" / "model")


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/loss.png"), "/run/loss.png"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), None),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), None),  # safetensors'
    ],
)
def test_a_full_disk_is_one_line_whoever_meets_it(tmp_path, error, place):
    expected = (
        rf"^{place or tmp_path} cannot be written \(.*\), [\d,]+ bytes are free: make room and go on with ckpt_path="
    )
    with pytest.raises(ConfigError, match=expected), record.room_on_disk(tmp_path):
        raise error


def test_the_room_is_that_of_the_disk_that_is_full(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7 if path.name == "cache" else 10**9))
    full = OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/cache/new/file")
    with pytest.raises(ConfigError, match=r", 7 bytes are free"), record.room_on_disk(tmp_path / "never_made"):
        raise full


def test_room_is_no_remedy_where_nothing_may_be_written(tmp_path):
    refused = OSError(errno.EROFS, "Read-only file system", "/data/cache")
    expected = (
        r"^/data/cache cannot be written \(Read-only file system\), let it be written to and go on with ckpt_path="
    )
    with pytest.raises(ConfigError, match=expected), record.room_on_disk(tmp_path):
        raise refused


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file"), ValueError("(os error 2)"), KeyError("28")])
def test_no_other_error_is_taken_for_a_full_disk(tmp_path, error):
    with pytest.raises(type(error)), record.room_on_disk(tmp_path):
        raise error


def test_a_run_folder_that_cannot_be_is_one_line(call, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call(main, tmp_path, "experiment=demo", f"paths.run_dir={tmp_path}/file/below")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {tmp_path}/file/below: cannot be written (Not a directory); make room there, or ")


@pytest.mark.parametrize("name", [".hydra", ".lock"])
def test_a_run_folder_in_which_nothing_can_be_written_is_one_line(call, tmp_path, name):
    """Root may write where others may not, so that something else stands in the way here."""
    run = tmp_path / "run"
    run.mkdir()
    if name == ".lock":
        (run / name).mkdir()
    else:
        (run / name).touch()
    code, _, err = call(main, tmp_path, "experiment=demo", f"paths.run_dir={run}")
    assert (code, err.count("\n")) == (1, 1)
    assert re.match(rf"error: {run}/{name}.*: cannot be written \(.*\); make room there, or choose another paths", err)


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/further"])
def test_checkpoints_where_no_folder_can_be_are_one_line_before_training(call, tmp_path, place):
    (tmp_path / "file").touch()
    words = [f"callbacks.checkpoint.folder={tmp_path}/{place}", f"paths.run_dir={tmp_path}/run"]
    line = one_line(call(main, tmp_path, "experiment=demo", *words, "~evaluation"))
    assert f"{tmp_path}/file is no folder; choose another callbacks.checkpoint.folder" in line
    assert not list(tmp_path.glob("run/*.yaml"))


class Fails:
    """Stands for a Trainer that cannot go on."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.callbacks: list[Any] = []

    def fit(self, *arguments: Any, **settings: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer"),
        torch.distributed.DistBackendError("NCCL watchdog: a collective operation has timed out"),
    ],
)
def test_the_end_of_another_process_is_one_line(error):
    with pytest.raises(TrainingError, match=r"^another process of this run has ended or does not answer \(.*\): its"):
        _fit(Fails(error), None, None, "last.ckpt")
    with pytest.raises(ConfigError, match=r"last.ckpt cannot be continued \(RuntimeError\): it is a file"):
        _fit(Fails(RuntimeError("shapes differ")), None, None, "last.ckpt")


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(tmp_path):
    cfg, folder = OmegaConf.create({"ckpt_path": "auto"}), tmp_path / "checkpoints"
    assert _start(cfg, folder) is None, "there is none"
    folder.mkdir()
    for step in (1, 2):
        (folder / f"step000000{step}.ckpt").write_bytes(b"torn")
    with pytest.raises(ConfigError) as error:
        _start(cfg, folder)
    for step in (1, 2):
        assert f"{folder}/step000000{step}.ckpt: skipped, it is not whole" in str(error.value)
    assert str(error.value).endswith(f"restore one, or start anew in another paths.run_dir, or remove {folder}")
    torch.save({}, folder / "step0000001.ckpt")
    assert _start(cfg, folder) == str(folder / "step0000001.ckpt")


def test_two_runs_do_not_share_a_folder(call, tmp_path):
    hold = "import sys, pathlib; from macaw_lit.record import one_run\n"
    hold += "with one_run(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        code, _, err = call(main, tmp_path, "experiment=demo", f"paths.run_dir={tmp_path}")
        other.kill()
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {tmp_path}: another run is under way in this folder; wait for its end, or choose")
    with record.one_run(tmp_path):
        pass  # a killed run is no run


def test_a_sharded_checkpoint_of_another_model_is_one_line():
    """What torch raises where FSDP2's part of a checkpoint lacks something is no Exception."""

    class Fails:
        callbacks: ClassVar[list[object]] = []

        def fit(self, *args: object, **settings: object) -> None:
            raise CheckpointException("missing", {})

    message = r"ckpt_path=a.ckpt cannot be continued \(CheckpointException\): it is .*; .* the same model, adapt"
    fails: Any = Fails()
    with pytest.raises(ConfigError, match=message):
        _fit(fails, fails, fails, "a.ckpt")
