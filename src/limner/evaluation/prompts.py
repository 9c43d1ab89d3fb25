"""The prompts of zero-shot classification: read from a file, or chosen from many by forward selection.

```
pictures with labels ─> two parts: one to choose by, one held out
templates ─> features [templates classes embed] ─> the best one, then whichever helps most beside those before it
          ─> until none helps ─> accuracy of the choice on the held-out part, beside that of all and of the usual ones
```

The paper's authors found by such a selection that seven templates do slightly better than all of their eighty.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limner.data.pairs import lines_of
from limner.data.tokenizer import clean
from limner.embed import embed_images, embed_texts
from limner.errors import ConfigError, DataError
from limner.evaluation.classified import METRICS
from limner.evaluation.intervals import wilson
from limner.evaluation.probe import held_out
from limner.evaluation.tasks import Task
from limner.evaluation.zero_shot import prompts_of, require_names
from limner.files import read_json, write_text
from limner.model.clip import CLIP
from limner.progress import progress

HELD_OUT = 0.5
"""The share of the pictures of each class that the choice is measured on."""
TEMPLATES = (
    "{}",
    "a {}.",
    "the {}.",
    "this is a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a blurry photo of a {}.",
    "a good photo of a {}.",
    "a poor photo of a {}.",
    "a black and white photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a photo of a {} from above.",
    "an aerial photo of a {}.",
    "a satellite image of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a sketch of a {}.",
    "a painting of a {}.",
    "a cartoon of a {}.",
    "an icon of a {}.",
    "a rendering of a {}.",
    "a toy {}.",
    "a {} in the wild.",
    "a {} on a plain background.",
    "a photo of a {}, seen from the side.",
    "a photo of a person doing {}.",
    "a photo of {}, a kind of food.",
    "a photo of a {}, a kind of animal.",
    "a photo of a {}, a kind of plant.",
    "a texture that is {}.",
    'the word "{}".',
    'the number "{}".',
)
"""What is chosen from where nothing else is given."""


# --- read ------------------------------------------------------------------------------------------------------------


def with_prompts(task: Task, file: Path | None) -> Task:
    """A task with the prompts in a file: templates, one a line or in a JSON list, or a JSON object that holds the
    sentences of each class by its id or name. None: the task as it is.

    Raises `ConfigError` for a file that holds something else, or not a sentence for each class.
    """
    if file is None:
        return task
    told = read_prompts(file)
    if not task.classes.ids:
        return task
    if isinstance(told, list):
        return replace(task, templates=tuple(told), prompts=())
    said: dict[str, object] = {}
    for name, sentences in told.items():
        if clean(name) in said:
            raise ConfigError(
                f"The prompts {file}", must="name each class once", got=f"{name!r} twice", then="Join the two."
            )
        said[clean(name)] = [sentences] if isinstance(sentences, str) else sentences
    are_numbered = list(task.classes.ids) == list(map(str, range(len(task.classes.ids))))
    prompts, missing = list[tuple[str, ...]](), list[str]()
    for one, names in zip(task.classes.ids, task.classes.names, strict=True):
        order = (*names, one) if are_numbered else (one, *names)  # the name 3 is not the class of the third line
        found = next((said[known] for name in order if (known := clean(name)) in said), None)
        if not isinstance(found, list) or not found or not all(isinstance(each, str) and clean(each) for each in found):
            missing.append(names[0] if are_numbered else one)
            continue
        filled = [(each, names if "{}" in each else names[:1]) for each in found]
        prompts.append(tuple(each.replace("{}", name) for each, several in filled for name in several))
    if missing:
        raise ConfigError(
            f"The prompts {file}",
            must=f"hold a sentence for each of the {len(task.classes.ids)} classes of {task.path}",
            got=f"none for {', '.join(missing[:5])}",
            then="Write the class as its folder, its label or its name is written.",
        )
    return replace(task, prompts=tuple(prompts))


def read_prompts(file: Path) -> list[str] | dict[str, object]:
    """The templates in a file, one a line or a JSON list, with {} or {c} for the name; or a JSON object of the
    sentences of each class. Raises `ConfigError` for a file that is not there or holds something else."""
    if not file.is_file():
        raise ConfigError(f"The prompts {file}", must="be a file", got="none", then="Check its path.")
    if file.suffix.lower() != ".json":
        return [line.replace("{c}", "{}") for line in lines_of(file) if line.strip()]
    told = read_json(file)
    if isinstance(told, list) and all(isinstance(one, str) for one in told):
        return [one.replace("{c}", "{}") for one in told]
    if isinstance(told, dict):
        return told
    raise ConfigError(
        f"The prompts {file}",
        must="be a list of templates, or an object of class and sentences",
        got=type(told).__name__,
        then='For example: {"cat": ["a photo of a cat, a pet."]}.',
    )


# --- chosen ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Templates that were chosen, and what they are worth."""

    templates: list[str]
    """In the order in which they were taken."""
    chosen_by: int
    """Pictures that they were chosen by."""
    held_out: int
    """Other pictures, on which the accuracies below are measured."""
    accuracy: float
    low: float
    high: float
    """Of the chosen templates, with its 95 % interval (Wilson)."""
    accuracy_of_all: float
    accuracy_of_usual: float
    """Of all templates together, and of those that limner eval takes where none are given."""


def choose_templates(model: CLIP, task: Task, templates: Sequence[str] = (), *, keep: Path | None = None) -> Choice:
    """The templates, of `templates`, that together name the pictures of a task best; it is measured on its training
    pictures if it has any. Without templates it chooses from those beside the pictures and from `TEMPLATES`.

    Raises `DataError` for a task without single labels, and `ConfigError` for templates without a slot.
    """
    split, templates = task.train or task.test, templates or (*task.templates, *TEMPLATES)
    require_names(list(task.classes.names) or [()], templates)
    embedded = embed_images(model, split.source, keep=keep)
    labels = [split.labels[index] for index in embedded.indices]
    there = [place for place, label in enumerate(labels) if isinstance(label, int)]
    if len(there) < 4 or len({labels[place] for place in there}) < 2:
        raise DataError(
            f"The task {task.path}",
            must="have pictures of several classes, one class each",
            got=f"{len(there)} of them",
            then="Give more pictures.",
        )
    features, own = embedded.features[there], torch.tensor([labels[place] for place in there])
    is_held = torch.from_numpy(held_out(own.numpy(), HELD_OUT, seed=1))
    every = list(dict.fromkeys([*templates, *task.templates]))
    of_templates = torch.stack([_class_features(model, task, template) for template in every])

    def value(some: Sequence[int], part: Tensor) -> float:
        classes = F.normalize(of_templates[list(some)].mean(dim=0), dim=-1)
        return METRICS["top1"](features[part] @ classes.T, own[part])

    wanted = [every.index(template) for template in dict.fromkeys(templates)]
    taken = forward_selection(wanted, lambda some: value(some, ~is_held))
    share, count = value(taken, is_held), int(is_held.sum())
    low, high = wilson(share, count)
    return Choice(
        templates=[every[place] for place in taken],
        chosen_by=int((~is_held).sum()),
        held_out=count,
        accuracy=share,
        low=low,
        high=high,
        accuracy_of_all=value(wanted, is_held),
        accuracy_of_usual=value([every.index(one) for one in task.templates], is_held),
    )


def forward_selection(candidates: Sequence[int], value: Callable[[Sequence[int]], float]) -> list[int]:
    """Candidates one after the other, each time the one that gives those taken the highest value, of equal ones the
    first, until none makes it higher."""
    taken, best = list[int](), float("-inf")
    with progress("Choosing templates", len(candidates)) as advance:
        while left := [one for one in candidates if one not in taken]:
            values = {one: value([*taken, one]) for one in left}
            chosen = max(left, key=values.__getitem__)
            if values[chosen] <= best:
                break
            taken, best = [*taken, chosen], values[chosen]
            advance(len(taken))
    return taken


def write_choice(file: Path, choice: Choice) -> None:
    """Write the templates as a prompts file, which `limner eval --prompts` reads."""
    write_text(file, json.dumps(choice.templates, indent=1, ensure_ascii=False) + "\n")


def _class_features(model: CLIP, task: Task, template: str) -> Float[Tensor, "classes embed"]:
    """The mean of the features of each class's names in a template."""
    counts = [len(names) for names in task.classes.names]
    features = embed_texts(model, [one for names in task.classes.names for one in prompts_of(names, [template])])
    return torch.stack([own.mean(dim=0) for own in features.split(counts)])
