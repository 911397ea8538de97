"""Messages as users of transformers write them → inputs of `Macaw.generate`, and new ids → text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from jaxtyping import Int
from torch import Tensor

from macaw_lit.data.collate import Collator
from macaw_lit.data.media import in_memory, with_sounds
from macaw_lit.data.preprocess import Preprocessor
from macaw_lit.errors import ConfigError, SampleError
from macaw_lit.hub import local_folder
from macaw_lit.model import Macaw
from macaw_lit.types import Batch, Bytes, MediaRef, Sample, Turn

Message = Mapping[str, Any]
_ROLES = ("system", "user", "assistant")


class MacawProcessor:
    """The data side of a model for single questions: the training's own preprocessor and collator behind messages.

    A message is `{"role": …, "content": …}`, its content a text or a list of parts: `{"type": "text", "text": …}`, or
    a medium such as `{"type": "image", "path": …}`. In place of `path` a medium has `url`, of a local file, or its own
    type as key, as in `{"type": "image", "image": picture}`: a path, a file's bytes, a Pillow picture, or a decoded
    array (see `types.Decoded`; a video also as a list of pictures). A user's parts with an `audio` and no text are a
    question that is spoken. Nothing is ever fetched from a network.
    """

    def __init__(self, preprocess: Preprocessor) -> None:
        self.preprocess = preprocess
        self.tokenizer: Any = preprocess.tokenizer

    @classmethod
    def from_pretrained(cls, source: Path | str) -> "MacawProcessor":
        """Read a model folder, or hub id, without its weights.

        Raises:
            WeightsError: the folder is no model folder.
        """
        folder = Path(source)
        if isinstance(source, str) and not folder.exists():
            folder = local_folder(source, weights=False)
        with torch.device("meta"):
            blueprint, _ = Macaw.blueprint(folder)
        assert blueprint.preprocess is not None
        return cls(blueprint.preprocess)

    def apply_chat_template(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        load_audio_from_video: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        padding: bool | str = True,
    ) -> Batch | str | list[str]:
        """One dialogue or several → a batch for `model.generate(**inputs)`, or for `model(inputs)` to learn from.

        Args:
            messages: a dialogue, or a list of them.
            add_generation_prompt: True: the dialogues end with a question, and rows are padded on the left. False: they
                end with an answer, the batch has labels, and rows are padded on the right.
            tokenize: False gives the text that the folder's chat template renders, without the sounds of videos.
            load_audio_from_video: whether a video brings its sound, where it has one and the model hears.
            return_dict, return_tensors, padding: as users of `transformers` give them, and nothing else.

        Raises:
            SampleError: messages do not follow the form above, end with the wrong role, or do not fit the model.
            MediaError: a medium cannot be used.
        """
        if not return_dict or return_tensors != "pt" or padding not in (True, "longest"):
            given = f"return_dict={return_dict}, return_tensors={return_tensors!r}, padding={padding!r}"
            raise ConfigError(f"{given}; expected True, 'pt' and True")
        if not isinstance(messages, list | tuple):
            raise SampleError("bad_message", f"messages {str(messages)[:80]!r}; expected a list of {{'role': …}}")
        several = bool(messages) and not isinstance(messages[0], Mapping)
        dialogues: list[Any] = list(messages) if several else [messages]
        samples = [
            Sample(tuple(self._turn(message, load_audio_from_video) for message in dialogue), f"messages/{row}", "chat")
            for row, dialogue in enumerate(dialogues)
        ]
        for sample in samples:
            last = sample.turns[-1].role if sample.turns else "missing"
            if last != ("user" if add_generation_prompt else "assistant"):
                wanted = "user: a question to answer" if add_generation_prompt else "assistant: an answer to learn"
                raise SampleError("turn_order", f"{sample.uid}: the last turn is {last}; expected {wanted}")
        if tokenize:
            return self.batch(samples, predict=add_generation_prompt)
        texts = [self.tokenizer.apply_chat_template(dialogue, tokenize=False) for dialogue in dialogues]
        return texts if several else str(texts[0])

    def batch(self, samples: Sequence[Sample], predict: bool = True) -> Batch:
        """Dialogues → rows to continue, without the answer they may end with; or, to learn from, rows with labels.

        Raises:
            SampleError: a dialogue is unusable, or does not fit the model.
            MediaError: a medium cannot be used.
        """
        collate = Collator(self.preprocess.pad, self.preprocess.specs, "left" if predict else "right")
        return collate([self.preprocess(sample, predict) for sample in samples])

    def batch_decode(self, ids: Int[Tensor, "b new"], skip_special_tokens: bool = True, **decoding: Any) -> list[str]:
        """The texts of new ids, without control tokens and the white space around them.

        `decoding` goes to the tokenizer, such as `clean_up_tokenization_spaces`.
        """
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **decoding)
        return [text.strip() for text in texts]

    def decode(self, ids: Int[Tensor, " new"], skip_special_tokens: bool = True, **decoding: Any) -> str:
        """The text of one answer."""
        return self.batch_decode(ids[None], skip_special_tokens, **decoding)[0]

    def _turn(self, message: Any, sounds: bool) -> Turn:
        if not isinstance(message, Mapping):
            raise SampleError("bad_message", f"a message {str(message)[:80]!r}; expected {{'role': …, 'content': …}}")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise SampleError("bad_message", f"role {role!r}; expected one of {', '.join(_ROLES)}")
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
            raise SampleError("bad_message", f"content {str(content)[:80]!r}; expected a text or a list of parts")
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        if not all(isinstance(text, str) for text in texts):
            raise SampleError("bad_message", f"text parts hold {texts}; expected {{'type': 'text', 'text': …}}")
        media = tuple(self._ref(part) for part in parts if part.get("type") != "text")
        if sounds and "audio" in self.preprocess.specs:
            media = with_sounds(media)
        spoken = role == "user" and not texts and any(part.get("type") == "audio" for part in parts)
        return Turn(role, "".join(texts), media, spoken)

    def _ref(self, part: Message) -> MediaRef:
        kind = part.get("type")
        if kind not in self.preprocess.specs:
            known = ", ".join(("text", *self.preprocess.specs))
            raise SampleError("bad_message", f"a part of type {kind!r}; this model takes {known}")
        keys = [key for key in ("path", "url", str(kind)) if part.get(key) is not None]
        if len(keys) != 1:
            raise SampleError("bad_message", f"the {kind} part has {sorted(part)}; expected one of path, url, {kind}")
        value = part[keys[0]]
        if isinstance(value, bytes | bytearray | memoryview):
            return MediaRef(str(kind), Bytes(bytes(value), f"{kind} in memory"))
        if not isinstance(value, str | Path):
            return in_memory(str(kind), value)
        url = urlsplit(str(value))
        if "://" not in str(value):
            return MediaRef(str(kind), value)
        if url.scheme != "file" or url.netloc not in ("", "localhost"):
            raise SampleError("bad_message", f"{value}: nothing is fetched here; download it and give its path")
        return MediaRef(str(kind), url2pathname(url.path))
