"""Many trainings: grids of them, methods side by side, and how trainings change weights and features."""
