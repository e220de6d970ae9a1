"""Pictures of more than 8 bits per channel: the upper 8 of them, whatever file they come in."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from titn.pipelines.pictures import opaque

LEVELS = np.arange(65536).reshape(256, 256).astype(np.uint16)


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def png(values: np.ndarray, kind: int) -> bytes:
    """A PNG file of 16 bits per channel, which Pillow does not write in colour; `kind` is PNG's colour type."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(rows: bytes, size: int, bits: int) -> bytes:
    """A grey little-endian TIFF file of one strip."""
    entries = [
        (256, size),
        (257, size),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 0),
        (277, 1),
        (278, size),
        (279, len(rows)),
    ]
    start = 8 + 2 + 12 * len(entries) + 4
    entries[5] = (273, start)
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", 0) + rows


def read(data: bytes, channels: int) -> tuple[str, np.ndarray, bool]:
    """Mode of the file, pixels, whether any was transparent."""
    image = Image.open(io.BytesIO(data))
    mode = image.mode
    picture, transparent = opaque(image, channels)
    return mode, np.asarray(picture), transparent


BIG_ENDIAN = Image.frombytes("I;16B", LEVELS.shape, LEVELS.astype(">u2").tobytes())
GREY = {
    "png": (file_of(Image.fromarray(LEVELS), "PNG"), "I;16"),
    "tiff": (file_of(Image.fromarray(LEVELS), "TIFF"), "I;16"),
    "big-endian tiff": (file_of(BIG_ENDIAN, "TIFF"), "I;16B"),
    "pgm": (file_of(Image.fromarray(LEVELS), "PPM"), "I"),
}


@pytest.mark.parametrize("form", GREY)
def test_of_16_bits_the_upper_8_are_taken(form: str) -> None:
    data, mode = GREY[form]
    assert read(data, 1)[0] == mode
    np.testing.assert_array_equal(read(data, 1)[1], LEVELS >> 8)
    np.testing.assert_array_equal(read(data, 3)[1], (LEVELS >> 8)[..., None].repeat(3, 2))


def test_colours_and_grey_of_16_bits_agree() -> None:
    colours = np.stack([LEVELS, LEVELS.T, LEVELS[::-1]], axis=2)
    mode, pixels, _ = read(png(colours, 2), 3)
    assert mode == "RGB"
    np.testing.assert_array_equal(pixels, colours >> 8)
    np.testing.assert_array_equal(read(png(LEVELS[..., None], 0), 1)[1], LEVELS >> 8)


def test_a_transparent_level_of_16_bits_is_white_and_its_neighbours_are_not() -> None:
    _, pixels, transparent = read(file_of(Image.fromarray(LEVELS), "PNG", transparency=258), 1)
    assert transparent
    np.testing.assert_array_equal(pixels, np.where(LEVELS == 258, 255, LEVELS >> 8))
    assert not read(GREY["png"][0], 1)[2]


def test_a_deep_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6
    upright = read(file_of(Image.fromarray(LEVELS), "PNG", exif=exif), 1)[1]
    np.testing.assert_array_equal(upright, np.rot90(LEVELS >> 8, -1))


def test_of_12_bits_the_upper_8_are_taken() -> None:
    levels = np.arange(4096).reshape(64, 64)
    first, second = levels[:, ::2], levels[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    mode, pixels, _ = read(tiff(packed.tobytes(), 64, 12), 1)
    assert mode == "I;16"
    np.testing.assert_array_equal(pixels, levels >> 4)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="it has 32 bits per channel; convert it to 8 bits"):
        read(file_of(Image.fromarray(LEVELS.astype(kind)), "TIFF"), 3)
