"""Several processes that share images give the results of one, to the bit, and end together."""

import json
import sys
import threading

import numpy as np
import pytest

from in_memory import in_memory, read_red
from labelled_files import picture, refused, write
from miniatures import write_folder
from recyclelora.__main__ import main
from recyclelora.data.labels import LabelSpace, unchanged
from recyclelora.evaluation.scores import score_domain
from recyclelora.runs import processes as launching
from recyclelora.runs.sharing import Processes, joined, rounds
from several_processes import Failure, call_together
from tiny_methods import NAMES, made_run, tiny_recipe

ABC = LabelSpace(("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7])
def test_every_image_is_in_one_round_of_one_process(count, world):
    shares = [list(rounds(count, rank, world)) for rank in range(world)]
    assert [index for each in zip(*shares, strict=True) for index in each if index is not None] == list(range(count))


def test_more_devices_than_gpus_are_refused_before_any_process_is_started(monkeypatch):
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(launching.torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(launching, "Fabric", None)
    refused(lambda: joined(3).__enter__(), "devices 3", "this machine has 2 GPUs")


def test_a_notebook_starts_no_processes(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In: ", raising=False)
    monkeypatch.setattr(launching, "Fabric", None)
    refused(lambda: joined(2).__enter__(), "devices 2", "notebook")


def in_threads(world, work):
    """What `work` returns for each of several members that share images, in threads in place of processes."""
    barrier, slots, found = threading.Barrier(world), [None] * world, [None] * world

    class Member(Processes):
        def all_of(self, own):
            slots[self.rank] = own
            barrier.wait(30)
            values = list(slots)
            barrier.wait(30)
            return values

        def sum(self, counts):
            return np.sum(self.all_of(counts), axis=0)

        def _highest(self, number):
            return max(self.all_of(int(number)))

    def member(rank):
        found[rank] = work(Member(rank, world))

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize(("count", "world"), [(7, 2), (7, 3), (6, 3), (2, 4)])
def test_resampled_scores_are_those_of_one_process(count, world):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, count, 6, 5), dtype=np.uint8)
    domain = in_memory("town", unchanged(ABC), list(labels), list(predictions))
    one = score_domain(read_red, ABC, domain, 20)
    assert len(set(one.resampled)) > 1
    assert (
        in_threads(world, lambda processes: score_domain(read_red, ABC, domain, 20, processes=processes))
        == [one] * world
    )


# Several processes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "run", tiny_recipe("lora"))[0].path


@pytest.fixture
def targets(tmp_path):
    """Data sets of five images and of one, of which the last has another height."""
    town = write_folder(tmp_path / "town", count=5, classes=NAMES)
    night = write_folder(tmp_path / "night", count=1, classes=NAMES, seed=9, size=(50, 34))
    return [f"--target=town:folder={town}", f"--target=night:folder={night}", "--pictures=0"]


def call(*arguments):
    """The exit code of the command line in this process."""
    before, sys.argv = sys.argv, ["recyclelora", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


@pytest.mark.parametrize("devices", ["0", "-1"])
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_number_of_devices_that_is_not_positive_is_one_line(verb, devices, run, targets, tmp_path, capfd):
    given = targets if verb == "evaluate" else [tmp_path / "town"]
    assert call(verb, run, *given, "--out", tmp_path / "out.json", "--devices", devices) == 1
    assert capfd.readouterr() == ("", f"error: devices {devices}: expected a whole number from 1 on\n")
    assert not (tmp_path / "out.json").exists()


def contents(folder, suffix):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob(f"*{suffix}")}


def test_an_evaluation_is_that_of_one_process(run, targets, tmp_path):
    arguments = ["evaluate", run, *targets, "--pictures=1", "--out"]
    assert call(*arguments, tmp_path / "one.json") == 0
    first, *others = call_together(3, tmp_path / "said", *arguments, tmp_path / "three.json")
    for suffix in (".json", ".html"):
        assert (tmp_path / f"three{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    assert first[0] == 0
    assert f"written: {tmp_path / 'three.json'}" in first[1]
    assert others == [(0, "", "")] * 2
    assert not list(tmp_path.glob(".*"))


def test_an_error_of_one_process_is_said_once_and_the_evaluation_goes_on(run, targets, tmp_path):
    label = tmp_path / "town" / "labels" / "03.png"  # of the second process
    content = label.read_bytes()
    label.write_bytes(b"damaged")
    arguments = ["evaluate", run, *targets[::-1], "--out", tmp_path / "two.json"]
    (first, second), out = call_together(2, tmp_path / "said", *arguments), tmp_path / "two.json"
    assert first[:2] == (1, "")
    assert first[2].startswith(f"error: {label}: ")
    assert first[2].count("\n") == 1
    assert second == (0, "", "")
    result = json.loads(out.read_text())
    assert (result["complete"], [score["label"] for score in result["targets"]]) == (False, ["night"])
    label.write_bytes(content)
    assert [each[0] for each in call_together(2, tmp_path / "said", *arguments)] == [0, 0]
    assert call("evaluate", run, *targets[::-1], "--out", tmp_path / "one.json") == 0
    assert out.read_bytes() == (tmp_path / "one.json").read_bytes()


@pytest.mark.slow
def test_an_evaluation_that_the_processes_see_otherwise_is_refused(run, targets, tmp_path):
    write_folder(tmp_path / "0", count=2, classes=NAMES)
    write_folder(tmp_path / "1", count=3, classes=NAMES)
    arguments = ["evaluate", run, f"--target=town:folder={tmp_path}/RANK", "--out", tmp_path / "two.json"]
    first, second = call_together(2, tmp_path / "said", *arguments)
    assert first[0] == 1
    assert "the 2 processes found different values of target town" in first[2]
    assert second == (0, "", "")
    assert not (tmp_path / "two.json").exists()


@pytest.fixture
def photos(tmp_path):
    """Five images, one in a folder of its own, one damaged; the height of the fourth is 43."""
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png", "north/e.png")):
        write(tmp_path / "photos" / name, picture(40 + number, 56, seed=number))
    damaged = tmp_path / "photos" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    return tmp_path / "photos"


def listed(out):
    """The images that the record lists with a hash."""
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return [line["image"] for line in lines[1:] if line["sha256"]]


def test_predictions_are_those_of_one_process_and_made_once(run, photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert call("predict", run, photos, "--out", one) == 1
    for said in ("written: 8 pictures in", "written: 0 pictures in"):
        (code, out, err), second = call_together(2, tmp_path / "said", "predict", run, photos, "--out", two)
        assert code == 1
        assert out.startswith(said)
        assert err.startswith(f"error: {photos / 'b.png'}: ")
        assert err.count("\n") == 1
        assert second == (0, "", "")
        assert contents(two, ".png") == contents(one, ".png")
        assert sorted(listed(two)) == listed(one) == ["a", "c", "d", "north/e"]
    assert len(contents(one, ".png")) == 8


@pytest.mark.parametrize("kind", [pytest.param("killed", marks=pytest.mark.slow), "asked"])
def test_a_process_that_ends_early_ends_the_others(kind, run, photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["predict", run, photos, "--out", two]
    first, second = call_together(2, tmp_path / "said", *arguments, failure=Failure(43, kind))
    if kind == "killed":
        assert (first[0], second[0]) == (1, -9)
        assert first[2].startswith("error: another of the 2 processes was ended")
        assert listed(two) == ["a"]
    else:
        assert (first[0], second[0]) == (143, 0)
        assert first[2].startswith("stopped by SIGTERM; go on with: recyclelora predict")
        assert listed(two) == ["a", "c", "d"]  # the round is finished
    assert first[2].count("\n") == 1
    assert second[1:] == ("", "")
    assert call(*arguments) == call("predict", run, photos, "--out", one) == 1
    assert contents(two, ".png") == contents(one, ".png")
