"""Loss to weights: what a run needs, its loop, the step, the guard, the optimizer, checkpoints, many ranks."""
