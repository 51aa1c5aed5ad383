"""The images that a training is validated on: of its sources, never trained on, never those of a target."""

import json

import pytest

from labelled_files import ids, picture, refused, write
from miniatures import TINY, write_folder
from recyclelora.data.opening import manifest, open_domain
from recyclelora.recipe import make_recipe
from recyclelora.runs.run import open_run
from recyclelora.training.held_out import hold_out
from recyclelora.training.train import open_sources, train

BASE = {
    "backbone": TINY, "method": "frozen", "crop": 32, "batch_size": 2, "steps": 1, "workers": 0,
    "validation": {"every": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A folder of 20 images without splits."""
    return write_folder(tmp_path_factory.mktemp("flat"), 20)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A folder with 6 images in train and 5 in val."""
    root = tmp_path_factory.mktemp("split")
    write_folder(root / "train", 6)
    write_folder(root / "val", 5, seed=1)
    return root


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """CamVid as published: frames at dusk are in train and test, but not in val."""
    root = tmp_path_factory.mktemp("camvid")
    for part, drives in {"train": ("0006R0", "0001TP"), "val": ("0016E5",), "test": ("Seq05VD", "0001TP")}.items():
        for number in range(8):
            for drive in drives:
                write(root / part / "images" / f"{drive}_{number}.png", picture(seed=number))
                write(root / part / "labels" / f"{drive}_{number}.png", ids(seed=number, classes=12))
    return root


def recipe(*sources, **changes):
    return make_recipe({**BASE, "sources": list(sources), **changes})


def opened(*sources, **changes):
    """Names of the images of each source that are trained on, and of those that are held out, with their split."""
    dataset, held = open_sources(recipe(*sources, **changes))
    return [manifest(domain) for domain in dataset.domains], [(each.split, manifest(each.domain)) for each in held]


def names(spec, split):
    return manifest(open_domain(spec, split))


# Which images


def test_without_a_validation_all_images_are_trained_on(flat, split):
    sources = [f"folder={flat}", f"folder={split}"]
    trained, held = opened(*sources, validation=None)
    assert trained == [names(spec, "train") for spec in sources]
    assert held == []


def test_a_folders_own_split_is_taken_and_nothing_left_out_of_training(split):
    spec = f"town:folder={split}"
    assert opened(spec) == ([names(spec, "train")], [("val", names(spec, "val"))])
    dataset, (held,) = open_sources(recipe(spec))
    (domain,) = dataset.domains
    assert held.domain.label == domain.label == "town"
    assert held.domain.fingerprint() == open_domain(spec, "val").fingerprint()
    assert held.domain.read(0)[1].tolist() != domain.read(0)[1].tolist()  # the names are the same, the images are not


def test_the_own_split_is_taken_evenly_spaced_up_to_the_number(split):
    _, [(_, held)] = opened(f"folder={split}", validation={"images": 2})
    assert held == ["00", "02"]
    _, [(_, held)] = opened(f"folder={split}", validation={"images": 9, "share": 0.1})
    assert len(held) == 5  # the share is of the images of training


def test_rendered_streets_have_a_split_of_their_own():
    trained, held = opened("streets:clear", validation={"images": 4}, targets=["streets:fog", "streets:clear"])
    assert held == [("val", [f"clear_{1_000_000 + 25 * i}" for i in range(4)])]
    assert len(trained[0]) == 1000
    assert not set(trained[0]) & set(names("streets:clear", "test"))


def test_camvid_has_a_split_of_its_own_by_day_and_none_at_dusk(camvid):
    (day, dusk), (of_day, of_dusk) = opened(
        f"camvid:day={camvid}", f"camvid:dusk={camvid}", validation={"images": 3, "share": 0.5}
    )
    assert of_day == ("val", ["0016E5_0", "0016E5_2", "0016E5_5"])
    assert day == [f"0006R0_{i}" for i in range(8)]
    assert of_dusk[0] == "train"
    assert len(of_dusk[1]) == 3
    assert sorted(dusk + of_dusk[1]) == [f"0001TP_{i}" for i in range(8)]


# Never a target


def test_a_split_on_which_a_target_is_scored_is_not_validated_on(split):
    spec = f"town:folder={split}"
    (trained,), [(part, held)] = opened(spec, targets=["streets:fog", f"other:folder={split}"])
    assert part == "train"
    assert len(held) == 1
    assert sorted(trained + held) == names(spec, "train")


def test_a_target_elsewhere_or_on_another_split_leaves_the_own_split(split, tmp_path, camvid):
    other = tmp_path / "split"
    write_folder(other / "train")
    write_folder(other / "val")
    _, [(part, _)] = opened(f"folder={split}", targets=[f"folder={other}"])
    assert part == "val"
    write_folder(other / "test")  # now it is scored on test
    _, [(part, _)] = opened(f"folder={other}", targets=[f"folder={other}"])
    assert part == "val"
    _, [(part, _)] = opened(f"camvid:day={camvid}", targets=[f"camvid:day={camvid}"])
    assert part == "val"


@pytest.mark.parametrize(("target", "part"), [("acdc:night", "val"), ("acdc:fog", "train"), ("acdc", "train")])
def test_a_target_of_all_domains_counts_for_each(target, part, tmp_path):
    for kind in ("train", "val"):
        for number in range(2):
            stem = f"fog/{kind}/GOPR0/{number}"
            write(tmp_path / f"rgb_anon/{stem}_rgb_anon.png", picture(seed=number))
            write(tmp_path / f"gt/{stem}_gt_labelIds.png", ids(seed=number, classes=34))
    _, [(found, _)] = opened(f"acdc:fog={tmp_path}", targets=[f"{target}={tmp_path}"])
    assert found == part


# How many, and which, of a share of train


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 2), ({"share": 0.5}, 10), ({"share": 0.34}, 6), ({"share": 0.01}, 1), ({"share": 0.5, "images": 3}, 3),
        ({"share": 0.5, "images": 10}, 10), ({"images": 1}, 1),
    ],
)  # fmt: skip
def test_at_most_the_share_and_the_number_of_images_are_held_out_but_one(settings, count, flat):
    (trained,), [(part, held)] = opened(f"folder={flat}", validation=settings)
    assert (part, len(held), len(trained)) == ("train", count, 20 - count)


def test_held_out_images_are_drawn_from_the_seed_and_not_trained_on(flat):
    def drawn(seed):
        (trained,), [(_, held)] = opened(f"folder={flat}", seed=seed, validation={"share": 0.5})
        assert trained == sorted(trained)
        assert held == sorted(held)
        assert sorted(trained + held) == [f"{i:02d}" for i in range(20)]
        return held

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(4)}) == 4
    assert drawn(0) != [f"{i:02d}" for i in range(10)]


def test_each_source_gives_of_what_the_recipe_takes_of_it(flat, split):
    sources = [{"data": f"a:folder={flat}", "images": 10}, {"data": f"b:folder={split}"}]
    (first, second), (of_first, of_second) = opened(*sources, limit=4, validation={"share": 0.5})
    assert (len(first), len(of_first[1])) == (2, 2)
    assert (len(second), of_second[0]) == (4, "val")
    whole = opened(*sources, limit=4, validation=None)[0][0]
    assert sorted(first + of_first[1]) == whole


def test_a_source_of_one_image_is_refused(tmp_path):
    spec = f"town:folder={write_folder(tmp_path / 'town', 1)}"
    refused(lambda: opened(spec), "town", "all of its images (1)", "validation", "add images")
    assert opened(spec, validation=None)[0] == [["00"]]


def test_the_domains_are_split_as_they_are_given(flat):
    domain = open_domain(f"folder={flat}", "train").only([3, 5, 8, 13])
    (trained,), (held,) = hold_out(recipe(f"folder={flat}", validation={"share": 0.25}), [domain])
    assert sorted(manifest(trained) + manifest(held.domain)) == ["03", "05", "08", "13"]
    assert len(held.domain) == 1


# What a run says of them


@pytest.fixture(scope="module")
def run(flat, split, tmp_path_factory):
    sources = f"a/b:folder={flat}", f"c:folder={split}"
    return train(recipe(*sources, validation={"share": 0.25, "images": 4}), tmp_path_factory.mktemp("out") / "run")


def test_a_run_lists_both_the_images_trained_on_and_those_held_out(run):
    listed = {file.name: file.read_text().splitlines() for file in run.manifests.iterdir()}
    assert listed.keys() == {"1_a_b.txt", "2_c.txt", "1_a_b_validation.txt", "2_c_validation.txt"}
    (first, second), (of_first, of_second) = opened(
        *(source.data for source in run.recipe.sources), validation={"share": 0.25, "images": 4}
    )
    assert listed["1_a_b.txt"] == first
    assert listed["1_a_b_validation.txt"] == of_first[1]
    assert listed["2_c.txt"] == second
    assert listed["2_c_validation.txt"] == of_second[1]


def test_the_facts_of_a_run_have_splits_numbers_and_fingerprints(run):
    info = json.loads((run.path / "run.json").read_text())
    _, held = open_sources(run.recipe)
    assert [(each["label"], each["split"], each["images"]) for each in info["validation"]] == [
        ("a/b", "train", 4), ("c", "val", 4),
    ]  # fmt: skip
    assert [each["images"] for each in info["sources"]] == [16, 6]
    assert [each["fingerprint"] for each in info["validation"]] == [each.domain.fingerprint() for each in held]
    assert len({each["fingerprint"] for each in info["validation"] + info["sources"]}) == 4
    assert open_run(run.path).info["validation"] == info["validation"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"images": 4}, {"images": 3}), ({"share": 0.25}, {"share": 0.5}), ({"every": 1}, {"every": 2}),
        (None, {"images": 4}), ({"images": 4}, None),
    ],
)  # fmt: skip
def test_a_training_is_not_resumed_with_another_validation(before, after, flat, tmp_path):
    out = tmp_path / "run"
    train(recipe(f"folder={flat}", validation=before), out)
    refused(
        lambda: train(recipe(f"folder={flat}", validation=after), out, resume=True),
        f"{out}/recipe.yaml differs from the given recipe in validation", "--overwrite",
    )  # fmt: skip


def unfinished(split, out, **changes):
    """A training that can be resumed, and its recipe."""
    settings = recipe(f"town:folder={split}", steps=2, checkpoint_every=1, **changes)
    run = train(settings, out)
    run.head.unlink()
    return settings


def test_a_training_is_not_resumed_when_a_held_out_image_has_changed(tmp_path):
    root = tmp_path / "town"
    write_folder(root / "train", 3)
    write_folder(root / "val", 3)
    settings = unfinished(root, tmp_path / "run")
    train(settings, tmp_path / "run", resume=True)
    (tmp_path / "run" / "head.safetensors").unlink()
    write_folder(root / "val", 3, size=(44, 60))
    refused(lambda: train(settings, tmp_path / "run", resume=True), "town: its files have changed", "3 images then")


def test_a_training_is_not_resumed_with_targets_that_change_what_is_held_out(split, tmp_path):
    settings = unfinished(split, tmp_path / "run")
    other = settings.model_copy(update={"targets": [f"folder={split}"]})
    refused(
        lambda: train(other, tmp_path / "run", resume=True),
        "town", "its split val", "on the split train", "the run's own recipe",
    )  # fmt: skip
    train(settings.model_copy(update={"targets": ["streets:fog"]}), tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", ["one folder twice", "a part of the other"])
def test_what_is_held_out_of_one_source_is_not_trained_on_through_another(kind, flat, camvid):
    sources = [f"a:folder={flat}", {"data": f"b:folder={flat / '..' / flat.name}", "images": 15}]
    if kind == "a part of the other":
        sources = [f"all:camvid={camvid}", f"dusk:camvid:dusk={camvid}"]
    dataset, held = open_sources(recipe(*sources, validation={"every": 1, "share": 0.3}))
    trained = {domain.place(index) for domain in dataset.domains for index in range(len(domain))}
    out = [{each.domain.place(index) for index in range(len(each.domain))} for each in held]
    assert trained
    assert all(out)
    assert not trained & set.union(*out)
