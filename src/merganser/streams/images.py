"""Images: what an example holds in place of a text, the sources they come from, and the file a run keeps them in.

An image travels encoded (PNG, JPEG, ...), as bytes or as a place in a file, and is decoded when a batch is made: a task
of a hundred thousand pictures needs no memory for their pixels.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.errors import InputError
from merganser.streams.formats import Table, missing_file

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
IMAGE_FIELD, LABEL_FIELD = "image", "label"
"""Fields of the rows of a folder of images and of IDX files."""

_IDX_IMAGES, _IDX_LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


@dataclass(frozen=True)
class Picture:
    """One encoded image: bytes at hand, or a file or a part of one.

    Attributes:
        name: how messages call it.
        data: the encoded bytes, where they are in memory.
        path, offset, size: else the file that holds them, where they begin in it and how many they are (``None``: to
            its end).
    """

    name: str
    data: bytes | None = None
    path: Path | None = None
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            InputError: the file is not there (any more) or cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except FileNotFoundError as error:
            raise missing_file(self.path, self.name) from error
        except OSError as error:
            raise InputError(f"The image {self.name} cannot be read: {error.strerror}.", "Check the file.") from error

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the encoded bytes."""
        return hashlib.sha256(self.read()).hexdigest()

    @cached_property
    def nbytes(self) -> int:
        """Encoded bytes."""
        return self.size if self.size is not None else len(self.read())

    def decode(self, mode: str) -> Image:
        """The image, turned as its camera says, in mode ``L`` (grey) or ``RGB``; of 16 bits the upper ones.

        Raises:
            InputError: it cannot be decoded; names it.
        """
        from PIL import Image, ImageOps

        try:
            opened = Image.open(io.BytesIO(self.read()))
            image = ImageOps.exif_transpose(opened)
            return (_in_eight_bits(image) if _has_sixteen_bits(opened) else image).convert(mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error

    def check(self) -> None:
        """Refuse what is no image, without decoding all its pixels.

        Raises:
            InputError: it is none; names it.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.read())) as image:
                deep = image.mode in ("I", "F") and not _has_sixteen_bits(image)
                image.verify()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error
        if deep:
            raise InputError(
                f"{self.name} has pixels of 32 bits, and nothing says which of their values is white.",
                "Save it with 8 or 16 bits.",
            )

    def _unreadable(self, error: Exception) -> InputError:
        # Pillow names the buffer it was given, which tells nobody anything.
        why = str(error).split("<_io")[0].strip() or type(error).__name__
        return InputError(f"{self.name} is not an image that can be read: {why}.", "Replace the file, or remove it.")


def _has_sixteen_bits(image: Image) -> bool:
    """Whether its greys go from 0 to 65535; Pillow calls those of some formats integers, which have no more there."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def _in_eight_bits(image: Image) -> Image:
    """A grey image of 16 bits in 8, white staying white; Pillow's own conversion cuts off all above 255."""
    import numpy as np
    from PIL import Image as images

    return images.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


def picture_of(value: Any, name: str, folder: Path) -> Picture:
    """The image in a cell of a table: a path (relative to ``folder``), or a mapping with ``bytes`` and ``path`` as
    Parquet files and data sets of the hub hold it.

    Raises:
        InputError: the cell holds neither, or no image is there.
    """
    if isinstance(value, Picture):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        picture = Picture(name, data=value["bytes"])
    elif isinstance(value, Mapping) and isinstance(value.get("path"), str):
        picture = Picture(value["path"], path=folder / value["path"])
    elif isinstance(value, str) and value.strip():
        picture = Picture(value, path=folder / value)
    else:
        raise InputError(f"{name} is no image.", "Give the path of an image file, or the image itself.")
    picture.check()
    return picture


def is_image_source(path: Path) -> bool:
    """Whether a path is read here: a folder, or IDX files by their usual name."""
    return path.is_dir() or _IDX_IMAGES in path.name


def read_images(path: Path, shown: str, classes: Sequence[str] | None = None) -> Table:
    """Rows with the fields ``image`` and ``label``.

    A folder has one sub-folder per class. IDX files are named ``...images-idx3-ubyte`` with ``...labels-idx1-ubyte``
    beside it, both perhaps with ``.gz``; their labels are numbers, or ``classes`` by number.

    Raises:
        InputError: a missing, empty or malformed source, a file that is no image, a class without a name.
    """
    if not path.is_dir():
        return _idx_table(path, shown, classes)
    if classes is not None:
        raise InputError(f"{shown}: 'classes' names class numbers, and a folder's classes have names.", "Remove it.")
    return _folder_table(path, shown)


def _folder_table(folder: Path, shown: str) -> Table:
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not labels:
        raise InputError(f"{shown}: has no sub-folders.", "Put the images of each class into a folder with its name.")
    for label in labels:
        # Sorted by the path's text, so that the order is the same on every file system.
        files = sorted(file for file in (folder / label).rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
        if not files:
            raise InputError(
                f"{shown}/{label}: has no images.",
                f"Put images in ({', '.join(IMAGE_ENDINGS)}), or remove the folder.",
            )
        for file in files:
            picture = Picture(str(Path(shown) / file.relative_to(folder)), path=file)
            picture.check()
            digest.update(f"{label}\0{picture.sha256}\n".encode())
            rows.append({IMAGE_FIELD: picture, LABEL_FIELD: label})
    return Table(shown, folder.resolve().name, rows, range(1, len(rows) + 1), "image", digest.hexdigest())


def _idx_table(path: Path, shown: str, classes: Sequence[str] | None) -> Table:
    images, images_sum = read_idx(path, shown)
    beside = path.with_name(path.name.replace(_IDX_IMAGES, _IDX_LABELS))
    labels, labels_sum = read_idx(beside, shown.replace(_IDX_IMAGES, _IDX_LABELS))
    colour = images.ndim == 4 and images.shape[3] == 3
    if (images.ndim != 3 and not colour) or 0 in images.shape:
        raise InputError(
            f"{shown}: holds an array of shape {images.shape}.", "Images are number x height x width [x 3]."
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{shown}: {len(images)} images, but {beside.name} has labels of shape {labels.shape}.",
            "Give the two files that belong together.",
        )
    names = list(map(str, range(256))) if classes is None else list(classes)
    if (highest := int(labels.max())) >= len(names):
        raise InputError(
            f"{shown}: there is a label {highest}, but 'classes' has {len(names)} names (0 to {len(names) - 1}).",
            "Name every class, in the order of the numbers.",
        )
    # PGM and PPM: a line of header before the raw pixels. What is kept is the same whatever library wrote it.
    header = f"P{6 if colour else 5}\n{images.shape[2]} {images.shape[1]}\n255\n".encode()
    rows = [
        {IMAGE_FIELD: Picture(f"{shown}, image {i}", data=header + image.tobytes()), LABEL_FIELD: names[int(label)]}
        for i, (image, label) in enumerate(zip(images, labels, strict=True), start=1)
    ]
    digest = hashlib.sha256(f"{images_sum} {labels_sum}".encode()).hexdigest()
    return Table(shown, path.name, rows, range(1, len(rows) + 1), "image", digest)


def read_idx(path: Path, shown: str) -> tuple[np.ndarray, str]:
    """The array of unsigned bytes in an IDX file (packed with gzip or not) and the SHA-256 of the unpacked file.

    Format: LeCun's description beside MNIST: two zero bytes, the type (8: unsigned byte), the number of dimensions,
    the dimensions as big-endian 32-bit numbers, the values.

    Raises:
        InputError: a missing or truncated file, or one of another format or type.
    """
    import numpy as np

    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise missing_file(path, shown) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{shown}: cannot be unpacked or read: {error}.", "Fetch the file again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{shown}: is not an IDX file of unsigned bytes.", "Give a file as MNIST's are.")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{shown}: its header announces {math.prod(shape)} bytes of values, and it has {len(content) - start}.",
            "The file is truncated or damaged: fetch it again.",
        )
    array = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    return array, hashlib.sha256(content).hexdigest()


def write_pictures(file: Path, pictures: Iterable[Picture]) -> None:
    """Keep images in one safetensors file: the name of a tensor is the SHA-256 of the encoded image, its bytes are the
    image. Equal images are kept once."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({picture.sha256: np.frombuffer(picture.read(), dtype=np.uint8) for picture in pictures}, file)


def read_pictures(file: Path) -> dict[str, Picture]:
    """What :func:`write_pictures` kept, by SHA-256; the images themselves stay in the file until they are decoded.

    Raises:
        InputError: the file is damaged.
    """
    from merganser.files.safetensors_file import read_header

    tensors, _ = read_header(file)
    return {t.name: Picture(t.name, path=file, offset=t.offset, size=t.nbytes) for t in tensors}
