"""A trained model for other programs: one file per format, the check of each export, and its model card."""
