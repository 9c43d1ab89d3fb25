"""Zero-shot classification (paper section 3.1).

```
class names x templates ─> prompts ─> text features ─> mean over templates ─> / L2 norm ─> classifier [classes embed]
images ─> image features [batch embed] ─> x classifier x logit scale ─> softmax over the classes
```
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.config import DEFAULT_TEMPLATES
from limner.data.pairs import Pair
from limner.embed import embed_texts
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row, ranks_of_right, share_row
from limner.model.clip import CLIP, ImageLike
from limner.objectives.table import objective


class ZeroShotClassifier:
    """Names pictures without having been trained to: each class is the mean of its prompts' features."""

    def __init__(self, model: CLIP, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> None:
        require_names(class_names, templates)
        self.model, self.class_names, self.templates = model, list(class_names), list(templates)
        self.weights = classifier_weights(model, class_names, templates).to(model.logit_scale.device)

    @torch.inference_mode()
    def scores(self, image_features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch classes"]:
        """Cosine similarities of features with every class, on the model's device."""
        return image_features.to(self.weights.device) @ self.weights.T

    @torch.inference_mode()
    def probabilities(self, image_features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch classes"]:
        """How likely each class is, by the rule of the objective that the model was trained for."""
        rule = objective(self.model.architecture.objective).probabilities
        return rule(self.model, self.scores(image_features))

    @torch.inference_mode()
    def predict(
        self, images: Tensor | ImageLike | Sequence[ImageLike], *, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top` names of each picture with their probabilities, the likeliest first."""
        found = self.probabilities(self.model.encode_image(images)).topk(min(top, len(self.class_names)), dim=-1)
        return [
            [(self.class_names[i], p) for i, p in zip(indices, values, strict=True)]
            for indices, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]


def classifier_weights(
    model: CLIP, class_names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes embed"]:
    """The normalised mean over templates of the normalised prompt features; on the CPU."""
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    features = embed_texts(model, prompts)
    return F.normalize(features.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=-1)


def require_names(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Raise `ConfigError` for class names or templates that cannot be used."""
    if not class_names:
        raise ConfigError("The class names", must="not be empty", got="none", then='Name two or more: "cat,dog".')
    # the tokenizer lower-cases, so names that differ in case only have the same features
    twice = [name for name, count in Counter(name.lower() for name in class_names).items() if count > 1]
    if twice:
        raise ConfigError(
            "The class names",
            must="differ from each other",
            got=f"{', '.join(twice[:5])} more than once",
            then="Name each class once.",
        )
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ConfigError(
            "Each template",
            must="hold {} once, where the class name goes",
            got=repr(wrong[0]) if wrong else "no template",
            then='For example: "a picture of a {}."',
        )


TOP = 5
"""Names kept for each picture."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What zero-shot classification said about one picture."""

    key: str
    label: int
    held_out: bool
    top: list[int]
    """Indices of the likeliest classes."""
    probabilities: list[float]
    right: float
    """Probability of the right class."""


def classify(
    classifier: ZeroShotClassifier, features: Float[Tensor, "pictures embed"], pairs: list[Pair], about: dict[str, str]
) -> tuple[list[Row], list[Prediction]]:
    """Top-1 and top-5 accuracy, over all classes and over those held out of training, and each picture's names."""
    labels = torch.tensor([pair.label for pair in pairs])
    classes = len(classifier.class_names)
    if int(labels.max()) >= classes:
        raise DataError(
            "The labels of the pictures",
            must=f"be below {classes}, the number of lines of classnames.txt",
            got=int(labels.max()),
            then="Labels are counted from 0.",
        )
    rank = ranks_of_right(classifier.scores(features).cpu(), torch.arange(classes) == labels[:, None])
    held_out = torch.tensor([pair.held_out for pair in pairs])
    rows = [share_row(f"zero_shot.top{k}", rank, k, **about) for k in (1, TOP)]
    if held_out.any():
        rows += [share_row(f"held_out.top{k}", rank[held_out], k, **about) for k in (1, TOP)]
    probabilities = classifier.probabilities(features).cpu()
    found = probabilities.topk(min(TOP, classes), dim=1)
    right = probabilities[torch.arange(len(labels)), labels]
    predictions = [
        Prediction(key=pair.key, label=label, held_out=pair.held_out, top=top, probabilities=shares, right=share)
        for pair, label, top, shares, share in zip(
            pairs, labels.tolist(), found.indices.tolist(), found.values.tolist(), right.tolist(), strict=True
        )
    ]
    return rows, predictions
