"""Data sets, label maps, transforms and the procedural street scenes."""
