"""A training that diverges ends at that step, with an error; a damaged checkpoint leads to the one before it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.errors import DivergedError, UserError
from recyclelora.recipe import make_recipe
from recyclelora.runs.checkpoint import newest_whole, read_state, write_state
from recyclelora.runs.run import open_run
from recyclelora.training.divergence import LARGEST, LossWatch, check_result, check_step
from recyclelora.training.module import SegmentationModule
from recyclelora.training.train import train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return f"folder={write_folder(tmp_path_factory.mktemp('data') / 'town')}"


def recipe(town, **values):
    own = {"backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32, "batch_size": 2, "steps": 6}
    own |= {"workers": 0, "checkpoint_every": 2, "optim": {"lr": 0.003}, "sources": [town]}
    return make_recipe(own | values)


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_rate_of_1e30_is_noticed_at_the_first_step(steps, average, town, tmp_path):
    with pytest.raises(DivergedError, match=r"the largest weight of segmenter\.\S+ is \S+ at step 1; lower optim.lr"):
        train(recipe(town, steps=steps, optim={"lr": 1e30, "average": average}), tmp_path / "run")
    assert not open_run(tmp_path / "run").finished
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_the_training_at_its_step(wrong, town, tmp_path, monkeypatch):
    untouched, seen = SegmentationModule.forward, []

    def step(self, *arguments):
        seen.append(untouched(self, *arguments))
        return seen[-1] * (float(wrong) if len(seen) == 3 else 1)

    monkeypatch.setattr(SegmentationModule, "forward", step)
    with pytest.raises(DivergedError, match=f"the loss is {wrong} at step 3; lower optim.lr"):
        train(recipe(town, checkpoint_every=100), tmp_path / "run")
    assert steps_of(tmp_path / "run") == [1, 2]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_are_judged_by_their_largest():
    model = nn.Linear(2, 2)
    check_step("run", 1, 0.5, model)
    for value in (float("nan"), float("inf"), 2 * LARGEST, -2 * LARGEST):
        model.bias.data[1] = value
        refused(lambda: check_step("run", 3, 0.5, model), "run: the largest weight of bias is", "step 3", "optim.lr")
        frozen = nn.Linear(2, 2).requires_grad_(False)
        frozen.bias.data[1] = value
        check_step("run", 3, 0.5, frozen)
    norm = nn.BatchNorm1d(2)
    norm.running_mean[0] = float("nan")
    refused(lambda: check_result("run", 3, norm, norm), "running_mean of the head holds NaN or infinity")


def test_a_loss_that_stays_far_above_the_first_is_said_once():
    watch = LossWatch()
    assert not any(watch.see(loss) for loss in [2.0, *[21.0] * 99, 19.0, *[21.0] * 99])
    assert "more than 10 times that of the first step (now 21, then 2)" in watch.see(21.0)
    assert not any(watch.see(21.0) for _ in range(300))
    assert LossWatch(2.0).see(500.0) is None


def test_a_loss_that_stays_absurd_is_a_warning_of_the_training(town, tmp_path, monkeypatch):
    monkeypatch.setattr("recyclelora.training.divergence.STEPS", 2)
    monkeypatch.setattr("recyclelora.training.divergence.TIMES", 0.01)
    with pytest.warns(UserWarning, match="run: for 2 steps the loss has been more than 0.01 times"):
        train(recipe(town, steps=3), tmp_path / "run")


def test_a_checkpoint_with_nan_is_neither_written_nor_read(tmp_path, monkeypatch):
    path, state = tmp_path / "a.safetensors", {"state_dict": {"weight": torch.ones(3)}}
    write_state(path, state)
    state["state_dict"]["weight"][1] = float("nan")
    refused(lambda: write_state(path, state), path, "not written", "/state_dict/weight", "lower optim.lr")
    assert read_state(path)["state_dict"]["weight"].tolist() == [1, 1, 1]
    with monkeypatch.context() as patch:
        patch.setattr("recyclelora.runs.checkpoint.nonfinite", lambda state: None)
        write_state(path, state)
    refused(lambda: read_state(path), path, "NaN or infinity at /state_dict/weight")


# Two checkpoints


@pytest.fixture
def stopped(town, tmp_path):
    """The same training twice: one is finished, the other lost its result."""
    whole, cut = (train(recipe(town), tmp_path / name) for name in ("whole", "cut"))
    cut.head.unlink()
    return whole, cut


def test_two_checkpoints_are_kept(stopped):
    run, _ = stopped
    steps = [read_state(path)["step"] for path in (run.checkpoint, run.older_checkpoint)]
    assert steps == [6, 4]
    assert len(list(run.checkpoint.parent.iterdir())) == 2


@pytest.mark.parametrize("damage", ["bit", "cut", "NaN", "missing"])
def test_a_damaged_checkpoint_leads_to_the_one_before(damage, stopped, town, monkeypatch):
    whole, cut = stopped
    content = cut.checkpoint.read_bytes()
    if damage == "bit":
        cut.checkpoint.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif damage == "cut":
        cut.checkpoint.write_bytes(content[:-1])
    elif damage == "missing":  # a stop between setting it aside and writing the new one
        cut.checkpoint.unlink()
    else:
        state = read_state(cut.checkpoint)
        state["state_dict"][next(iter(state["state_dict"]))].view(-1)[0] = float("nan")
        with monkeypatch.context() as patch:
            patch.setattr("recyclelora.runs.checkpoint.nonfinite", lambda state: None)
            write_state(cut.checkpoint, state)
    if damage == "missing":
        train(recipe(town), cut.path, resume=True)
    else:
        with pytest.warns(UserWarning, match="the training goes on from the checkpoint before it") as said:
            train(recipe(town), cut.path, resume=True)
        assert str(cut.checkpoint) in str(said[0].message)
        assert str(cut.older_checkpoint) in str(said[0].message)
    for name in ("head.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(whole.path / name), load_file(cut.path / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert steps_of(cut.path) == [1, 2, 3, 4, 5, 6]


def test_without_a_whole_checkpoint_the_training_is_not_resumed(stopped, town):
    _, cut = stopped
    for path in (cut.checkpoint, cut.older_checkpoint):
        path.write_bytes(b"damaged")
    parts = [cut.checkpoint, "not a checkpoint of this program", "start again with --overwrite"]
    refused(lambda: train(recipe(town), cut.path, resume=True), *parts)
    assert newest_whole(cut.path / "none") is None
    with pytest.raises(UserError):
        newest_whole(cut.path / "none", cut.checkpoint)
