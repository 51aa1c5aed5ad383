"""The lean form of a model predicts what the model predicts, from the same weights."""

import pytest
import torch

from recyclelora.exporting.lean import lean
from recyclelora.models.heads import HEADS
from recyclelora.runs.build import build
from tiny_methods import NAMES, images, learn, tiny_recipe


def model(head, **values):
    torch.manual_seed(4)
    segmenter = build(tiny_recipe("recyclelora", head, **values), len(NAMES))
    learn(segmenter)
    return segmenter.eval().requires_grad_(False)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("side", [64, 96])  # 6 patches at 96, 3 at stride 32
def test_the_lean_form_gives_the_same_logits(head, side):
    segmenter = model(head)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    given = images(3, side)
    torch.testing.assert_close(lean(segmenter)(given), segmenter(given), atol=1e-5, rtol=1e-5)
    after = segmenter.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_query_without_a_mask_looks_everywhere_and_others_inside_theirs():
    segmenter = model("mask2former", head_args={"width": 32, "queries": 5, "decoder_layers": 4, "points": 64})
    head = segmenter.head
    seen = []
    for layer in head.transformer_module.decoder.layers:
        layer.cross_attn.register_forward_pre_hook(
            lambda _, args, given: seen.append(given["attn_mask"]), with_kwargs=True
        )
    embedder = head.transformer_module.decoder.mask_predictor.mask_embedder
    last = [module for module in embedder.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight *= 20
    given = images(2, 64)
    expected = segmenter(given)
    of_model = [mask.bool() for mask in seen]
    shares = [mask.float().mean(-1) for mask in of_model]
    assert min(float(share.min()) for share in shares) == 0  # some queries have no mask, and look everywhere
    assert max(float(share.max()) for share in shares) > 0.5
    seen.clear()
    found = lean(segmenter)(given)
    assert len(seen) == len(of_model) == 4
    assert all(torch.equal(added.isneginf(), mask) for added, mask in zip(seen, of_model, strict=True))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
