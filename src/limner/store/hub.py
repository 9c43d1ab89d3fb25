"""Models, and pictures to measure them on, from the Hugging Face hub: the one place where loading these uses the
network, and only when asked to."""

from pathlib import Path
from typing import Any

from limner.errors import DataError, LimnerError, ModelError
from limner.progress import say

CONFIGS = ["*.json", "README.md", "LICENSE*"]
WEIGHTS = ("model*.safetensors", "open_clip*.safetensors")
PICTURES = ("test", "val", "valid", "validation", "dev", "eval")
"""Splits that models are measured on, as folders and the beginnings of files' names."""
PICKLES = ("pytorch_model*.bin", "open_clip_pytorch_model.bin")


def download(name: str, *, allow_pickle: bool = False) -> Path:
    """The directory of the model `org/name` or `org/name@revision`, downloaded once and kept in the hub's cache.

    Of the weights one kind is fetched, the first that is there; code and other frameworks' files stay where they are.
    """
    folder = Path()
    for weights in WEIGHTS + PICKLES * allow_pickle:
        # a star in a pattern crosses folders
        folder = _snapshot(name, [*CONFIGS, weights], ModelError, "model", ignore_patterns=["*/*"])
        if any(folder.glob(weights)):
            break
    return folder


def fetch_dataset(name: str, *, train: bool) -> Path:
    """The folder of the dataset `org/name` or `org/name@revision`, with the splits that models are measured on and, if
    asked for, the one that they are trained on; downloaded once and kept in the hub's cache.

    Tar shards, parquet files and texts are fetched; no code is, and none is run.
    """
    splits = (*PICTURES, "train") if train else PICTURES
    places = [f"{split}{rest}" for split in splits for rest in ("/*.tar", "/*.txt", "/*.parquet", "-*.parquet")]
    patterns = ["*.txt", "*.csv", "README.md", "LICENSE*", *places, *(f"data/{place}" for place in places)]
    return _snapshot(name, patterns, DataError, "dataset", repo_type="dataset", ignore_patterns=None)


def _snapshot(name: str, patterns: list[str], kind: type[LimnerError], what: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    say(f"Looking for {name} on the Hugging Face hub.")
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise kind(
            f"The {what} hf-hub:{name}",
            must="be on the hub, or in its cache on this machine",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            then=f"Check the name, the connection and, for private {what}s, HF_TOKEN.",
        ) from error
