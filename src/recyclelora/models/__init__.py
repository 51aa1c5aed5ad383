"""The segmentation model: a backbone with its weights, a head, and the sliding window for images of any size."""
