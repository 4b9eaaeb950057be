"""What Lightning iterates over in a training phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from delta_iris.data.loader import SegmentLoader
from delta_iris.data.segment import SegmentBatch, SegmentIndex, SegmentRequest

__all__ = ["PhaseBatches"]


class PhaseBatches:
    """The batches of a training phase in one epoch, without those that were trained on before an interruption.

    Its length includes the latter, because Lightning counts them as done when it resumes an epoch.

    Args:
        loader: reads them.
        request: turns the indices of a batch into what is read.
        indices: episode and first step of each segment of each batch.
        skip: number of batches at the beginning to leave out.
        phase: name of the phase, for messages.
    """

    def __init__(
        self,
        loader: SegmentLoader,
        request: Callable[[list[SegmentIndex]], SegmentRequest],
        indices: list[list[SegmentIndex]],
        skip: int,
        phase: str,
    ) -> None:
        self._loader, self._request, self._indices, self._skip, self._phase = loader, request, indices, skip, phase

    def __iter__(self) -> Iterator[SegmentBatch]:
        return self._loader.batches(map(self._request, self._indices[self._skip :]), self._phase)

    def __len__(self) -> int:
        return len(self._indices)
