"""The labelled images that a model is scored on: which split and how many of each, and which domains are the same."""

import pytest
from untrained import SPACE

from labelled_files import make_cityscapes, refused
from miniatures import write_folder
from recyclelora.data.opening import parse_spec
from recyclelora.evaluation.targets import open_targets, same_domain, seen_labels
from recyclelora.recipe import make_recipe


@pytest.fixture
def town(tmp_path):
    return write_folder(tmp_path / "town", classes=SPACE.names)


def test_each_data_set_is_scored_on_its_usual_split_unless_one_is_given(tmp_path, town):
    texts = [f"cityscapes={make_cityscapes(tmp_path / 'cityscapes')}", "streets:fog", f"town:folder={town}"]
    targets = open_targets(texts, limit=2)
    assert [(t.spec.label, t.split, len(t.domain)) for t in targets] == [
        ("cityscapes", "val", 2), ("streets:fog", "test", 2), ("town", "test", 2),
    ]  # fmt: skip
    assert targets[0].domain.name(0).startswith("frankfurt")
    assert [t.domain.name(0) for t in open_targets(texts[:2], "train", 1)] != [t.domain.name(0) for t in targets[:2]]
    refused(lambda: open_targets(["a:streets", "a:streets:fog"]), "two targets are called 'a'", "LABEL:NAME")


def test_a_limit_by_label_is_for_that_target_alone(town):
    texts = ["streets:fog", "dim:streets:night", f"town:folder={town}"]
    whole = [len(target.domain) for target in open_targets(texts)]
    limited = open_targets(texts, limit={"dim": 5, "town": 2, "not there": 1})
    assert [len(target.domain) for target in limited] == [whole[0], 5, 2]
    assert whole[1] > 5
    assert whole[2] == 4
    for label, count in (("dim", 5), ("town", 2)):  # the same images as by a limit for all
        both = (limited, open_targets(texts, limit=count))
        one, other = (next(t for t in targets if t.spec.label == label) for targets in both)
        assert one.domain.fingerprint() == other.domain.fingerprint()
    assert [len(target.domain) for target in open_targets(texts, limit={})] == whole


def test_a_limit_of_no_images_is_refused():
    for limit in (0, {"streets:fog": 0}):
        refused(lambda limit=limit: open_targets(["streets:fog"], limit=limit), "limit of images is 0", "at least 1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("streets:fog", "night:streets:fog", True),
        ("streets:fog", "streets:night", False),
        ("acdc", "acdc:fog", True),
        ("acdc:rain", "acdc:fog", False),
        ("mapillary", "mapillary-half", True),
        ("cityscapes=/a", "city:cityscapes=/b", True),
        ("cityscapes=/a", "bdd100k=/a", False),
        ("folder=/a", "b:folder=/a/../a", True),
        ("folder=/a", "folder=/b", False),
    ],
)
def test_domains_are_the_same_whatever_their_label_and_place(one, other, same):
    assert same_domain(parse_spec(one), parse_spec(other)) is same
    assert same_domain(parse_spec(other), parse_spec(one)) is same


def test_what_was_trained_on_counts_as_seen():
    recipe = make_recipe({"sources": ["clear:streets:clear"]})
    assert seen_labels(recipe, ["clear:streets:clear", "dim:streets:night", "again:streets:clear"]) == [
        "clear",
        "again",
    ]
