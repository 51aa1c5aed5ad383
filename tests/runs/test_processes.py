"""Two processes compute what one does, in parts or not: gradients of one step, and weights of a whole training."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from miniatures import SMALL_EOMT, SMALL_HEAD, TINY, write_folder
from recyclelora.data.labels import IGNORE
from recyclelora.recipe import make_recipe, read_recipe
from recyclelora.runs.build import build
from recyclelora.runs.facts import read_validations
from recyclelora.training.train import train
from several_processes import call_together, work_together

SETTINGS = {
    "backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 64, "batch_size": 4, "steps": 5, "workers": 0,
    "optim": {"lr": 0.003},
}  # fmt: skip
HEADS = {"linear": {}, "concat": {"width": 12, "hidden": 8}, "mask2former": {**SMALL_HEAD, "width": 64}}
HEADS["eomt"] = SMALL_EOMT
"""At a width of 32, Mask2Former has one channel per group of a norm, which cancels the bias of a convolution before it:
its gradient is rounding noise, which Adam enlarges."""


def recipe(head):
    return make_recipe({**SETTINGS, "sources": ["streets"], "head": head, "head_args": HEADS[head]})


def batch():
    """Four images with unequal numbers of classes and of labelled pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(5, (4, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[0] = 1
    labels[1, 16:] = IGNORE
    labels[2] = IGNORE
    return images, labels


class Loss(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.segmenter = build(recipe(head), 5)

    def forward(self, images, labels, keys):
        return self.segmenter.loss(images, labels, keys=keys)


def gradients(model, part):
    images, labels = batch()
    model(images[part], labels[part], list(range(4))[part]).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_of_two(rank, head, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}.store", rank=rank, world_size=2)
    found = gradients(DistributedDataParallel(Loss(head), broadcast_buffers=False), slice(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save({name.removeprefix("module."): value for name, value in found.items()}, path)
    dist.destroy_process_group()


@pytest.mark.parametrize("head", HEADS)
def test_gradients_of_two_processes_are_those_of_one(head, tmp_path):
    work_together(2, one_of_two, head, str(tmp_path / "gradients.pt"))
    two, one = torch.load(tmp_path / "gradients.pt"), gradients(Loss(head), slice(0, 4))
    assert two.keys() == one.keys()
    assert any(".recycle_delta_A_main." in name for name in one)
    largest = max(value.abs().max() for value in one.values())
    for name, value in one.items():
        assert (two[name] - value).norm() <= 1e-4 * value.norm() + 1e-7 * largest, name
    assert largest > 0


def check_said(code, out, err):
    assert code == 0, err
    assert "warning:" not in err
    assert out.count("5 steps done") == 1


@pytest.mark.parametrize(
    "head", ["linear", "mask2former", *(pytest.param(head, marks=pytest.mark.slow) for head in ("concat", "eomt"))]
)
def test_two_processes_train_the_weights_of_one(head, tmp_path, monkeypatch):
    import yaml

    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    a, b = (f"folder={write_folder(tmp_path / name, seed=seed)}" for seed, name in enumerate("ab"))
    sources = [a, {"data": b, "rare_classes": {"temperature": 0.1, "min_pixels": 50}}]
    values = {**SETTINGS, "sources": sources, "head": head, "head_args": HEADS[head], "precision": "64-true"}
    values |= {"validation": {"every": 2, "images": 2, "share": 0.5}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    states, losses, scores = [], [], []
    for name in ("one", "two"):
        run = tmp_path / name
        words = ["train", "--recipe", tmp_path / "recipe.yaml", "--out", run]
        if name == "one":
            train(read_recipe(tmp_path / "recipe.yaml"), run)
        elif head == "linear":  # the training starts the other process
            words += ["--set", "devices=2", "--set", "strategy=fsdp"]
            done = subprocess.run([sys.executable, "-m", "recyclelora", *words], capture_output=True, text=True)
            check_said(done.returncode, done.stdout, done.stderr)
        else:
            (code, *said), (other, *nothing) = call_together(2, tmp_path / "said", *words, "--set", "accumulate=2")
            check_said(code, *said)
            assert (other, nothing) == (0, ["", ""])
        assert (run / "metrics.jsonl").read_text().count("\n") == 5
        states.append(load_file(run / "head.safetensors") | load_file(run / "adapter" / "adapter_model.safetensors"))
        scores.append([{**line, "seconds": 0} for line in read_validations(run / "validation.jsonl")])
        losses.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert [line["step"] for line in scores[0]] == [2, 4, 5]
    one, *others = states
    for state, score in zip(others, scores[1:], strict=True):
        assert score == scores[0]
        for name, value in one.items():
            assert value.dtype == torch.float64 or not value.is_floating_point(), name
            torch.testing.assert_close(state[name], value, atol=1e-9, rtol=0)
    assert losses == [pytest.approx(losses[0], rel=1e-6)] * len(losses)
