"""Published checkpoints: their names, their formulas, and how one becomes a run."""

KINDS = ("recyclelora", "soma")
"""The methods whose checkpoints can be imported."""
