"""limner's models on mteb's tasks: `mteb.evaluate(Encoder(model), tasks)`.

```
pictures as Pillow has them ─> image encoder ┐
sentences ───────────────────> text encoder ─┴> features f32[rows embed] ─> mteb's classifiers, retrieval, clusters
```

mteb reads the data of its tasks, from the network too, and computes the numbers. Nothing here reaches the network.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch.utils.data import DataLoader

from limner.architecture import name_of
from limner.embed import embed_texts, measuring
from limner.errors import DataError, MissingExtra, require
from limner.model.clip import CLIP
from limner.progress import track
from limner.store.store import fingerprint_now

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError:
    raise MissingExtra("mteb", extra="mteb", needed_for="limner.use.mteb") from None


class Encoder(AbsEncoder):
    """A limner model as an encoder of mteb.

    Similarities are mteb's own cosine. `mteb_model_meta` tells mteb what the model is; its revision, by which mteb
    keeps results, is the fingerprint of the model as it is now: make a new encoder for one that was trained on.

    Args:
        model: it computes where it is and in its own precision. One without a tokenizer is of pictures alone.
        name: what mteb calls it, `organisation/name`; None: after its architecture, `limner/ViT-B-32`.
    """

    def __init__(self, model: CLIP, *, name: str | None = None) -> None:
        self.model, shape = model, model.architecture
        parameters = list(model.parameters())
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=name if name and "/" in name else f"limner/{name or name_of(shape).replace('/', '-')}",
            revision=fingerprint_now(model),
            release_date=None,
            languages=None,
            n_parameters=sum(parameter.numel() for parameter in parameters),
            n_embedding_parameters=shape.text.vocab_size * shape.text.width,
            memory_usage_mb=sum(parameter.nbytes for parameter in parameters) / 2**20,
            max_tokens=shape.text.context_length,
            embed_dim=shape.embed_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"] if model.tokenizer else ["image"],
        )

    def encode(self, inputs: DataLoader[Any], *, task_metadata: Any, **kwargs: Any) -> Float[np.ndarray, "rows embed"]:
        """The features of rows, float32 and L2-normalised, a batch of pictures in memory at a time.

        A row with a picture and a sentence gets the mean of both features, normalised again; where its picture is None
        or its sentence blank, the feature of the other alone.

        Args:
            inputs: batches with pictures as `image`, sentences as `text`, or both.
            task_metadata: names the task in errors. Instructions and kinds of prompts change nothing.
            kwargs: of these `show_progress_bar` and `precision` count; the batch's size is the one of `inputs`.

        Raises `DataError` for audio, video and rows that are neither picture nor sentence, `ConfigError` for another
        precision than float32, and what `CLIP.encode_image` and `CLIP.encode_text` raise.
        """
        precision = kwargs.get("precision") or "float32"
        then = "Leave it out, or wrap the encoder in mteb.models.CompressionWrapper."
        require(precision == "float32", "The precision of the features", "be float32", repr(precision), then)
        is_shown = kwargs.get("show_progress_bar", True)
        parts = [torch.empty(0, self.model.architecture.embed_dim)]
        sentences, places, of_both = list[str](), list[int](), list[int]()
        done = 0
        with measuring(self.model):
            for batch in track(inputs, title="Encoding for mteb", total=len(inputs)) if is_shown else inputs:
                images, texts = batch.get("image"), batch.get("text")
                if (images is None and texts is None) or "audio" in batch or "video" in batch:
                    raise DataError(
                        f"The rows of {task_metadata.name}",
                        must="be pictures, sentences or both",
                        got=f"rows of {', '.join(batch)}",
                        then="Ask mteb for tasks whose modalities are image and text alone.",
                    )
                seen = [row for row, image in enumerate(images or ()) if image is not None or texts is None]
                features = torch.zeros(len(images or texts or ()), parts[0].shape[1])
                if images is not None and seen:
                    features[seen] = self.model.encode_image([images[row] for row in seen]).cpu()
                for row, text in enumerate(texts or ()):
                    if row not in seen or text.strip():
                        sentences.append(text)
                        places.append(done + row)
                        of_both += [done + row] * (row in seen)
                parts.append(features)
                done += len(features)
            found = torch.cat(parts)
            if sentences:  # together, so that those that are cut are counted and said once
                found[places] += embed_texts(self.model, sentences)
            found[of_both] = F.normalize(found[of_both], dim=-1)
        return found.numpy()
