"""Models from the Hugging Face hub: the one place where loading a model uses the network, and only when asked to."""

from pathlib import Path

from limner.errors import ModelError
from limner.progress import say

CONFIGS = ["*.json", "README.md", "LICENSE*"]
WEIGHTS = ("model*.safetensors", "open_clip*.safetensors")
PICKLES = ("pytorch_model*.bin", "open_clip_pytorch_model.bin")


def download(name: str, *, allow_pickle: bool = False) -> Path:
    """The directory of the model `org/name` or `org/name@revision`, downloaded once and kept in the hub's cache.

    Of the weights one kind is fetched, the first that is there; code and other frameworks' files stay where they are.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    say(f"Looking for {name} on the Hugging Face hub.")
    repository, _, revision = name.partition("@")
    folder = Path()
    try:
        for weights in WEIGHTS + PICKLES * allow_pickle:
            folder = Path(
                snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=[*CONFIGS, weights],
                    ignore_patterns=["*/*"],  # a star in a pattern crosses folders
                )
            )
            if any(folder.glob(weights)):
                break
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"The model hf-hub:{name}",
            must="be on the hub, or in its cache on this machine",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            then="Check the name, the connection and, for private models, HF_TOKEN.",
        ) from error
