"""One encoded image, decoded when a batch is made: a task of many images needs no memory for their pixels."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.errors import InputError
from merganser.files.documents import open_file
from merganser.streams.formats import missing_file

if TYPE_CHECKING:
    from PIL.Image import Image


def require_pillow() -> None:
    """Refuse to work on images without pillow.

    Raises:
        InputError: pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Reading images needs the package pillow.", "Install it: pip install 'merganser[images]'."
        ) from error


@dataclass(frozen=True)
class Picture:
    """One encoded image (PNG, JPEG, ...): bytes in memory, a file, or a part of a file.

    Attributes:
        name: what messages call it.
        data: the encoded bytes, if they are in memory.
        path, offset, size: otherwise the file that holds them, the position of the first byte in it and their number
            (``None``: to the end of the file).
    """

    name: str
    data: bytes | None = None
    path: Path | None = None
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            InputError: the file does not exist (any more) or cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            with open_file(self.path) as file:
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except FileNotFoundError as error:
            raise missing_file(self.path, self.name) from error
        except OSError as error:
            raise InputError(f"The image {self.name} cannot be read: {error.strerror}.", "Check the file.") from error

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the encoded bytes."""
        return hashlib.sha256(self.read()).hexdigest()

    @cached_property
    def nbytes(self) -> int:
        """Return the number of encoded bytes."""
        return self.size if self.size is not None else len(self.read())

    def decode(self, mode: str) -> Image:
        """Return the image in mode ``L`` (grey) or ``RGB``, its EXIF orientation applied, 16 bits reduced to 8.

        Raises:
            InputError: the image cannot be decoded; the message names it.
        """
        from PIL import Image, ImageOps

        try:
            opened = Image.open(io.BytesIO(self.read()))
            image = ImageOps.exif_transpose(opened)
            return (_to_8_bits(image) if _has_16_bits(opened) else image).convert(mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error

    def check(self) -> None:
        """Check that this is an image, without decoding all its pixels.

        Raises:
            InputError: it is none, or has pixels of an unknown range; the message names it.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.read())) as image:
                has_32_bits = image.mode in ("I", "F") and not _has_16_bits(image)
                image.verify()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error
        if has_32_bits:
            raise InputError(
                f"{self.name} has pixels of 32 bits, whose value for white is unknown.", "Save it with 8 or 16 bits."
            )

    def _unreadable(self, error: Exception) -> InputError:
        # Pillow's message names the buffer in memory, which means nothing to a reader.
        reason = str(error).split("<_io")[0].strip() or type(error).__name__
        return InputError(f"{self.name} is not an image that can be read: {reason}.", "Replace the file, or remove it.")


def _has_16_bits(image: Image) -> bool:
    """Return whether the grey values range from 0 to 65535; Pillow opens such PPM and PNG files in mode ``I``."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def _to_8_bits(image: Image) -> Image:
    """Scale a grey image of 16 bits to 8, white staying white; Pillow's own conversion clips values above 255."""
    import numpy as np
    from PIL import Image as images

    return images.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
