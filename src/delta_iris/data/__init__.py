"""Experience: collecting it, storing it on disk and sampling training batches from it."""

from delta_iris.data.segment import SegmentBatch

__all__ = ["SegmentBatch"]
