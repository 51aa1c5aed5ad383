"""A finished run of a tiny model that was never trained."""

from miniatures import TINY
from recyclelora.data.labels import LabelSpace
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import build
from recyclelora.runs.run import Run

SPACE = LabelSpace(("ground", "sky"), ((90, 90, 90), (60, 120, 220)))


def make_run(path, classes=SPACE, **settings):
    """The folder of such a run; `settings` are those of its recipe."""
    adapter = {"r_main": 8, "r_sub": 2} if "method" not in settings else {}
    recipe = make_recipe({"sources": ["streets"], "backbone": TINY, "adapter": adapter, "crop": 32, **settings})
    segmenter = build(recipe, len(classes))
    info = {
        "classes": {"names": list(classes.names), "colours": [list(colour) for colour in classes.colours]},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "parameters": {"backbone": 1, "adapters": 1, "head": 2},
        "sources": [{"label": "streets", "images": 3, "fingerprint": "of the streets"}],
    }
    made = Run(path, recipe, info)
    made.write()
    made.save_result(segmenter)
    return made.path
