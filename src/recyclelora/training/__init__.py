"""From a recipe to a finished run: the loop, schedules, batches, checkpoints, and the record of each step."""
