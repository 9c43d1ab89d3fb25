"""Loss to weights: the loop, the optimizer, the schedule, checkpoints."""
