"""Several processes share the factorisations of a model: each layer once, and the same factors in all."""

import os

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from recyclelora.adapter import RecycleLoraConfig, draw
from recyclelora.adapter.draw import draw_factors, shared_among_processes, shares
from several_processes import work_together

CONFIG = {"r_main": 4, "r_sub": 2}


def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 16), (16, 16), (48, 16), (16, 48), (12, 12)]
    return {f"blocks.{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 100), max_size=20), st.integers(1, 6))
def test_each_name_is_in_one_share_and_none_is_too_large(work, count):
    parts = shares(work, count)
    assert len(parts) == count
    assert sorted(name for part in parts for name in part) == sorted(work)
    loads = [sum(work[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(work.values(), default=0)
    assert shares(dict(reversed(work.items())), count) == parts


def one_of_two(rank, folder):
    """What each call has factorised and given, or the error; all calls in one go, as processes start slowly."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    os.environ["RECYCLELORA_CACHE"] = f"{folder}/cache"
    made, plain = [], draw.initial_factors

    def counted(weight, *rest):
        made.append(tuple(weight.shape))
        return plain(weight, *rest)

    draw.initial_factors = counted
    calls = []
    spoilt = weights()
    spoilt["blocks.1"][0, 0] = torch.nan
    for given_weights, cached in ((weights(), True), (weights(), True), (spoilt, False)):
        made.clear()
        with shared_among_processes():
            try:
                found = draw_factors(given_weights, RecycleLoraConfig(**CONFIG, cache_factors=cached))
                calls.append(({name: (each.basis, each.index) for name, each in found.items()}, list(made)))
            except ValueError as error:
                calls.append(str(error))
    alone = draw_factors({"a": weights()["blocks.0"]}, RecycleLoraConfig(**CONFIG))  # the other one does not take part
    calls.append(alone["a"].basis.shape)
    torch.save(calls, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_factorise_each_layer_once_and_all_get_it(tmp_path):
    work_together(2, one_of_two, tmp_path)
    calls = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    expected = draw_factors(weights(), RecycleLoraConfig(**CONFIG))
    shapes = sorted(tuple(weight.shape) for weight in weights().values())
    for number in (0, 1):
        for found, _ in (each[number] for each in calls):
            assert found.keys() == expected.keys()
            for name, (basis, index) in found.items():
                assert torch.equal(basis, expected[name].basis)
                assert torch.equal(index, expected[name].index)
    made = [each[0][1] for each in calls]
    assert sorted(made[0] + made[1]) == shapes
    assert all(made)
    assert [each[1][1] for each in calls] == [[], []]  # read from the cache
    assert len(list((tmp_path / "cache" / "factors").iterdir())) == len(shapes)
    # A weight that cannot be factorised is named in both processes, of which one had it.
    assert calls[0][2] == calls[1][2]
    assert "layer 'blocks.1': " in calls[0][2]
    assert "NaN" in calls[0][2]
    assert [each[3] for each in calls] == [(24, 6), (24, 6)]
