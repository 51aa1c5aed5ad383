"""Videos for the tests, written by OpenCV and not by the library; parts of their containers that are changed."""

import struct

import cv2
import numpy as np

from labelled_files import picture

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".webm": "VP80"}
UPRIGHT = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
TURNED = {
    90: (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    180: (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    270: (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
}
"""The matrix in a track's header (ISO/IEC 14496-12), by how far its frames are turned with the clock."""


def scene(number, size=(48, 64)):
    """A smooth picture, as codecs keep it, that differs from frame to frame."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    channels = [200 * rows / size[0] + 5 * number, 250 * columns / size[1], np.full(size, 20.0 * number)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def filmed(path, count=5, rate=10.0, size=(48, 64), scenes=scene):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODECS[path.suffix]), rate, size[::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.ascontiguousarray(scenes(number, size)[..., ::-1]))
    writer.release()
    return path


def noise(number, size):
    return picture(*size, seed=number)


def as_opencv_reads(path):
    """All frames of a video as RGB, upright."""
    reader, found = cv2.VideoCapture(str(path)), []
    while (frame := reader.read())[0]:
        found.append(frame[1][..., ::-1])
    return found


def turned(path, degrees):
    """Write into a video that its frames are to be shown turned with the clock."""
    content = path.read_bytes()
    at = content.index(struct.pack(">9i", *UPRIGHT), content.index(b"tkhd"))
    path.write_bytes(content[:at] + struct.pack(">9i", *TURNED[degrees]) + content[at + 36 :])
    return path
