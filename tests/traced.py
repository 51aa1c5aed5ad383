"""The memory of NumPy arrays, with those that OpenCV returns."""

import tracemalloc


def traced_peak(action):
    """The most bytes that an action takes at once, beyond those before it."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
