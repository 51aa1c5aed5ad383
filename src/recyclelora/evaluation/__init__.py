"""Scores of a trained model on labelled domains, with all that they depend on."""
