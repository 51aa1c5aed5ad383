"""The page as a browser reads it: what it shows, that it needs nothing else, and that its pictures are exact."""

import json

import numpy as np
import pytest

from html_pages import LOADING, Page
from in_memory import in_memory, read_red
from recyclelora.data.labels import CAMVID, CAMVID_LABELLING, CITYSCAPES, IGNORE, LabelSpace, unchanged
from recyclelora.evaluation.report import Example, Model, print_scores, run_facts, take_examples, write_report
from recyclelora.evaluation.scores import Scores
from recyclelora.pages.plots import loss_curves, miou_bars
from recyclelora.recipe import make_recipe
from recyclelora.runs.run import Run

SPACE = LabelSpace(("road", "sky", "<i>odd</i>"), ((128, 64, 128), (70, 130, 180), (255, 0, 0)))
ODD = '<script>alert("x")</script>'


def scores(**values):
    return [Scores(label, 7, "", value, {"road": value, "sky": None}, []) for label, value in values.items()]


def example(name="a.png", height=20, width=30, predictions=("frozen",), seed=0, classes=(0, 1, 2, IGNORE)):
    rng = np.random.default_rng(seed)
    maps = [rng.choice(np.array(classes, np.uint8), (height, width)) for _ in range(1 + len(predictions))]
    y, x = np.indices((height, width))
    image = np.stack([200 * y // height, 200 * x // width, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    return Example(name, SPACE, image, maps[0], dict(zip(predictions, maps[1:], strict=True)))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 1 / i, "seconds": 0.5 * i}) + "\n" for i in range(1, 9)))
    return path


@pytest.fixture
def write(tmp_path, metrics):
    def write(models, examples=None, name="report.html", **options):
        models = [Model(label, scores(**values), {"rank": f"rank of {label}"}, metrics) for label, values in models]
        return write_report(tmp_path / name, "A title", "A lead.", "full, flip", models, examples or {}, **options)

    return write


TWO = [("frozen", {"clear": 0.5, "fog": 0.25, "void": None}), ("ours", {"clear": 0.4, "fog": 0.46875, "void": 0.0625})]


# What it shows


def test_the_table_has_every_score_in_percent_or_a_dash(write):
    page = Page(write(TWO, seen=["clear"], notes=["one note"]).read_text())
    assert page.tables[0] == [
        ["model", "clear seen", "fog unseen", "void unseen", "mean of unseen"],
        ["frozen", "50.0", "25.0", "–", "25.0"],
        ["ours", "40.0", "46.9", "6.2", "26.6"],
        ["images", "7", "7", "7", ""],
    ]
    assert page.best == [(1, 1), (2, 2), (2, 3)]
    assert [page.texts[tag] for tag in ("h1", "li")] == [["A title"], ["one note"]]
    assert "A lead." in page.texts["p"]
    assert "Protocol: full, flip" in page.texts["p"]


def test_classes_and_facts_have_their_tables(write):
    facts, *classes = Page(write(TWO).read_text()).tables[1:]
    assert facts == [["", "frozen", "ours"], ["rank", "rank of frozen", "rank of ours"]]
    assert classes == [
        [["model", "road", "sky"], ["frozen", frozen, "–"], ["ours", ours, "–"]]
        for frozen, ours in (("50.0", "40.0"), ("25.0", "46.9"), ("–", "6.2"))
    ]


def test_the_plots_are_of_the_scores_and_of_the_losses(write):
    text = write(TWO).read_text()
    assert miou_bars(dict(TWO)) in text
    losses = list(range(1, 9)), [1 / i for i in range(1, 9)]
    assert loss_curves({"frozen": losses, "ours": losses}) in text


def test_a_model_without_metrics_has_no_curve(tmp_path, metrics):
    models = [Model("frozen", scores(clear=0.5)), Model("ours", scores(clear=0.5), {}, metrics)]
    text = write_report(tmp_path / "a.html", "", "", "", models, {}).read_text()
    assert loss_curves({"ours": (list(range(1, 9)), [1 / i for i in range(1, 9)])}) in text


def test_the_mean_is_over_unseen_targets_only(write):
    def means(**options):
        return [row[-1] for row in Page(write(TWO, **options).read_text()).tables[0][1:3]]

    assert means() == ["37.5", "31.0"]
    assert means(seen=["fog", "void"]) == ["50.0", "40.0"]
    assert means(seen=["clear", "fog", "void"]) == ["–", "–"]


def test_a_single_model_is_not_marked_as_the_best(write):
    assert Page(write(TWO[:1]).read_text()).best == []


def test_names_are_text_and_never_markup(tmp_path, metrics):
    model = Model(ODD, scores(**{ODD: 0.5}), {ODD: ODD}, metrics)
    pictures = {ODD: [example(ODD, predictions=[ODD])]}
    text = write_report(tmp_path / "a.html", ODD, ODD, ODD, [model], pictures, notes=[ODD]).read_text()
    page = Page(text)
    assert ODD not in text
    assert "script" not in {tag for tag, _ in page.tags}
    for tag in ("title", "h1", "p", "li", "h3", "text", "summary", "figcaption", "td", "b"):
        assert any(ODD in part for part in page.texts[tag]), tag
    assert SPACE.names[2] in page.texts["span"]
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [ODD, "ground truth", ODD]


def test_the_page_needs_no_other_file(write):
    page = Page(write(TWO, {"clear": [example()]}).read_text())
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in LOADING]
    assert sum(source.startswith("data:image/") for source in sources) == 3
    assert all(source.startswith(("data:", "#")) for source in sources)
    text = write(TWO).read_text()
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")


# Pictures


def test_pictures_show_image_truth_and_predictions_in_exact_colours(write):
    first, second = example("a.png", predictions=["frozen", "ours"]), example("b.png", seed=1)
    page = Page(write(TWO, {"clear": [first], "fog": [second]}).read_text())
    maps = [(first.truth, *first.predictions.values()), (second.truth, *second.predictions.values())]
    images = iter(page.images())
    for shown, labels in zip((first, second), maps, strict=True):
        assert np.abs(next(images).astype(int) - shown.image).max() <= 12  # a photograph loses something
        for ids in labels:
            picture = next(images)
            for class_id, colour in [*enumerate(SPACE.colours), (IGNORE, (0, 0, 0))]:
                assert (picture[ids == class_id] == colour).all()
    assert next(images, None) is None
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        "a.png", "ground truth", "frozen", "ours", "b.png", "ground truth", "frozen",
    ]  # fmt: skip


def test_large_pictures_shrink_and_labels_keep_the_colours_of_classes(write):
    large = example(height=100, width=960, classes=(0, 2))
    page = Page(write(TWO, {"clear": [large]}).read_text())
    assert [picture.shape for picture in page.images()] == [(50, 480, 3)] * 3
    colours = {tuple(colour) for picture in page.images()[1:] for colour in picture.reshape(-1, 3).tolist()}
    assert colours == {SPACE.colours[0], SPACE.colours[2]}  # none that lies between them


def test_targets_of_the_same_classes_share_a_legend(write):
    def with_space(space):
        return Example("a", space, example().image, example().truth, {})

    examples = {"clear": [example()], "fog": [example()], "camvid": [with_space(CAMVID)], "none": []}
    page = write(TWO, examples).read_text()
    assert page.count('<div class="legend">') == 2
    assert "<b>clear, fog</b>" in page
    assert "<b>camvid</b>" in page
    swatches = [a["style"] for tag, a in Page(page).tags if tag == "i"]
    assert swatches[:4] == [f"background:{colour}" for colour in ("#804080", "#4682b4", "#ff0000", "#000")]
    assert len(swatches) == len(SPACE) + len(CAMVID) + 2


# The file


def test_the_same_results_give_the_same_bytes_and_replace_an_old_page(write, tmp_path):
    examples = {"clear": [example()]}
    first = write(TWO, examples, name="deep/er/a.html")
    assert first == tmp_path / "deep/er/a.html"
    second = tmp_path / "b.html"
    second.write_text("an older page")
    assert write(TWO, examples, name="b.html").read_bytes() == first.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.html", "deep"]


# Examples and facts


@pytest.mark.parametrize(
    ("images", "count", "taken"),
    [(10, 2, [2, 7]), (9, 3, [1, 4, 7]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (5, 1, [2]), (4, 0, [])],
)
def test_examples_are_evenly_spaced_and_not_more_than_the_images(images, count, taken):
    domain = in_memory("town", unchanged(CITYSCAPES), [np.zeros((2, 2))] * images)
    assert [each.name for each in take_examples({}, domain, count)] == [f"image {i}" for i in taken]


def test_examples_are_in_the_scored_classes():
    car, bus, unlabelled = CAMVID.id("car"), CITYSCAPES.id("bus"), 11
    domain = in_memory("camvid", CAMVID_LABELLING, [[[car, unlabelled]]], [[[bus, IGNORE]]])
    (taken,) = take_examples({"red": read_red, "void": lambda image: np.full((1, 2), IGNORE, np.uint8)}, domain, 1)
    assert taken.space == CAMVID
    assert taken.truth.tolist() == [[car, IGNORE]]
    assert {name: ids.tolist() for name, ids in taken.predictions.items()} == {
        "red": [[car, IGNORE]], "void": [[IGNORE, IGNORE]],
    }  # fmt: skip
    assert taken.image[0, 0, 0] == bus


def test_large_examples_are_kept_at_the_width_of_the_page():
    labels = np.random.default_rng(0).integers(0, 19, (600, 960), np.uint8)
    domain = in_memory("town", unchanged(CITYSCAPES), [labels])
    (taken,) = take_examples({"same": lambda image: labels}, domain, 1)
    assert taken.image.shape == (300, 480, 3)
    np.testing.assert_array_equal(taken.truth, labels[::2, ::2])
    np.testing.assert_array_equal(taken.predictions["same"], labels[::2, ::2])


def test_facts_say_how_a_run_was_trained(tmp_path, metrics):
    info = {
        "weights_sha256": "0123456789abcdef",
        "parameters": {"adapters": 1234567, "head": 89},
        "sources": [{"label": "clear", "images": 40}, {"label": "fog", "images": 2}],
    }
    settings = {"sources": ["clear", "fog"], "steps": 8, "batch_size": 3, "crop": 64, "seed": 5, "optim": {"lr": 3e-4}}
    run = Run(metrics.parent, make_recipe({**settings, "adapter": {"r_main": 6, "r_sub": 2}}), info)
    assert run_facts(run) == {
        "method": "recyclelora",
        "backbone": "vit_small_patch14_dinov2.lvd142m",
        "base weights": "hub (0123456789ab…)",
        "adapter": "r_main 6, r_sub 2, alpha 1, scaling rank, decomposition rrqr",
        "trained parameters": "1,234,567 + 89 (head)",
        "sources": "clear (40 images), fog (2 images)",
        "steps × batch": "8 × 3, crop 64",
        "learning rate": "0.0003, sub × 0.5",
        "seed": "5",
        "training time": "4 s",
    }
    assert Model.of("ours", run, scores(clear=0.5)) == Model("ours", scores(clear=0.5), run_facts(run), metrics)
    without = Run(tmp_path, run.recipe, info)
    assert Model.of("ours", without, []).metrics is None
    frozen = run_facts(Run(tmp_path, make_recipe({**settings, "method": "frozen"}), info))
    assert (frozen["adapter"], frozen["learning rate"], frozen["training time"]) == ("–", "0.0003", "–")


def test_a_page_without_metrics(tmp_path):
    models = [Model("a", [Scores("clear", 1, "", 0.5, {"road": 0.5}, [])])]
    write_report(tmp_path / "a.html", "", "", "", models, {})


def test_facts_of_an_imported_model_name_its_file(tmp_path):
    imported = {"file": "soma.pth", "file_sha256": "0123456789abcdef", "note": "step 40000"}
    info = {"parameters": {"backbone": 1000, "head": 20}, "sources": [], "imported": imported}
    assert run_facts(Run(tmp_path, make_recipe({"method": "soma"}), info)) == {
        "method": "soma",
        "backbone": "vit_small_patch14_dinov2.lvd142m",
        "checkpoint": "soma.pth (0123456789ab…), step 40000",
        "parameters": "1,000 + 20 (head)",
        "sources": "not known",
    }


def test_the_terminal_shows_one_row_per_model_and_one_column_per_target(capsys):
    print_scores({name: scores(**values) for name, values in TWO}, "full, flip")
    told = capsys.readouterr().out
    assert told.splitlines()[0] == "mIoU (%), protocol full, flip"
    rows = [
        [cell.strip() for cell in line.strip("│┃").split("│" if "│" in line else "┃")] for line in told.splitlines()
    ]
    assert [row for row in rows if len(row) == 5] == [
        ["model", "clear", "fog", "void", "mean of all"],
        ["frozen", "50.00", "25.00", "–", "37.50"],
        ["ours", "40.00", "46.88", "6.25", "31.04"],
    ]
