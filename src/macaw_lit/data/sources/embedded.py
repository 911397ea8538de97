"""Media that a row itself holds in base64, as OpenAI's messages may."""

import base64
import binascii
import mimetypes
import string

from macaw_lit.data.media import with_sounds
from macaw_lit.data.sources.rows import RowError
from macaw_lit.types import Bytes, MediaRef

MAX_BYTES = 32 * 2**20
"""Largest medium that a row may hold; all of a data file's are in memory at once."""


def embedded_refs(kind: str, uri: str) -> tuple[MediaRef, ...]:
    """The medium in `data:image/png;base64,…`; a video's sound is a second ref.

    Raises:
        RowError: media_embedded: it is not in base64, empty, or larger than `MAX_BYTES`.
    """
    head, comma, data = uri[len("data:") :].partition(",")
    mime, *parameters = [part.strip().lower() for part in head.split(";")]
    if not comma or "base64" not in parameters:
        raise RowError("media_embedded", f"{uri[:30]!r}, expected data:<type>;base64,<the medium>; or name a file")
    return _refs(kind, data, mimetypes.guess_extension(mime) or "")


def sound_refs(data: str, form: str) -> tuple[MediaRef, ...]:
    """The sound of an `input_audio` part, of format `wav` or `mp3`.

    Raises:
        RowError: as `embedded_refs`.
    """
    return _refs("audio", data, f".{form}" if form.isalnum() else "")


def _refs(kind: str, data: str, suffix: str) -> tuple[MediaRef, ...]:
    large = RowError("media_embedded", f"over {MAX_BYTES} bytes in the row; write the medium to a file and name that")
    if len(data) > 2 * MAX_BYTES:  # a third more by base64, and line ends
        raise large
    try:
        plain = data.encode("ascii").translate(None, string.whitespace.encode())  # splitting takes 20 times its size
        content = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("media_embedded", f"no base64 ({error}); write the medium to a file and name that") from error
    if len(content) > MAX_BYTES:
        raise large
    if not content:
        raise RowError("media_embedded", "0 bytes in the row, expected a medium")
    return with_sounds([MediaRef(kind, Bytes(content, f"{kind} in the row{suffix}"))])
