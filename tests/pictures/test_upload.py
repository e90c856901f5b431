"""Uploads: what is accepted, and that nothing of a picture's past survives."""

import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageCms, ImageDraw, PngImagePlugin

from made_pictures import encoded
from safelight.pictures import UPLOAD_TYPES, BadUpload, Picture, read_head, read_upload
from safelight.pictures import clean as clean_picture
from safelight.pictures.upload import UploadBomb, UploadMismatch

SECRET = "Baker Street 221b"
GPS = {1: "N", 2: (51.0, 31.0, 25.6), 3: "W", 4: (0.0, 9.0, 30.0)}


NAMES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


def clean(data: bytes, content_type: str) -> tuple[Picture, bytes]:
    """What is kept of an upload."""
    kept = clean_picture(read_upload(data, content_type))
    return read_head(kept), kept


def photograph(name: str, *, orientation: int = 1, size: tuple[int, int] = (40, 20)) -> bytes:
    """Red at the left, blue at the right, and full of stories."""
    image = Image.new("RGB", size, (255, 0, 0))
    ImageDraw.Draw(image).rectangle((size[0] // 2, 0, *size), (0, 0, 255))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = SECRET
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(GPS)
    options: dict[str, Any] = {
        "exif": exif,
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    if name == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", SECRET)
        text.add_itxt("XML:com.adobe.xmp", f"<x>{SECRET}</x>", zip=True)
        options |= {"pnginfo": text, "dpi": (300, 300)}
    elif name == "JPEG":
        options |= {"comment": SECRET.encode(), "quality": 95, "xmp": f"<x>{SECRET}</x>".encode()}
    else:
        options |= {"xmp": f"<x>{SECRET}</x>".encode(), "quality": 95}
    return encoded(image, name, **options)


def bomb(side: int) -> bytes:
    data = encoded(Image.new("1", (8, 8)), "PNG")
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


@pytest.mark.parametrize(("content_type", "name"), NAMES.items())
def test_a_picture_is_kept_without_what_it_tells(content_type: str, name: str) -> None:
    given = photograph(name)
    assert SECRET.encode() in given
    picture, data = clean(given, content_type)
    assert (picture.width, picture.height, picture.content_type) == (40, 20, content_type)
    assert SECRET.encode() not in data
    kept = Image.open(BytesIO(data))
    kept.load()
    assert (kept.format, kept.size) == (name, (40, 20))
    assert not kept.getexif()
    assert kept.info.get("dpi", (25.4, 25.4)) == (25.4, 25.4)  # what says nothing
    assert not {"exif", "xmp", "icc_profile", "comment", "Comment", "XML:com.adobe.xmp"} & set(kept.info)
    chunks = {
        b"eXIf",
        b"iTXt",
        b"zTXt",
        b"tEXt",
        b"tIME",
        b"iCCP",
        b"EXIF",
        b"XMP ",
        b"ICCP",
        b"Exif\0\0",
        b"Photoshop",
    }
    assert not [chunk for chunk in chunks if chunk in data]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_it_was_held(name: str, orientation: int) -> None:
    content_type = next(key for key, value in NAMES.items() if value == name)
    picture, data = clean(photograph(name, orientation=orientation), content_type)
    kept = Image.open(BytesIO(data)).convert("RGB")
    assert kept.size == (picture.width, picture.height) == ((40, 20) if orientation < 5 else (20, 40))
    red = {1: (2, 10), 2: (37, 10), 3: (37, 10), 4: (2, 10), 5: (10, 2), 6: (10, 2), 7: (10, 37), 8: (10, 37)}
    r, _, b = kept.getpixel(red[orientation])  # pyright: ignore[reportGeneralTypeIssues]
    assert r > 200 > 60 > b


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_keeps_its_pixels(mode: str) -> None:
    image = Image.linear_gradient("L").resize((30, 30)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.frombytes("I;16", (30, 30), bytes(range(225)) * 8)
    _, data = clean(encoded(image, "PNG"), "image/png")
    kept = Image.open(BytesIO(data))
    assert kept.mode == ("I;16" if mode == "I;16" else kept.mode)
    plain = mode if mode == "I;16" else "RGBA"
    assert kept.convert(plain).tobytes() == image.convert(plain).tobytes()


def test_transparency_stays() -> None:
    image = Image.new("P", (10, 10), 3)
    image.putpalette([number % 256 for number in range(768)])
    _, data = clean(encoded(image, "PNG", transparency=3), "image/png")
    assert Image.open(BytesIO(data)).convert("RGBA").getchannel("A").getextrema() == (0, 0)
    _, data = clean(encoded(Image.new("RGBA", (10, 10), (1, 2, 3, 0)), "WEBP"), "image/webp")
    assert Image.open(BytesIO(data)).convert("RGBA").getchannel("A").getextrema() == (0, 0)


def test_other_colours_become_srgb() -> None:
    _, data = clean(encoded(Image.new("CMYK", (10, 10), (0, 255, 255, 0)), "JPEG"), "image/jpeg")
    assert Image.open(BytesIO(data)).mode == "RGB"
    image = Image.new("RGB", (10, 10), (200, 100, 50))
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for profile in (lab_like, b"no profile at all"):
        assert clean(encoded(image, "PNG", icc_profile=profile), "image/png")[0].width == 10


def test_of_an_animation_the_first_frame_stays() -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for name, content_type in (("PNG", "image/png"), ("WEBP", "image/webp")):
        moving = encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=50)
        _, data = clean(moving, content_type)
        kept = Image.open(BytesIO(data))
        assert getattr(kept, "n_frames", 1) == 1


@pytest.mark.parametrize("side", [8_001, 12_000, 20_000, 100_000])
def test_a_bomb_is_not_decoded(side: int) -> None:
    with pytest.raises(UploadBomb, match="64,000,000 pixels") as caught:
        clean(bomb(side), "image/png")
    assert caught.value.code == "upload_too_many_pixels"


def test_a_bomb_of_text_is_not_unpacked() -> None:
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    picture, kept = clean(data[:33] + chunk + data[33:], "image/png")
    assert (picture.width, picture.height) == (8, 8)
    assert len(kept) < 1000


@pytest.mark.parametrize(("content_type", "name"), NAMES.items())
@pytest.mark.parametrize("other", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_a_picture_of_another_type_is_refused(content_type: str, name: str, other: str) -> None:
    data = encoded(Image.new("RGB", (10, 10)), other)
    if other == name:
        assert clean(data, content_type)[0].content_type == content_type
        return
    with pytest.raises(UploadMismatch, match=f"of type image/{other.lower()}, although given as") as caught:
        clean(data, content_type)
    assert caught.value.code == "upload_mismatch"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"GIF89a;<script>",
        b"#!/bin/sh\nrm -rf /",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        photograph("PNG")[:-40],
        photograph("JPEG")[: len(photograph("JPEG")) // 2],
        photograph("WEBP")[: len(photograph("WEBP")) // 2],
        bytes(4096),
        bomb(2**31 - 1),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    for content_type in UPLOAD_TYPES:
        with pytest.raises(BadUpload):
            clean(data, content_type)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of what it skips
def test_a_broken_block_of_metadata_does_no_harm() -> None:
    given = bytearray(photograph("JPEG"))
    at = given.index(b"Exif\0\0") + 6
    for offset in range(0, 60, 3):
        broken = bytearray(given)
        broken[at + offset : at + offset + 8] = b"\xff" * 8
        picture, data = clean(bytes(broken), "image/jpeg")
        assert {picture.width, picture.height} == {40, 20}
        assert SECRET.encode() not in data
