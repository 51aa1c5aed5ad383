"""Rendered scenes as labelled images, and scenes kept on disk."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from recyclelora import streets
from recyclelora.data.labels import IGNORE
from recyclelora.data.scenes import StreetScenes


@pytest.fixture
def rendered(monkeypatch):
    """Records the requested scenes and replaces the renderer, which takes longer."""
    calls = []

    def render(seed, domain="clear", size=(16, 32)):
        calls.append((seed, domain))
        rng = np.random.default_rng((seed, len(domain)))
        labels = rng.integers(0, 19, size, dtype=np.uint8)
        labels[0] = IGNORE
        return SimpleNamespace(image=rng.integers(0, 256, (*size, 3), dtype=np.uint8), labels=labels)

    monkeypatch.setattr(streets, "render", render)
    return calls


def test_there_is_one_scene_per_seed(rendered):
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


def test_a_damaged_scene_is_rendered_again(rendered, tmp_path):
    source = StreetScenes("fog", [3], tmp_path)
    image, _ = source.read(0)
    (file,) = tmp_path.rglob("*.png")
    for content in (b"", file.read_bytes()[:20]):
        file.write_bytes(content)
        assert np.array_equal(source.read(0)[0], image)
    assert len(rendered) == 3


def test_scenes_of_another_version_or_domain_are_not_read(rendered, tmp_path, monkeypatch):
    StreetScenes("fog", [3], tmp_path).read(0)
    StreetScenes("rain", [3], tmp_path).read(0)
    monkeypatch.setattr(streets, "VERSION", streets.VERSION + 1)
    StreetScenes("fog", [3], tmp_path).read(0)
    assert rendered == [(3, "fog"), (3, "rain"), (3, "fog")]


def test_a_kept_scene_lies_under_version_domain_and_seed(rendered, tmp_path):
    StreetScenes("fog", [3], tmp_path).read(0)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file == tmp_path / f"v{streets.VERSION}" / "fog" / "0000003.png"


def test_the_fingerprint_follows_domain_seeds_and_version(tmp_path, monkeypatch):
    sources = [StreetScenes("fog", [3, 7]), StreetScenes("rain", [3, 7]), StreetScenes("fog", [3])]
    prints = [source.fingerprint() for source in sources]
    assert StreetScenes("fog", [3, 7], tmp_path).fingerprint() == prints[0]
    monkeypatch.setattr(streets, "VERSION", streets.VERSION + 1)
    assert len({*prints, sources[0].fingerprint()}) == 4


def test_nothing_but_the_version_changes_a_fingerprint(monkeypatch):
    """The renderer's code and other libraries do not change it, so results stay comparable as long as pixels do."""
    monkeypatch.setattr(streets, "VERSION", 1)
    monkeypatch.setattr(np, "__version__", "0")
    monkeypatch.setattr(cv2, "__version__", "0")
    assert StreetScenes("fog", [3, 7]).fingerprint() == (
        "7d8e4809280245e63250a025d21cd8c8f22fe930a730ac8cde4b6e8f773e7e9a"
    )


def test_labels_and_stamps_are_those_of_the_scene(rendered, tmp_path, monkeypatch):
    source = StreetScenes("fog", [3, 7])
    assert np.array_equal(source.labels(1), source.read(1)[1])
    stamps = [source.stamp(0), source.stamp(1), StreetScenes("rain", [3]).stamp(0)]
    assert StreetScenes("fog", [3], tmp_path).stamp(0) == stamps[0]
    monkeypatch.setattr(streets, "VERSION", streets.VERSION + 1)
    assert len({*stamps, source.stamp(0)}) == 4
