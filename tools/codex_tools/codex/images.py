"""Check image files before Codex reads them."""

from __future__ import annotations

import os
from pathlib import Path

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.foreign_file import open_foreign_file

IMAGES_LIMIT = 50 * 1024 * 1024
"""Maximum bytes of all images of a turn.

Providers take about 20 MB. Codex 0.60.1 reads an image of any size: one of 1.5 GB took 16 GB of
memory.
"""

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
"""First bytes of the image formats that models take, beside WebP."""


def check_image(file: Path, before: int) -> int:
    """Check that a model can take *file* as an image; return the bytes of all images so far.

    Args:
        file: The image, without links.
        before: Bytes of the images before it.

    Raises:
        InvalidArguments: The file is not an image, or the images are too large.
    """
    try:
        with open_foreign_file(file) as data:
            size = os.fstat(data.fileno()).st_size
            start = data.read(12)
    except OSError as error:
        raise InvalidArguments([f"images: {file} cannot be read: {error.strerror}"]) from None
    if before + size > IMAGES_LIMIT:
        raise InvalidArguments(
            [
                f"images: with {file} of {size:,} bytes, the images have {before + size:,} bytes;"
                f" the limit is {IMAGES_LIMIT:,} bytes in all"
            ]
        )
    if not start.startswith(_IMAGES) and not (start[:4], start[8:]) == (b"RIFF", b"WEBP"):
        raise InvalidArguments([f"images: {file} is not an image in PNG, JPEG, GIF or WebP format"])
    return before + size
