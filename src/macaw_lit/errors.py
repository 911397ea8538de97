"""The errors a user can cause: each message says the value, what was expected, and the remedy."""

import errno
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

SIMILAR = 0.6  # SequenceMatcher ratio from which a name is worth suggesting
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the system says of a disk that takes no more."""


class MacawError(Exception):
    """A user's mistake. Commands print its message on one line and exit with code 1, without a traceback."""


class ConfigError(MacawError):
    """A configuration value that cannot work."""


class WeightsError(MacawError):
    """Weights that did not arrive where they were wanted."""


class DataError(MacawError):
    """A data file that cannot be read at all."""


class TrainingError(MacawError):
    """Training that cannot go on: its numbers are no longer finite."""


class SampleError(MacawError):
    """A sample that cannot be used: skipped and counted in training, fatal for a single question.

    Args:
        cause: a short snake_case word that skips are counted by, such as `text_too_long`.
        message: the value, what was expected, and the remedy.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        # Exceptions cross process borders by re-calling the class with `args`, which holds the message alone.
        return type(self), (self.cause, str(self))


class MediaError(SampleError):
    """A picture, video or sound that cannot be used, for a `cause` such as `missing`, `empty` or `truncated`."""


def unwritable(path: Path, error: OSError) -> DataError:
    """What the disk had to say to a write, such as that it is full."""
    reason = error.strerror or in_one_line(error)
    return DataError(f"{path}: cannot be written ({reason}); make room or choose another place, and run again to go on")


def in_one_line(error: BaseException) -> str:
    """What another library has to say, short enough to be quoted in a message of ours."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def system_error(error: BaseException) -> int | None:
    """The number by which the system refused something; libraries in Rust have it in their message alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `word`, judged by the whole dotted name and by its last part; None if none is."""

    def likeness(other: str) -> float:
        whole = SequenceMatcher(None, word, other).ratio()
        last = SequenceMatcher(None, word.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return (whole + last) / 2

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= SIMILAR else None


def did_you_mean(word: str, known: Iterable[str], at: str = "") -> str:
    """The end of a sentence that refuses a name: the known name most like it, below the key `at`; or nothing."""
    like = nearest(word, known)
    return f"; did you mean {at}{like}?" if like else ""


def of_folder(error: Exception) -> str:
    """What transformers has to say about a folder that it cannot read, and what to do."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which is never run here: choose a model that transformers itself knows"
    return f"{in_one_line(error)}: fetch it again"
