"""The names in a run's folder, for those who write it and those who read it."""

RECIPE = "recipe.json"  # as resolved
TUNED = "tuned.json"  # the loader's settings that it was last given
METRICS = "metrics.jsonl"  # an entry a line
STARTS = "starts.jsonl"  # what the run was started with, each time
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
CONTINUE = "continue.json"  # there as long as a run was asked to leave and has not gone on
HANG = "hang.txt"  # who did not move, and where each process stood
BAD_BATCHES = "bad_batches.json"  # those whose loss was not finite
LOCK = "run.lock"  # locked by the process that writes into the folder, and removed when it ends in order
HOLDER = "holder.json"  # the heartbeat of that process
