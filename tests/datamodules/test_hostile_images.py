"""Pictures and tables of a stranger: no program is started, nothing large is decoded, no file elsewhere is read."""

import os
import pickle
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.folder import FolderImages
from datamodules.images.nyu import NYUDepth
from datamodules.images.pairs import item_of
from datamodules.labels import Labels
from sdprobe.reports.similarity import picture
from sdprobe.utilities.errors import InputError

MEMORY = 200  # MiB that opening a picture may take


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 10)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + directory + bytes(4)


SIDE = 50_000
ZEROS = zlib.compress(bytes(2**27))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(evil) (w) file closefile\nshowpage\n%%EOF\n"
HOSTILE = {
    "PostScript": EPS,
    "PostScript with a preview": struct.pack("<IIIIIIIHH", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0xFFFF, 0) + EPS,
    "PDF": b"%PDF-1.4\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "SVG with entities": b'<!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
    "Windows metafile": b"\xd7\xcd\xc6\x9a\0\0"
    + struct.pack("<hhhhH", 0, 0, 64, 64, 72)
    + bytes(6)
    + b"\x01\0\x09\0"
    + bytes(90),
    "font": b"\0\1\0\0\0\x0c\0\x80\0\3\0\x40" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 5000,
    "Photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + bytes(100),
    "icon": struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, 100, 22) + bytes(100),
    "sun raster": struct.pack(">8I", 0x59A66A95, 64, 64, 8, 4096, 1, 0, 0) + bytes(4096),
    "pickle": pickle.dumps(os.system),
    "PNG bomb": png(SIDE, SIDE),
    "PNG just above the limit": png(13_400, 13_400),
    "PNG, greatest": png(2**31 - 1, 2**31 - 1),
    "PNG with a bomb of text": png(64, 64, chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "PNG with a bomb of a profile": png(64, 64, chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "PNG with deep EXIF": png(64, 64, chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08" + bytes(4))),
    "PPM bomb": b"P6 50000 50000 255\n" + bytes(100),
    "PGM, greatest": b"P5 99999999999 99999999999 255\n" + bytes(100),
    "GIF bomb": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;",
    "BMP bomb": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF bomb": tiff(SIDE, SIDE),
    "JPEG bomb": b"\xff\xd8\xff\xc0\0\x11\x08"
    + b"\xff" * 4
    + b"\3\1\x22\0\2\x11\1\3\x11\1\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0",
    "JPEG 2000 bomb": b"\xff\x4f\xff\x51\0\x2f\0\0"
    + struct.pack(">8IH", SIDE, SIDE, 0, 0, SIDE, SIDE, 0, 0, 3)
    + b"\7\1\1" * 3,
    "WebP bomb": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff\xff\xff\xff" + bytes(8),
}
READERS: dict[str, Callable[[Path], object]] = {
    "folder": lambda file: FolderImages(str(file.parent), size=64)[0],
    "pairs": lambda file: item_of(file, 64, "pad"),
    "similarity": lambda file: picture(file, 64),
    "depth": lambda file: NYUDepth(str(file.parent), size=64)[0],
}


@pytest.fixture
def traps(tmp_path: Path, monkeypatch) -> Path:
    """Programs that decoders might start; each leaves a file."""
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin64c", "convert", "inkscape", "rsvg-convert"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "started"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_picture_starts_no_program_and_fills_no_memory(name: str, tmp_path: Path, traps: Path) -> None:
    (tmp_path / "pictures").mkdir()
    before = peak()
    for reader, ending in [*((reader, ".png") for reader in READERS), ("folder", ".jpg"), ("similarity", ".eps")]:
        file = tmp_path / "pictures" / f"rgb_0{ending}"
        file.write_bytes(HOSTILE[name])
        (tmp_path / "pictures" / "sync_depth_0.png").write_bytes(HOSTILE[name])
        with pytest.raises(InputError, match=r"^Expected .*rgb_0.* cannot be (decoded|read)"):
            READERS[reader](file)
        with pytest.raises(InputError, match=r"cannot be decoded"):
            NYUDepth(str(file.parent), size=64).depth(0) if ending == ".png" else READERS["pairs"](file)
        file.unlink()
    assert not traps.exists()
    assert peak() - before < MEMORY


def peak() -> float:
    """Greatest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def test_the_traps_work(tmp_path: Path, traps: Path) -> None:
    """PIL itself starts Ghostscript for the same file."""
    (tmp_path / "e.png").write_bytes(HOSTILE["PostScript"])
    with pytest.raises(Exception, match=""), Image.open(tmp_path / "e.png") as opened:
        opened.load()
    assert traps.exists()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "bmp", "gif", "ppm", "pgm", "avif", "jp2"])
def test_pictures_of_every_format_are_read(ending: str, tmp_path: Path) -> None:
    kind = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000", "pgm": "ppm"}.get(ending, ending)
    if kind.upper() not in Image.SAVE:
        pytest.skip(f"this installation has no {kind}")
    Image.new("L" if ending == "pgm" else "RGB", (70, 70), "white").save(tmp_path / f"x.{ending}", kind)
    assert FolderImages(str(tmp_path), size=64)[0]["image"].min() > 0.95


def array(shape: str = "(1, 3)", kind: str = "<i8", content: bytes = bytes(24)) -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


LABELS = {
    "pickle": pickle.dumps(os.system),
    "array of objects": array(kind="|O", content=pickle.dumps([os.system])),
    "huge shape": array("(999999999999, 3)"),
    "greatest shape": array("(9223372036854775807, 9223372036854775807)"),
    "negative shape": array("(-1, 3)"),
    "code in the header": array("__import__('os').mkdir('evil')"),
    "deep header": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000,
    "text": array(kind="<U6", content="abcdefghijklmnopqr".encode("utf-32-le")),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_a_stranger_run_nothing(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "labels.npy").write_bytes(LABELS[name])
    with pytest.raises(InputError, match=r"labels\.npy"):
        Labels("labels.npy", 8, FolderImages("pictures", size=64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "pictures"]


@pytest.mark.parametrize("name", ["\x1b[2J\x1b[31m", "a\nError: all is well", "[red]", "$\\frac{", "\u202egnp.exe", "{0}%s%n"])
def test_names_of_pictures_are_text(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        FolderImages(str(tmp_path), size=64)[0]
    assert str(caught.value).isprintable() and "Expected" in str(caught.value)
    assert np.array_equal([FolderImages(str(tmp_path), size=64).name(0)], [f"{name}.png"])
