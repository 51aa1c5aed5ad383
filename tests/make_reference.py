"""Writes the project's own reference of the Mask2Former head, `mask2former.safetensors`.

It was written with versions under which the head equals the published one's stored outputs to 1e-5; another version of
transformers must then give the same. Run `python tests/make_reference.py` to write it again after such a check.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

import recyclelora  # noqa: F401  before transformers, where torch is a CPU build
from recyclelora.models.heads.mask2former import Mask2FormerHead

FILE = Path(__file__).parent / "mask2former.safetensors"
CHANNELS, CLASSES = 16, 5
SIZES = {
    "width": 32, "queries": 6, "encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward": 32,
    "decoder_feedforward": 32, "points": 64,
}  # fmt: skip


def make_head():
    return Mask2FormerHead([CHANNELS] * 4, CLASSES, **SIZES).eval()


def main():
    torch.manual_seed(0)
    head = make_head()
    inputs = [torch.randn(2, CHANNELS, 4, 5) for _ in range(4)]
    labels = torch.randint(CLASSES, (2, 8, 10)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    with torch.no_grad():
        content = {f"state.{name}": value for name, value in head.state_dict().items()}
        content |= {f"input.{i}": map_ for i, map_ in enumerate(inputs)}
        for i, (classes, masks) in enumerate(head.predictions(inputs)):
            content |= {f"output.class.{i}": classes, f"output.mask.{i}": masks}
        content |= {"scores": head(inputs, (64, 80)), "labels": labels, "loss": head.loss(inputs, labels, [3, 4])}
    save_file({name: value.contiguous() for name, value in content.items()}, FILE)


if __name__ == "__main__":
    main()
