"""Where a name that a user gives leads: to a file or folder of this machine, or to a model of the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from macaw_lit.errors import WeightsError, in_one_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja"]
_FORMATS = ("*.safetensors", "*.bin", "*.pt")  # a model of the hub often has its weights in several: one is enough


def locate(source: str) -> Path:
    """The file `source`, or a folder by `local_folder`.

    Raises:
        WeightsError: as `local_folder`.
    """
    path = Path(source).expanduser()
    return path if path.is_file() else local_folder(source)


def local_folder(source: str, weights: bool = True) -> Path:
    """The folder `source`; or else the files of the hub id `owner/name`, fetched, or found in the hub's cache.

    Args:
        weights: whether weights are wanted; configuration and tokenizer always are.

    Raises:
        WeightsError: there is no such folder here, nor such a model within reach.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(f"{source} is no folder: give a folder, or a hub id such as openai/whisper-base")
    if not _HUB_ID.fullmatch(source):
        raise WeightsError(
            f"{source} not found: give an existing file or folder, or a hub id such as openai/whisper-base"
        )
    try:
        return _fetch(source, weights)
    except Exception as error:  # the errors of huggingface_hub and of its transport have no common class
        raise WeightsError(
            f"{source} is neither a folder nor a hub id that can be reached "
            f"({in_one_line(error)}): mend the path, or try again with network"
        ) from error


def push(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload all files of `folder` to the model repository `repo_id`, made if need be; returns the commit's address.

    Raises:
        WeightsError: the hub cannot be reached or does not accept it.
    """
    hub = HfApi(token=token)
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder))
    except Exception as error:  # as above
        raise WeightsError(
            f"{repo_id} cannot be written on the hub ({in_one_line(error)}): check the name, the network and the token"
        ) from error


def _fetch(source: str, weights: bool) -> Path:
    folder = Path(snapshot_download(source, allow_patterns=_SETTINGS, ignore_patterns=["*/*"]))
    for form in _FORMATS if weights else ():
        folder = Path(snapshot_download(source, allow_patterns=[*_SETTINGS, form], ignore_patterns=["*/*"]))
        if any(folder.glob(form)):
            break
    return folder
