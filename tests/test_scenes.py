"""Rendered scenes as a source of labelled images, and scenes kept on disk."""

from types import SimpleNamespace

import numpy as np
import pytest

from recyclelora.data import scenes, streets
from recyclelora.data.labels import IGNORE
from recyclelora.data.scenes import StreetScenes, renderer


@pytest.fixture
def rendered(monkeypatch):
    """The scenes asked for, in place of a renderer that takes longer."""
    calls = []

    def render(seed, domain="clear", size=(16, 32)):
        calls.append((seed, domain))
        rng = np.random.default_rng((seed, len(domain)))
        labels = rng.integers(0, 19, size, dtype=np.uint8)
        labels[0] = IGNORE
        return SimpleNamespace(image=rng.integers(0, 256, (*size, 3), dtype=np.uint8), labels=labels)

    monkeypatch.setattr(streets, "render", render)
    return calls


def test_a_scene_a_seed(rendered):
    source = StreetScenes("fog", [3, 7])
    image, labels = source.read(1)
    assert rendered == [(7, "fog")]
    assert (len(source), source.name(1)) == (2, "fog_0000007")
    assert np.array_equal(source.image(1), image)
    assert image.shape == (*labels.shape, 3)


def test_a_kept_scene_is_rendered_once_and_read_back_exactly(rendered, tmp_path):
    plain, kept = StreetScenes("fog", [3, 7]), StreetScenes("fog", [3, 7], tmp_path / "scenes")
    first = kept.read(1)
    again = StreetScenes("fog", [7], tmp_path / "scenes").read(0)
    assert rendered == [(7, "fog")]
    for a, b, c in zip(plain.read(1), first, again, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
    assert not list(tmp_path.rglob("*.part"))


def test_a_damaged_scene_is_rendered_anew(rendered, tmp_path):
    source = StreetScenes("fog", [3], tmp_path)
    image, _ = source.read(0)
    (file,) = tmp_path.rglob("*.png")
    for content in (b"", file.read_bytes()[:20]):
        file.write_bytes(content)
        assert np.array_equal(source.read(0)[0], image)
    assert len(rendered) == 3


def test_scenes_of_another_renderer_or_domain_are_not_read(rendered, tmp_path, monkeypatch):
    StreetScenes("fog", [3], tmp_path).read(0)
    StreetScenes("rain", [3], tmp_path).read(0)
    monkeypatch.setattr(scenes, "renderer", lambda: "f" * 64)
    StreetScenes("fog", [3], tmp_path).read(0)
    assert rendered == [(3, "fog"), (3, "rain"), (3, "fog")]


def test_the_fingerprint_follows_domain_seeds_and_renderer(tmp_path, monkeypatch):
    sources = [StreetScenes("fog", [3, 7]), StreetScenes("rain", [3, 7]), StreetScenes("fog", [3])]
    prints = [source.fingerprint() for source in sources]
    assert StreetScenes("fog", [3, 7], tmp_path).fingerprint() == prints[0]
    monkeypatch.setattr(scenes, "renderer", lambda: "f" * 64)
    assert len({*prints, sources[0].fingerprint()}) == 4


def test_the_renderer_is_known_by_its_source(tmp_path, monkeypatch):
    assert len(renderer()) == 64
    (tmp_path / "scene.py").write_text("SKY = 1")
    monkeypatch.setattr(streets, "__file__", str(tmp_path / "__init__.py"))
    one = renderer.__wrapped__()
    (tmp_path / "scene.py").write_text("SKY = 2")
    assert len({renderer(), one, renderer.__wrapped__()}) == 3
