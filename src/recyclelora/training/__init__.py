"""Optimiser groups and schedules, the training module, checkpoints."""
