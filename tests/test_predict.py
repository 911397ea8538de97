"""Questions as a user asks them: every kind of medium, odd words, odd files, and one line for whatever is bad."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.inference import Answerer
from macaw_lit.model import Macaw
from macaw_lit.predict import main
from macaw_lit.types import MediaRef, Sample, Turn

RATE = 16_000
NOISE = np.random.default_rng(0)


@pytest.fixture
def answerer(model: Macaw) -> Answerer:
    """Random weights have opinions: another question, another answer."""
    return Answerer(model.eval(), Preprocessor(model.llm.tokenizer, model.specs(), max_length=200), max_new_tokens=6)


@pytest.fixture
def ask(call: Callable, answerer: Answerer, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`python -m macaw_lit.predict model=model …` in the folder of the media."""
    answerer.model.save_pretrained(tmp_path / "model", answerer.preprocess)
    return lambda *words: call(main, tmp_path, "model=model", "max_new_tokens=6", *words)


@pytest.fixture
def expected(answerer: Answerer, tmp_path: Path) -> Callable[..., str]:
    """What the model says to a question with these media, in the order that they are given."""

    def answer(question: str, *media: tuple[str, str]) -> str:
        refs = tuple(MediaRef(kind, tmp_path / name) for kind, name in media)
        return answerer([Sample((Turn("user", question, refs),), "x", "test")])[0]

    return answer


def pixels(*shape: int) -> np.ndarray:
    return NOISE.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def media(tmp_path: Path, clip: Callable) -> Path:
    """A folder with two pictures, a film with sound, one without, and a sound."""
    for name in ("a.jpg", "b, c (1).jpg"):
        Image.fromarray(pixels(16, 16, 3)).save(tmp_path / name)
    frames = [pixels(32, 32, 3) for _ in range(6)]
    wave = (0.3 * np.sin(np.arange(8000) / 5)).astype(np.float32)
    clip(tmp_path / "film.mp4", frames, sound=wave)
    clip(tmp_path / "mute.mp4", frames)
    soundfile.write(tmp_path / "beep.wav", wave, RATE)
    return tmp_path


ASKED: dict[tuple[str, ...], list[tuple[str, str]]] = {
    (): [],
    ("image=a.jpg",): [("image", "a.jpg")],
    ("image=b, c (1).jpg",): [("image", "b, c (1).jpg")],
    ("image=[a.jpg,'b, c (1).jpg']",): [("image", "a.jpg"), ("image", "b, c (1).jpg")],
    ("video=film.mp4",): [("video", "film.mp4"), ("audio", "film.mp4")],
    ("video=mute.mp4",): [("video", "mute.mp4")],
    ("video=[mute.mp4,film.mp4]",): [("video", "mute.mp4"), ("video", "film.mp4"), ("audio", "film.mp4")],
    ("audio=beep.wav",): [("audio", "beep.wav")],
    ("audio=film.mp4",): [("audio", "film.mp4")],
    ("audio=beep.wav", "image=a.jpg"): [("image", "a.jpg"), ("audio", "beep.wav")],
    ("image=a.jpg", "video=film.mp4", "audio=beep.wav"): [
        ("image", "a.jpg"),
        ("video", "film.mp4"),
        ("audio", "beep.wav"),
        ("audio", "film.mp4"),
    ],
}


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_every_kind_and_number_of_media_reaches_the_model(ask, expected, media, words):
    assert ask(*words, "instruction=What is this?") == (0, expected("What is this?", *ASKED[words]) + "\n", "")


def test_a_question_may_be_spoken(ask, answerer, media):
    refs = (MediaRef("image", media / "a.jpg"), MediaRef("audio", media / "beep.wav"))
    spoken = Sample((Turn("user", "", refs, spoken=True),), "x", "test")
    assert ask("image=a.jpg", "audio=beep.wav") == (0, answerer([spoken])[0] + "\n", "")
    assert "instruction must be given: add instruction=…, or audio=…" in refusal(ask("image=a.jpg"))
    assert "the instruction is empty" in refusal(ask("audio=beep.wav", "instruction="))


def test_the_answers_tell_the_media_apart(expected, media):
    answers = [expected("What is this?", *refs) for refs in ASKED.values()]
    assert len(set(answers)) > len(answers) // 2, "a model that always says the same would pass the test above"


WORDS = [
    "Is this red, blue, or green?",
    """a "double" and a 'single' quote""",
    "<image></image><s></s><pad> [INST] ### Response:",
    "${x} ${oc.env:HOME} \\${y} $HOME %s {}",
    "[red, blue]",
    "日本語 🙂 café \u200b",
    "one\ntwo\n\nthree\tfour",
    "key=value --help -m ~x +y",
    "null",
    "12",
]


@pytest.mark.parametrize("text", WORDS)
def test_words_arrive_as_typed(ask, expected, text):
    assert ask(f"instruction={text}") == (0, expected(text) + "\n", "")


def test_nothing_is_left_behind(ask, media):
    before = {path for path in media.rglob("*") if "model" not in path.parts}
    ask("image=a.jpg", "instruction=What?")
    assert {path for path in media.rglob("*") if "model" not in path.parts} == before


# Odd files that can be answered


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(9, 17, 3)).save(path, exif=exif)


def animated(path: Path) -> None:
    frames = [Image.fromarray(pixels(8, 8, 3)) for _ in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def palette(path: Path) -> None:
    Image.fromarray(pixels(8, 8, 3)).quantize(7).save(path, transparency=0)


ODD: dict[str, Callable[[Path], Any]] = {
    "1x1.jpg": lambda path: Image.new("RGB", (1, 1), "red").save(path),
    "1x900.png": lambda path: Image.new("RGB", (1, 900), "red").save(path),
    "cmyk.jpg": lambda path: Image.new("CMYK", (9, 9), (200, 0, 90, 20)).save(path),
    "16bit.png": lambda path: Image.fromarray(pixels(9, 9).astype(np.uint16) * 257).save(path),
    "1bit.png": lambda path: Image.new("1", (9, 9), 1).save(path),
    "grey.jpg": lambda path: Image.new("L", (9, 9), 77).save(path),
    "rgba.png": lambda path: Image.new("RGBA", (9, 9), (1, 2, 3, 99)).save(path),
    "float.tiff": lambda path: Image.fromarray(NOISE.random((9, 9), np.float32)).save(path),
    "palette.png": palette,
    "animated.gif": animated,
    "animated.webp": animated,
    "rotated.jpg": rotated,
    "no suffix": lambda path: Image.new("RGB", (9, 9)).save(path, format="PNG"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_answered(ask, expected, tmp_path, name):
    ODD[name](tmp_path / name)
    assert ask(f"image={name}", "instruction=What?") == (0, expected("What?", ("image", name)) + "\n", "")


SOUNDS = {
    "stereo44.wav": lambda path: soundfile.write(path, NOISE.uniform(-0.5, 0.5, (9000, 2)), 44_100),
    "8bit.wav": lambda path: soundfile.write(path, NOISE.uniform(-0.5, 0.5, 900), 8_000, subtype="PCM_U8"),
    "sound.flac": lambda path: soundfile.write(path, NOISE.uniform(-0.5, 0.5, 9000), RATE),
    "sound.mp3": lambda path: soundfile.write(path, NOISE.uniform(-0.5, 0.5, 9000), RATE),
    "one.wav": lambda path: soundfile.write(path, np.zeros(1), RATE),
    "minute.wav": lambda path: soundfile.write(path, NOISE.uniform(-0.5, 0.5, 60 * 8000), 8000),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SOUNDS)
def test_odd_sounds_are_answered(ask, expected, tmp_path, name):
    SOUNDS[name](tmp_path / name)
    assert ask(f"audio={name}", "instruction=What?") == (0, expected("What?", ("audio", name)) + "\n", "")


def test_a_film_of_one_frame_is_answered(ask, expected, tmp_path, clip):
    clip(tmp_path / "one.mp4", [pixels(16, 16, 3)])
    assert ask("video=one.mp4", "instruction=What?") == (0, expected("What?", ("video", "one.mp4")) + "\n", "")


# Bad files and words: one line


def refusal(done: tuple[int, str, str]) -> str:
    """The line that a refused question is answered with; nothing on stdout, no traceback."""
    code, out, err = done
    assert (code, out) == (1, "")
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


def cut(path: Path, source: str, share: float) -> None:
    whole = (path.parent / source).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def not_a_number(path: Path) -> None:
    soundfile.write(path, np.array([0.1, np.nan, 0.2] * 300), RATE, subtype="FLOAT")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image=gone.jpg": (
        lambda path: None,
        "no such file (FileNotFoundError), expected an existing file; check the path",
    ),
    "video=gone.mp4": (lambda path: None, "no such file"),
    "audio=gone.wav": (lambda path: None, "no such file"),
    "image=[a.jpg,gone.jpg]": (lambda path: None, "no such file"),
    "image=folder": (Path.mkdir, "a folder or device, expected a file"),
    "video=folder": (Path.mkdir, "a folder or device, expected a file"),
    "audio=folder": (Path.mkdir, "a folder or device, expected a file"),
    "image=pipe": (os.mkfifo, "a folder or device, expected a file"),
    "video=pipe": (os.mkfifo, "a folder or device, expected a file"),
    "image=empty.jpg": (Path.touch, "0 bytes, expected a file with content; fetch the file again"),
    "video=empty.mp4": (Path.touch, "0 bytes"),
    "audio=empty.wav": (Path.touch, "0 bytes"),
    "image=text.jpg": (lambda path: path.write_text("hello " * 99), "no picture"),
    "video=text.mp4": (lambda path: path.write_text("hello " * 99), "no video or sound"),
    "audio=text.wav": (lambda path: path.write_text("hello " * 99), "no video or sound"),
    "image=page.svg": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "no picture"),
    "image=cut.jpg": (lambda path: cut(path, "a.jpg", 0.7), "the file is cut short or damaged inside"),
    "image=head.jpg": (lambda path: cut(path, "a.jpg", 0.02), "the file is cut short or damaged inside"),
    "video=cut.mp4": (lambda path: cut(path, "film.mp4", 0.6), "the file is cut short or damaged inside"),
    "audio=cut.wav": (lambda path: cut(path, "beep.wav", 0.6), "the file is cut short or damaged inside"),
    "audio=head.wav": (lambda path: cut(path, "beep.wav", 0.001), "the file is cut short or damaged inside"),
    "image=film.mp4": (lambda path: None, "no picture"),
    "video=a.jpg": (lambda path: None, "expected a"),
    "audio=a.jpg": (lambda path: None, "expected a"),
    "video=beep.wav": (lambda path: None, "no video stream, expected a video"),
    "video=frameless.mp4": (sound_only, "no video stream, expected a video; give a file with a video stream"),
    "audio=mute.mp4": (lambda path: None, "no sound stream, expected a sound file or a video with sound"),
    "image=huge.png": (lambda path: Image.new("1", (10_000, 10_000)).save(path), "expected at most 50000000 pixels"),
    "audio=nan.wav": (not_a_number, "NaN or infinite samples, expected finite samples"),
    "audio=none.wav": (
        lambda path: soundfile.write(path, np.zeros(0), RATE),
        "0 samples of sound, expected at least one",
    ),
    "audio=hours.wav": (lambda path: soundfile.write(path, np.zeros(8000 * 301), 8000), "expected at most 300 s"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("word", BAD)
def test_a_bad_medium_is_one_line(ask, media, word):
    write, expected = BAD[word]
    name = word.partition("=")[2].strip("[]").split(",")[-1]
    write(media / name)
    line = refusal(ask(word, "instruction=What?"))
    assert expected in line
    assert f"'{name}': " in line


QUESTIONS = {
    "": "the instruction is empty",
    " \n\t": "the instruction is empty",
    "word " * 300: "at most 199 positions leave room for a response; shorten it",
    "x" * 100_000: "characters of prompt; at most 199 positions",
    "half a pair \ud83d": "half a surrogate pair in the text; re-encode it as UTF-8",
}


@pytest.mark.parametrize("text", QUESTIONS, ids=["empty", "blank", "long", "endless", "surrogate"])
def test_a_bad_question_is_one_line(ask, text):
    assert QUESTIONS[text] in refusal(ask(f"instruction={text}"))


SETTINGS = {
    "max_new_tokens=0": "max_new_tokens=0; expected at least 1",
    "device=gpu0": "device=gpu0 (",
    "device=cuda": "expected cpu, or cuda with a GPU",
    "imag=a.jpg": "imag: no such key; did you mean image?",
}


@pytest.mark.parametrize("word", SETTINGS)
def test_a_bad_setting_is_one_line(ask, word):
    if word == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert SETTINGS[word] in refusal(ask("instruction=What?", word))


FOLDERS: dict[str, tuple[str | None, bytes | None]] = {
    "nowhere": (None, None),
    "empty": (None, None),
    "config.json": ("config.json", b"{"),
    "config.json of another": ("config.json", b'{"model_type": "llama"}'),
    "config.json of another class": ("config.json", b'{"format": "macaw-lit/1", "llm": {"_target_": "os.system"}}'),
    "no weights": ("model.safetensors", None),
    "weights": ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00not weights"),
    "tokenizer": ("tokenizer/tokenizer.json", b"[]"),
    "preprocess.json": ("preprocess.json", b"[]"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_is_no_model_is_one_line(ask, tmp_path, what):
    name, content = FOLDERS[what]
    folder = tmp_path / "model"
    if name is None:
        folder = tmp_path / what
        if what == "empty":
            folder.mkdir()
    elif content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    line = refusal(ask(f"model={folder}", "instruction=What?"))
    assert str(folder) in line
    assert any(remedy in line for remedy in ("give a folder", "give an existing", "give the path", "again", "expected"))


def test_a_file_is_no_model(ask, media):
    assert "a.jpg is no model folder" in refusal(ask("model=a.jpg", "instruction=What?"))


# The command itself


def command(folder: Path, *words: str) -> tuple[int, str, str]:
    """As a shell runs it, every warning of Python's asked for."""
    env = {**os.environ, "PYTHONWARNINGS": "default"}
    line = [sys.executable, "-m", "macaw_lit.predict", *words]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_trained_demo_answers_and_says_nothing_else(tiny_run):
    (film, *_) = sorted((tiny_run.root / "data/demo/charades/Charades_v1_480").iterdir())
    (picture, *_) = sorted((tiny_run.root / "data/demo/coco/val2017").iterdir())
    words = [f"model={tiny_run.folder / 'model'}", f"video={film}", f"image={picture}", "instruction=What is this?"]
    code, out, err = command(tiny_run.folder, *words)
    assert (code, err) == (0, "")
    assert out.endswith("\n")


@pytest.mark.slow
def test_the_command_refuses_in_one_line(tiny_run):
    line = refusal(command(tiny_run.root, f"model={tiny_run.folder / 'model'}", "image=gone.jpg", "instruction=What?"))
    assert line.startswith("error: 'gone.jpg': no such file (FileNotFoundError), expected an existing file")
