"""Models from the Hugging Face hub: the one place where loading a model uses the network, and only when asked to."""

from pathlib import Path

from limn.errors import ModelError
from limn.progress import say

FILES = ["*.json", "*.safetensors", "README.md", "LICENSE*"]
PICKLES = ["pytorch_model*.bin", "open_clip_pytorch_model.bin"]


def download(name: str, *, allow_pickle: bool = False) -> Path:
    """The directory of the model `org/name`, downloaded once and kept in the hub's cache.

    Code, and other frameworks' weights, stay where they are.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    say(f"Looking for {name} on the Hugging Face hub.")
    try:
        return Path(snapshot_download(name, allow_patterns=FILES + PICKLES * allow_pickle))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"The model hf-hub:{name}",
            must="be on the hub, or in its cache on this machine",
            got=str(error).strip().splitlines()[0],
            then="Check the name, the connection and, for private models, HF_TOKEN.",
        ) from error
