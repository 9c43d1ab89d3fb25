"""Zero-shot classification (paper section 3.1).

```
class names x templates ─> prompts ─> text features ─> mean over templates ─> / L2 norm ─> classifier [classes embed]
images ─> image features [batch embed] ─> x classifier x logit scale ─> softmax over the classes
```
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limner.config import DEFAULT_TEMPLATES
from limner.data.pairs import Pair
from limner.data.tokenizer import clean, texts_of
from limner.embed import embed_texts, ids_of_texts, measuring, require_finite
from limner.errors import ConfigError, DataError, whole_from_one
from limner.evaluation.metrics import Row, best_first, ranks_of_right, share_row
from limner.model.clip import CLIP, ImageLike
from limner.objectives.table import objective
from limner.progress import say


class ZeroShotClassifier:
    """Names pictures without having been trained to: each class is the mean of its prompts' features.

    A class is its number in `class_names`: two may have the same name, of which the first then gets all pictures.
    `class_names` and `templates` are a text or several: a list, an array, a generator. Raises `ConfigError` for others.
    """

    def __init__(self, model: CLIP, class_names: Any, templates: Any = DEFAULT_TEMPLATES) -> None:
        self.model = model
        self.class_names, self.templates = (
            list(texts_of(class_names, "The class names")),
            list(texts_of(templates, "The templates")),
        )
        require_names(self.class_names, self.templates)
        self.weights = classifier_weights(model, self.class_names, self.templates).to(model.logit_scale.device)
        ids = ids_of_texts(model, prompts_of(self.class_names, self.templates))
        each = len(self.templates)
        self._firsts = _firsts([tuple(ids[i : i + each]) for i in range(0, len(ids), each)], self.weights)

    @torch.inference_mode()
    def scores(self, image_features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch classes"]:
        """Cosine similarities of features with every class, on the model's device."""
        scores = image_features.to(self.weights.device) @ self.weights.T
        return scores if self._firsts is None else scores[:, self._firsts]

    @torch.inference_mode()
    def probabilities(self, image_features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch classes"]:
        """How likely each class is, by the rule of the objective that the model was trained for.

        Raises `ModelError` where one is not finite.
        """
        rule = objective(self.model.architecture.objective).probabilities
        found = rule(self.model, self.scores(image_features))
        require_finite("The probabilities", found)
        return found

    def likeliest(
        self, image_features: Float[Tensor, "batch embed"], top: int
    ) -> tuple[Int[Tensor, "batch top"], Float[Tensor, "batch top"]]:
        """(classes, their probabilities), the likeliest first, of equal ones the first; on the CPU."""
        order = best_first(self.scores(image_features), top)
        return order.cpu(), self.probabilities(image_features).gather(1, order).cpu()

    def predict(
        self, images: Tensor | ImageLike | Iterable[ImageLike], *, top: Any = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top` names of each picture with their probabilities, the likeliest first."""
        top = whole_from_one(top, "top")
        with measuring(self.model):
            classes, shares = self.likeliest(self.model.encode_image(images), top)
        return [
            [(self.class_names[i], p) for i, p in zip(indices, values, strict=True)]
            for indices, values in zip(classes.tolist(), shares.tolist(), strict=True)
        ]


def classifier_weights(
    model: CLIP, class_names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes embed"]:
    """The normalised mean over templates of the normalised prompt features; on the CPU."""
    features = embed_texts(model, prompts_of(class_names, templates))
    return F.normalize(features.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=-1)


def prompts_of(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each name in each template, name by name."""
    return [template.replace("{}", name) for name in class_names for template in templates]


def _firsts(prompt_ids: Sequence[object], weights: Float[Tensor, "classes embed"]) -> list[int] | None:
    """The first class with the prompts, or else the features, of each: these tie, whatever their scores' rounding.

    None where no two are the same.
    """
    firsts = dict[object, int]()
    found = [
        min(firsts.setdefault(prompt, place), firsts.setdefault(row.tobytes(), place))
        for place, (prompt, row) in enumerate(zip(prompt_ids, weights.cpu().numpy(), strict=True))
    ]
    return found if found != list(range(len(found))) else None


def require_names(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Raise `ConfigError` for class names or templates that cannot be used; say what is odd about the others."""
    empty = [place for place, name in enumerate(class_names) if not clean(name)]
    if not class_names or empty:
        raise ConfigError(
            "The class names",
            must="not be empty",
            got=f"an empty one at place {empty[0]}" if empty else "none",
            then='Name two or more: ["cat", "dog"].',
        )
    same: dict[str, list[str]] = {}  # to the text encoder
    for name in class_names:
        same.setdefault(clean(name), []).append(name)
    twice = [several[0] for several in same.values() if len(several) > 1]
    if twice:
        named = ", ".join(twice[:5]) + (", ..." if len(twice) > 5 else "")
        say(f"Names that several classes have: {named}. The first class of each name gets all its pictures.")
    if len(same) == 1:
        say("There is one class name: every picture is certain to be it. Name two or more for a comparison.")
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
    classifier: ZeroShotClassifier,
    features: Float[Tensor, "pictures embed"],
    pairs: Sequence[Pair],
    labels: Sequence[int],
    about: dict[str, str],
) -> tuple[list[Row], list[Prediction]]:
    """Top-1 and top-5 accuracy, over all classes and over those held out of training, and each picture's names.

    `labels` are the right classes. A tie goes to the first of the equal classes, as an arg-max has it.
    """
    classes, right_class = len(classifier.class_names), torch.tensor(labels)
    if max(labels) >= classes:
        raise DataError(
            "The labels of the pictures",
            must=f"be below {classes}, the number of classes that have names",
            got=max(labels),
            then="Labels are counted from 0, in the order of classnames.txt.",
        )
    rank = ranks_of_right(classifier.scores(features).cpu(), torch.arange(classes) == right_class[:, None])
    held_out = torch.tensor([pair.held_out for pair in pairs])
    rows = [share_row(f"zero_shot.top{k}", rank, k, **about) for k in (1, TOP)]
    if held_out.any():
        rows += [share_row(f"held_out.top{k}", rank[held_out], k, **about) for k in (1, TOP)]
    probabilities = classifier.probabilities(features).cpu()
    top, shares = classifier.likeliest(features, TOP)
    right = probabilities[torch.arange(len(labels)), right_class]
    predictions = [
        Prediction(key=pair.key, label=label, held_out=pair.held_out, top=best, probabilities=values, right=share)
        for pair, label, best, values, share in zip(
            pairs, labels, top.tolist(), shares.tolist(), right.tolist(), strict=True
        )
    ]
    return rows, predictions
