"""Scores on unseen domains."""
