"""What libraries print that a user of this program cannot act on, left out."""

from __future__ import annotations

import logging
import re
import warnings

__all__ = ["quiet_libraries"]

WARNINGS = (
    ".*does not have many workers.*",  # workers read ahead
    ".*`isinstance\\(treespec, LeafSpec\\)`.*",
    ".*pin_memory.*",
    "\\s*Online softmax is disabled",  # the softmax over the few sources of a pixel is unrolled
    ".*Checkpoint directory .* exists and is not empty",  # a resumed run's
)

MESSAGES = re.compile("GPU available|TPU available|HPU available|Tip:|`Trainer.fit` stopped|LOCAL_RANK|Seed set to")
"""Of Lightning: the run's own summary says what matters of them."""


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return MESSAGES.search(record.getMessage()) is None


def quiet_libraries() -> None:
    """Ignore warnings that do not concern the user, and Lightning's advertisements and notes."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_Filter())
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.fabric.utilities.seed"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_Filter())
        logging.getLogger(name).addFilter(_Filter())
