"""The classes that are painted: the 19 of Cityscapes by name, with their train ids, and void.

They are repeated here, so that the renderer needs nothing else; a test compares them to `recyclelora.data.labels`.
"""

NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
IDS = {name: position for position, name in enumerate(NAMES)}
VOID = 255
"""The label of what belongs to no class, such as the bonnet of the camera's own car."""
