"""Evaluation on the way: the same functions as `limner eval`, on the weights of the moment, which stay as they are."""

import copy
from dataclasses import replace

from torch.distributed.tensor import DTensor

from limner.config import RunConfig
from limner.data.sources.read import split_pairs
from limner.errors import LimnerError
from limner.evaluation.metrics import Row, describe_row
from limner.evaluation.suite import How, evaluate_task
from limner.evaluation.tasks import Task, read_task, task_of
from limner.model.clip import CLIP
from limner.progress import quiet
from limner.store.store import filled
from limner.training.checkpoint import gathered
from limner.training.world import World


def task_on_the_way(config: RunConfig) -> Task | None:
    """What a run is measured on every so many steps, if it is; a linear probe takes too long for that.

    Raises `DataError` for data that cannot be measured on.
    """
    if not config.evaluate_every:
        return None
    if path := config.evaluate_data or config.test:
        return replace(read_task(path), train=None, validation=None)
    assert config.data is not None
    _, kept_back = split_pairs(config.data, config.data_weights, holdout=config.holdout)
    return task_of(kept_back, name="kept back")


def measure(model: CLIP, task: Task, world: World) -> list[Row]:
    """The rows of a task for the model in training, whose ranks share the pictures; every rank calls this.

    What goes wrong is said, and no reason to stop. Neither the weights nor any random state is touched.
    """
    cut = model.tokenizer.cut if model.tokenizer else 0
    whole = _whole(model, world)
    try:
        with quiet(unless=world.rank == 0):
            evaluation = evaluate_task(whole, task, How(group=world.group))
    except LimnerError as error:
        world.say(f"Not measured on the way: {error}")
        return []
    finally:
        if model.tokenizer:
            model.tokenizer.cut = cut  # of captions, for the run's own count
    first = {row.metric.partition(".")[0]: row for row in reversed(evaluation.rows)}
    world.say("; ".join(f"{row.task} {row.metric} {describe_row(row)[0]}" for row in first.values()) + ".")
    return evaluation.rows


def _whole(model: CLIP, world: World) -> CLIP:
    """The model, or, where its weights are shared among the ranks, a whole one with the same weights."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    weights = gathered(model.state_dict(), world, on_all=True)
    return filled(model.architecture, weights, copy.copy(model.tokenizer), where="the run").to(world.device)
