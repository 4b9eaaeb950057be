"""Reading what `torch.save` wrote: each record is verified before anything is unpickled."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from delta_iris.files import open_regular

__all__ = ["load_archive"]

MAX_PICKLE_BYTES = 1 << 26
"""Largest pickle of an archive, tensors not counted. Those of this project have some hundred kilobytes."""

PLAIN_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (\w+Storage|Size|device)"
    r"|_codecs encode|(builtins|__builtin__) set"
)
"""What a pickle may name. PyTorch's own list has classes that allocate any amount of memory, such as `bytearray`."""


def load_archive(path: Path) -> Any:
    """Map an archive of `torch.save` into memory. Only tensors and plain values can be loaded, never code.

    The checksums of all records are verified, which reads the file once.

    Args:
        path: of the file.

    Raises:
        UserError: if it is no regular file or cannot be read.
        Exception: of any type, if it is damaged.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        size = path.stat().st_size
        records = archive.infolist()
        if len({record.filename for record in records}) < len(records):
            raise ValueError("two records have the same name")
        if sum(record.file_size for record in records) > size:
            raise ValueError("its records are larger than the file")
        for record in records:
            _verify(archive, record)
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} records data.pkl instead of one")
        _refuse_code(archive.read(pickles[0]))
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _verify(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    parts = record.filename.split("/")
    if record.filename.startswith("/") or "\\" in record.filename or ".." in parts:
        raise ValueError(f"its record {record.filename!r} lies outside of it")
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise ValueError(f"its record {record.filename!r} is compressed")
    with archive.open(record) as content:
        while content.read(1 << 20):  # compares the CRC-32 at the end
            pass


def _refuse_code(pickled: bytes) -> None:
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(pickled)} bytes")
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not PLAIN_GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"it holds code: {str(argument)[:100]!r}")
