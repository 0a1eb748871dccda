"""Files on the Hugging Face hub: puzzles by `hf://owner/dataset/path/file`, and checkpoints to push.

Nothing here touches the network unless a caller names the hub. `HF_ENDPOINT` and `HF_TOKEN` are huggingface_hub's own.
Not the model as transformers knows it (`gram/hub.py`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gram import checkpoint
from gram.tasks.arc_folder import NAMES_FILE
from gram.tasks.protocol import PuzzleSet, Task

URI = re.compile(r"hf:/{1,2}(?:datasets/)?([^/]+/[^/]+)/(.+)")
"""A path of pathlib has lost one of the two slashes."""
UPLOADED = (
    checkpoint.CONFIG_FILE,
    checkpoint.CARD_FILE,
    checkpoint.INDEX_FILE,
    "*.safetensors",
    "README.md",
    NAMES_FILE,
)


class HubError(ValueError):
    """What the hub refuses or cannot serve; the message is one line."""


def local_file(path: Path | str) -> Path:
    """`path` itself or, of the form `hf://owner/dataset/path/file`, that file of the hub's data set in the local cache.

    Raises `HubError`.
    """
    if not re.match("hf:/", str(path)):
        return Path(path)
    if (found := URI.fullmatch(str(path))) is None:
        raise HubError(f"puzzles on the hub must be hf://owner/dataset/path/file, got {path}")
    from huggingface_hub import hf_hub_download

    with _told(f"hf://{found[1]}/{found[2]}"):
        return Path(hf_hub_download(found[1], found[2], repo_type="dataset", endpoint=_endpoint()))


def load_puzzles(task: Task, path: Path) -> PuzzleSet:
    """The puzzles of a user's file, here or on the hub. Raises `HubError`, `PuzzleError`, and `ValueError` where it
    holds none."""
    puzzles = task.load(local_file(path))
    if not len(puzzles):
        raise ValueError(f"{path}: expected at least one puzzle, got none")
    return puzzles


def push(directory: Path | str, repository: str, *, is_private: bool = False) -> str:
    """Uploads a checkpoint directory to the hub's model `owner/name`, made where there is none; returns its address.

    Raises `CheckpointError` for what is no whole checkpoint, `HubError`.
    """
    from huggingface_hub import HfApi

    checkpoint.load(directory)
    if re.fullmatch(r"[^/\s]+/[^/\s]+", repository) is None:
        raise HubError(f"model on the hub must be named owner/name, got {repository!r}")
    api = HfApi(endpoint=_endpoint())
    with _told(repository):
        api.create_repo(repository, private=is_private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=directory, allow_patterns=list(UPLOADED))
    return f"{api.endpoint}/{repository}"


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.ERROR)  # not a line for each of its retries
    try:
        yield
    except LocalEntryNotFoundError:
        raise HubError(f"{what}: the hub cannot be reached, and the file is not in the local cache") from None
    except (EntryNotFoundError, RepositoryNotFoundError):
        raise HubError(f"{what}: not on the hub, or not open to this user (HF_TOKEN)") from None
    except HfHubHTTPError as error:
        raise HubError(f"{what}: the hub refused ({' '.join(str(error).split())[:100]})") from None
    except (OSError, ValueError) as error:
        raise HubError(f"{what}: {' '.join(str(error).split())[:160]}") from None
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise HubError(f"{what}: the hub cannot be reached ({type(error).__name__})") from None
    finally:
        library.setLevel(level)
