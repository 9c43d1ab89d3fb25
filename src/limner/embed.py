"""The features of many pictures: `Source -> batches of central squares -> image encoder -> features`."""

import torch
from jaxtyping import Float
from torch import Tensor

from limner.data.pairs import Source
from limner.data.reading import describe_unreadable, read_centre
from limner.errors import DataError
from limner.model.clip import CLIP
from limner.progress import track

BATCH = 256


@torch.inference_mode()
def image_features(model: CLIP, source: Source) -> tuple[list[int], Float[Tensor, "pictures embed"], dict[str, str]]:
    """(indices of the readable pictures, their features, reasons for the unreadable ones by key).

    Raises `DataError` if no picture can be read.
    """
    kept: list[int] = []
    parts: list[Tensor] = []
    unreadable: dict[str, str] = {}
    batches = read_centre(source, model.architecture.image_size, batch_size=BATCH)
    for indices, pixels, bad in track(batches, title="Encoding pictures", total=-(-len(source) // BATCH)):
        unreadable |= bad
        if indices:
            kept += indices
            parts.append(model.encode_image(pixels))
    if not kept:
        raise DataError(
            f"The pictures of {source.path}",
            must="be readable",
            got=describe_unreadable(unreadable),
            then="Check the files.",
        )
    return kept, torch.cat(parts), unreadable
