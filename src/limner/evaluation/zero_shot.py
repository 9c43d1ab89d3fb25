"""Zero-shot classification (paper section 3.1).

```
class names x templates ─> prompts ─> text features ─> mean over templates ─> / L2 norm ─> classifier [classes embed]
images ─> image features [batch embed] ─> x classifier x logit scale ─> softmax over the classes
```
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limner.config import DEFAULT_TEMPLATES
from limner.data.pairs import Pair
from limner.data.tokenizer import clean, texts_of
from limner.embed import embed_texts, ids_of_texts, kept_tensor, measuring, require_finite
from limner.errors import ConfigError, whole_from_one
from limner.evaluation.classified import TOP, class_rows
from limner.evaluation.metrics import Outcome, Row, best_first, calibration, measured_row, share_row
from limner.model.clip import CLIP, ImageLike
from limner.objectives.table import objective
from limner.progress import say
from limner.store.store import fingerprint_now


class ZeroShotClassifier:
    """Names pictures without having been trained to: each class is the mean of its prompts' features.

    A class is its number in `class_names`: two may have the same name, of which the first then gets all pictures.
    `class_names` and `templates` are a text or several: a list, an array, a generator. A class with several names is a
    list or tuple of them: its prompts are those of each. `prompts` are the prompts of each class themselves, in place
    of names in templates. With the folder `keep` the classifier is taken from there if it is there, else put there.
    Raises `ConfigError` for names or templates that cannot be used.
    """

    def __init__(
        self,
        model: CLIP,
        class_names: Any,
        templates: Any = DEFAULT_TEMPLATES,
        *,
        prompts: Sequence[Sequence[str]] = (),
        keep: Path | None = None,
    ) -> None:
        self.model = model
        names, self.templates = _names(class_names), list(texts_of(templates, "The templates"))
        require_names(names, DEFAULT_TEMPLATES if prompts else self.templates)
        self.class_names = [several[0] for several in names]
        self.prompts = [list(several) for several in prompts] or [prompts_of(one, self.templates) for one in names]
        if len(self.prompts) != len(names) or not all(self.prompts):
            raise ConfigError(
                "The prompts",
                must=f"be those of {len(names)} classes, one or more of each",
                got=f"{sum(map(bool, self.prompts))} classes with prompts",
                then="Give a list of sentences for each class.",
            )
        self.fingerprint = fingerprint_of_prompts(self.prompts)
        file = None
        if keep is not None:
            precision = str(model.image.dtype).removeprefix("torch.")
            file = keep / f"classifier-{fingerprint_now(model)[:16]}-{precision}-{self.fingerprint[:16]}.safetensors"
        made = kept_tensor(file, lambda: classifier_weights(model, self.prompts))
        self.weights = made.to(model.logit_scale.device)
        ids = ids_of_texts(model, [prompt for several in self.prompts for prompt in several])
        ends = list(accumulate(map(len, self.prompts)))
        own = [tuple(ids[end - len(several) : end]) for end, several in zip(ends, self.prompts, strict=True)]
        self._firsts = _firsts(own, self.weights)

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


def classifier_weights(model: CLIP, prompts: Sequence[Sequence[str]]) -> Float[Tensor, "classes embed"]:
    """The normalised mean of the normalised features of each class's prompts; on the CPU."""
    features = embed_texts(model, [prompt for several in prompts for prompt in several])
    if len({len(several) for several in prompts}) == 1:
        means = features.unflatten(0, (len(prompts), len(prompts[0]))).mean(dim=1)
    else:
        means = torch.stack([own.mean(dim=0) for own in features.split([len(several) for several in prompts])])
    return F.normalize(means, dim=-1)


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each name in each template, name by name."""
    return [template.replace("{}", name) for name in names for template in templates]


def fingerprint_of_prompts(prompts: Sequence[Sequence[str]]) -> str:
    """A sha256 of the prompts of each class, in the order of the classes."""
    return hashlib.sha256(json.dumps([list(several) for several in prompts]).encode("utf-8", "replace")).hexdigest()


def _names(class_names: Any) -> list[tuple[str, ...]]:
    """The names of each class."""
    if isinstance(class_names, list | tuple) and any(isinstance(one, list | tuple) for one in class_names):
        return [tuple(texts_of(one, "The class names")) for one in class_names]
    return [(one,) for one in texts_of(class_names, "The class names")]


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


def require_names(names: Sequence[tuple[str, ...]], templates: Sequence[str]) -> None:
    """Raise `ConfigError` for names of classes or templates that cannot be used; say what is odd about the others."""
    empty = [place for place, several in enumerate(names) if not several or not all(map(clean, several))]
    if not names or empty:
        raise ConfigError(
            "The class names",
            must="not be empty",
            got=f"an empty one at place {empty[0]}" if empty else "none",
            then='Name two or more: ["cat", "dog"].',
        )
    same: dict[tuple[str, ...], list[str]] = {}  # to the text encoder
    for several in names:
        same.setdefault(tuple(map(clean, several)), []).append(several[0])
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
    metric: str,
    about: dict[str, str],
) -> tuple[list[Row], list[Outcome], list[Prediction], list[tuple[float, float, int]]]:
    """Accuracies and the task's `metric`, over all classes and over those held out of training, what came of each
    picture, its likeliest names, and how often answers are right by how sure they are; `labels` are the right
    classes."""
    scores, right_class = classifier.scores(features).cpu(), torch.tensor(labels)
    keys = [pair.key for pair in pairs]
    rows, outcome = class_rows("zero_shot", scores, right_class, keys, metric, **about)
    held_out = torch.tensor([pair.held_out for pair in pairs])
    if held_out.any():
        rank = torch.tensor(outcome.ranks)[held_out]
        rows += [share_row(f"held_out.top{k}", rank, k, **about) for k in (1, TOP)]
    probabilities = classifier.probabilities(features).cpu()
    sure, named = probabilities.max(dim=1)
    # of a sigmoid's probabilities of rounded sums, none is above 1
    sure, is_right = sure.clamp(0, 1), named == right_class
    _, reliability = calibration(sure, is_right)

    def error(some: Int[Tensor, " some"]) -> float:
        return calibration(sure[some], is_right[some])[0]

    rows.append(measured_row("zero_shot.calibration_error", error, len(labels), **about))
    top, shares = classifier.likeliest(features, TOP)
    right = probabilities[torch.arange(len(labels)), right_class]
    predictions = [
        Prediction(key=key, label=label, held_out=pair.held_out, top=best, probabilities=values, right=share)
        for key, pair, label, best, values, share in zip(
            keys, pairs, labels, top.tolist(), shares.tolist(), right.tolist(), strict=True
        )
    ]
    return rows, [outcome], predictions, reliability
