"""Commands from the user's side: literal text, one-line answers, exit codes, run folders."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from macaw_lit.build import check_settings
from macaw_lit.cli import command, conf_dir, print_config, require_all, run_folder
from macaw_lit.errors import ConfigError, MediaError, nearest
from macaw_lit.words import literal

TEXT = ("model.path", "instruction")
PATHS = ("image", "video", "audio")


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path):
    """Run `main` as the command `name` with these words; return the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(main, *words, name="train"):
        monkeypatch.setattr(
            sys,
            "argv",
            [name, *words, *(["experiment=demo"] if name == "train" and "experiment=mine" not in words else [])],
        )
        code = 0
        try:
            command(name, TEXT, PATHS)(main)()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def composed(*words: str):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("predict", overrides=[literal(word, TEXT, PATHS) for word in words])


NASTY = [
    "What, exactly, is <this> (in ${x})?",
    """a "double" and a 'single' quote""",
    "ends with a backslash \\",
    "ends with two \\\\",
    "\\${x} and \\\\${x} and \\' and \\\\'",
    "${oc.env:HOME} ${now:%Y}",
    "line one\nline two\ttabbed",
    "key=value, {a: b}, [1, 2",
    "[INST] who? [/INST]",
    "[INST]",
    "[a, b]",
    "null",
    "true",
    "12",
    "1e-3",
    "~x",
    "+x",
    "",
    " ",
    " padded ",
    "</s><image>### Response:",
    "choice(a,b)",
    "日本語 🙂 \u200b",
    "$$ %s {} {0}",
    "# not a comment",
]


@pytest.mark.parametrize("text", NASTY)
def test_free_text_arrives_as_typed(text):
    assert composed("model=m", f"instruction={text}").instruction == text


def keeps_meaning(text: str) -> bool:
    """`???` is how Hydra writes what is not given; a NUL cannot be typed."""
    return text != "???"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text("\\'\"${}[](),=: a.?~+\n", max_size=12))
@example("\\'")
@example("\\${")
@example("$\\{${")
def test_any_text_survives_the_grammar_and_interpolation(text):
    if not keeps_meaning(text):
        return
    value = OverridesParser.create().parse_override(literal(f"instruction={text}", TEXT)).value()
    assert OmegaConf.create({"instruction": value}).instruction == text


@settings(max_examples=100, deadline=None)
@given(st.text("\\'\"${}[](),=: a.?~+\n", max_size=12).filter(keeps_meaning))
def test_any_text_survives_a_sweep(text):
    override = OverridesParser.create().parse_override(literal(f"instruction={text}", TEXT))
    again = OverridesParser.create().parse_override(f"instruction={override.get_value_element_as_str()}")
    assert OmegaConf.create({"instruction": again.value()}).instruction == text


def test_lists_stay_lists_and_paths_are_literal():
    cfg = composed("model=my run (1)/a=b,c", "instruction=x", "image=[a.jpg,'b, c.jpg']", "video=clip (2).mp4")
    assert cfg.model.path == "my run (1)/a=b,c"
    assert list(cfg.image) == ["a.jpg", "b, c.jpg"]
    assert cfg.video == "clip (2).mp4"


def test_other_keys_keep_hydras_grammar():
    for word in ("trainer.max_steps=3", "seed=1,2", "-m", "experiment=demo", "model.path=a,b", "~logger"):
        assert literal(word, TEXT) == word


MISTAKES = {
    "trainer.max_step=3": "error: trainer.max_step: no such key; did you mean trainer.max_steps?",
    "trainr.max_steps=3": "did you mean trainer.max_steps?",
    "max_steps=3": "did you mean trainer.max_steps?",
    "sed=3": "error: sed: no such key; did you mean seed?",
    "callbacks.checkpoint.kep=3": "did you mean callbacks.checkpoint.keep?",
    "data.preprocessor.max_lenght=9": "did you mean data.preprocessor.max_length?",
    "hydra.run.dirr=x": "did you mean hydra.run.dir?",
    "loger=csv": "did you mean logger?",
    "debug=frd": "error: debug=frd: no such option; did you mean fdr? (debug: default, fdr, limit, overfit, profiler)",
    "trainer=gpuu": "did you mean gpu?",
    "~trainer.max_step": "did you mean trainer.max_steps?",
    "seed": "error: seed: not `key=value`",
    "seed=(": "error: seed=(: not `key=value`",
    "+seed=1": "An item is already at 'seed'",
    "tags=${nowhere}": "tags: Interpolation key 'nowhere' not found",
    "callbacks=3": "error: callbacks=3: a group takes a name of its options; leave it out with ~callbacks",
    "callbacks=[defalt]": "error: callbacks=defalt: no such option; did you mean default? (callbacks: alignment",
    "optim.part_lr={lm: 1e-3}": "error: optim.part_lr.lm: optim.part_lr has no such key; +optim.part_lr.lm=… adds it",
    "checkpointing={a: 1}": "error: Error merging override checkpointing={a: 1} (Cannot merge Dict",
    "--seed=3": "error: unrecognized arguments: --seed=3; settings are given without dashes",
    "hydra.run.dir=/dev/null/x": "error: /dev/null/x: cannot be written (Not a directory); make room there",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_answered_in_one_line(ask, word):
    code, out, err = ask(lambda cfg: print(cfg.tags), word)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert MISTAKES[word] in err
    assert err.startswith("error: ")


MINE = {
    "# @package _global_\nseed: 1\n  x: [1,\n": 'mapping values are not allowed here in "{}", line 3, column 4',
    "# @package _global_\n\noptim:\n  betta: 1\n": "no such argument; did you mean optim.betas? ({}, line 4)",
    "# @package _global_\nlearnrate: 1e-3\n": "error: learnrate: no such key ({}, line 2)",
    "# @package optim\nlr: [1]\n": "error: optim.lr=[1]: expected a number ({}, line 2)",
    "seed: 1\n": "error: experiment: its settings are not those of a run; its file must begin with the line `# @",
    "# @package _global_\ntags: [\udcff]\n": "error: {}: 'utf-8' codec can't decode byte 0xff in position 27: invalid",
}


@pytest.mark.parametrize("text", MINE)
def test_a_mistake_in_a_file_of_the_users_own_names_file_and_line(ask, tmp_path, text):
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    words = (
        "experiment=mine",
        "llm=llama_tiny",
        "optim=muon",
        "--config-dir",
        str(path.parents[1]),
    )
    code, out, err = ask(check_settings, *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert MINE[text].format(path) in err


def test_a_setting_of_the_command_line_has_no_file(ask):
    assert ask(check_settings, "threads=0")[2] == "error: threads=0: expected at least 1\n"


def test_a_second_mistake_does_not_hide_the_hint(ask):
    code, _, err = ask(lambda cfg: None, "debug=fdr", "trainer.max_step=3", "data.batch_siz=4")
    assert code == 1
    assert "did you mean trainer.max_steps?" in err


def test_missing_values_are_named_before_anything_runs(ask):
    code, _, err = ask(lambda cfg: pytest.fail("ran"), name="predict")
    assert (code, err) == (1, "error: model must be given: add model=…\n")
    with pytest.raises(ConfigError, match="a\\.b must be given"):
        require_all(OmegaConf.create({"a": {"b": "???"}, "c": "${a.b}"}))


def test_our_errors_are_one_line_wherever_they_come_from(ask):
    def direct(cfg):
        raise MediaError("missing", "x.jpg: no such file,\nexpected a picture")

    def wrapped(cfg):
        try:
            direct(cfg)
        except MediaError as error:
            raise RuntimeError("in a constructor") from error

    for main in (direct, wrapped):
        assert ask(main)[::2] == (1, "error: x.jpg: no such file, expected a picture\n")


def test_a_wrong_constructor_argument_names_the_nearest(ask):
    from hydra.utils import instantiate

    ref = {"_target_": "macaw_lit.types.MediaRef", "kind": "image"}

    def answer(node):
        code, _, err = ask(lambda cfg: instantiate({"_target_": "macaw_lit.types.Turn", "role": node}))
        assert (code, err.count("\n")) == (1, 1)
        return err

    assert answer({**ref, "path": "x", "pat": "x"}).endswith("takes no such argument; did you mean path?\n")
    assert answer(ref).startswith("error: 'path'")
    assert "no such class or function" in answer({"_target_": "macaw_lit.types.MediRef"})


def test_errors_that_cause_each_other_do_not_hang(ask):
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    def fail(cfg):
        raise first

    with pytest.raises(ValueError, match="first"):
        ask(fail)


def test_bugs_keep_their_traceback(ask, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        ask(lambda cfg: 1 / 0)
    with pytest.raises(AttributeError):
        ask(lambda cfg: cfg.no_such_key)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override"):
        ask(lambda cfg: None, "sed=1")


@pytest.mark.parametrize("words", [[], ["-m", "seed=1"]])
def test_processes_that_a_run_starts_are_not_told_to_show_tracebacks(ask, words):
    """Hydra is, so that mistakes are answered in one line; a second rank would inherit it, and is to answer so too."""
    seen = []
    assert ask(lambda cfg: seen.append(os.environ.get("HYDRA_FULL_ERROR")), *words)[0] == 0
    assert seen == [None]


def test_ctrl_c_ends_with_130(ask):
    def interrupted(cfg):
        raise KeyboardInterrupt

    def stopped_by_lightning(cfg):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    for main in (interrupted, stopped_by_lightning):
        assert ask(main)[::2] == (130, "interrupted\n")


def test_the_command_line_is_left_as_it_was(ask):
    words = []
    ask(lambda cfg: words.extend(sys.argv), "model=m", "instruction=a, b", name="predict")
    assert words == ["predict", "model=m", "instruction=a, b"]
    assert sys.argv == words
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_run_folders_by_time_hold_the_resolved_config(ask, tmp_path):
    def main(cfg):
        print_config(cfg, run_folder())
        print(run_folder())

    code, out, _ = ask(main, "seed=3", "tags=['[red]','a']")
    folder = Path(out.splitlines()[-1])
    assert code == 0
    assert re.fullmatch(r"logs/train/runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(folder.relative_to(tmp_path)))
    saved = OmegaConf.load(folder / "config.yaml")
    assert saved.seed == saved.data.seed == 3
    assert saved.paths.run_dir == str(folder)
    assert "── seed: 3" in out
    assert "[red]" in out
    assert (folder / ".hydra" / "overrides.yaml").exists()


def test_run_dir_alone_moves_the_whole_run(ask, tmp_path):
    seen = []

    def main(cfg):
        seen.append((cfg.paths.run_dir, str(run_folder()), cfg.callbacks.checkpoint.folder, cfg.logger.csv.folder))

    assert ask(main, "paths.run_dir=my/run")[0] == 0
    folder = str(tmp_path / "my" / "run")
    assert seen == [(folder, folder, f"{folder}/checkpoints", folder)]
    assert {path.name for path in tmp_path.iterdir()} == {"my"}
    assert (tmp_path / "my/run/.hydra/config.yaml").is_file()
    seen.clear()
    assert ask(main, "-m", "seed=1,2", "paths.run_dir=sweep")[0] == 0
    assert [Path(run).relative_to(tmp_path) for run, *_ in seen] == [Path("sweep/0"), Path("sweep/1")]
    assert ask(lambda cfg: None, "model=m", "instruction=x", "paths.run_dir=x", name="predict")[0] == 1


def test_a_sweep_numbers_its_folders_and_keeps_text_whole(ask, tmp_path):
    seen = []
    code, *_ = ask(lambda cfg: seen.append((cfg.seed, run_folder().name)), "-m", "seed=1,2")
    assert (code, seen) == (0, [(1, "0"), (2, "1")])
    assert len(list((tmp_path / "logs/train/multiruns").glob("*/[01]"))) == 2
    seen.clear()
    words = ("-m", "model=m", "instruction=a, ${b}", "max_new_tokens=1,2")
    ask(lambda cfg: seen.append((cfg.instruction, cfg.max_new_tokens)), *words, name="predict")
    assert seen == [("a, ${b}", 1), ("a, ${b}", 2)]


def test_predict_writes_nothing(ask, tmp_path):
    assert ask(lambda cfg: None, "model=m", "instruction=x", name="predict")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_letter_is_found_again():
    known = ["seed", "trainer.max_steps", "trainer.max_epochs", "data.batch_size", "optim.lr", "model.llm.num_layers"]
    for name in known:
        wrong = {name[:at] + name[at + 1 :] for at in range(len(name))} - set(known)
        assert all(nearest(each, known) == name for each in wrong)
    assert nearest("zzz", known) is None


def test_importing_the_helper_stays_light():
    code = "import sys, macaw_lit.cli; print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
