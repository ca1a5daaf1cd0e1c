"""The names in a run's folder, for those who write it and those who read it."""

RECIPE = "recipe.json"  # as resolved
METRICS = "metrics.jsonl"  # an entry a line
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
