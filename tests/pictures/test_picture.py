"""What a picture is, and how it looks in small: every mode in every format in every orientation."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from made_pictures import MODES, RED_AT, encoded, halves, opened, turned
from safelight.pictures import BadPicture, Miniatures, libvips, look_at, read_head
from safelight.pictures.thumbnail import size_within

GREY = {"1", "L", "LA", "I;16"}


def look(data: bytes) -> Miniatures:
    return look_at(read_head(data))


def small(data: bytes, width: int = 512) -> Image.Image:
    found = look(data)
    assert found.problem is None
    assert found.thumbhash
    thumbnail = found.thumbnails[width]
    image = opened(thumbnail.data)
    assert (image.format, image.size) == ("WEBP", (thumbnail.width, thumbnail.height))
    return image


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes])
def test_every_mode_is_shown_as_it_was_held(name: str, mode: str) -> None:
    for orientation in range(1, 9):
        data = turned(name, mode, orientation)
        place = RED_AT[1 if name == "GIF" else orientation]
        size = (40, 20) if place[1] == 10 else (20, 40)
        picture = read_head(data)
        assert (picture.width, picture.height, picture.content_type) == (*size, f"image/{name.lower()}")
        image = small(data)
        assert image.size == size
        red, blue = (
            image.convert("RGB").getpixel(at) for at in (place, (size[0] - 1 - place[0], size[1] - 1 - place[1]))
        )
        assert isinstance(red, tuple)
        assert isinstance(blue, tuple)
        if mode in GREY:
            assert red[0] > blue[0] + 30
        else:
            assert red[0] > 180 > 60 > blue[0]
            assert blue[2] > 110 > 60 > red[2]


@pytest.mark.parametrize("name", ["PNG", "WEBP", "AVIF", "GIF"])
def test_of_an_animation_the_first_frame_is_shown(name: str) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    image = small(encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=50))
    pixel = image.convert("RGB").getpixel((15, 10))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 180 > 60 > max(pixel[1:])


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_pictures_are_refused(name: str, share: float) -> None:
    data = encoded(Image.effect_noise((300, 200), 90), name)
    with pytest.raises(BadPicture):
        look(data[: int(len(data) * share)])


def test_a_flipped_bit_is_noticed() -> None:
    data = bytearray(encoded(Image.effect_noise((300, 200), 90)))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(BadPicture):
        look(bytes(data))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"<html>502 Bad Gateway</html>", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "no picture"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (encoded(halves(), "BMP"), "no picture"),
        (encoded(halves(), "TIFF"), "no picture"),
        (encoded(halves("F"), "TIFF"), "no picture"),
        (encoded(halves(), "PPM"), "no picture"),
    ],
)
def test_other_files_are_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(BadPicture, match=says) as caught:
        read_head(data)
    assert caught.value.code == "bad_output"


def test_loaders_that_are_not_for_strangers_are_shut() -> None:
    with pytest.raises(libvips().Error):
        libvips().Image.new_from_buffer(b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "")


@pytest.mark.parametrize("side", [9_000, 12_000, 20_000])
def test_a_decompression_bomb_is_not_decoded(side: int) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    bomb = encoded(Image.new("1", (8, 8)))
    with pytest.raises(BadPicture, match="64,000,000 pixels"):
        read_head(bomb[:12] + head + struct.pack(">I", zlib.crc32(head)) + bomb[33:])


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        ((600, 400), {256: (256, 171), 512: (512, 341)}),
        ((300, 20), {256: (256, 17), 512: (300, 20)}),
        ((3, 1), {256: (3, 1), 512: (3, 1)}),
        ((790, 36_861), {256: (256, 11_945), 512: (351, 16_383)}),
        ((512, 16_384), {256: (256, 8_192), 512: (512, 16_383)}),
        ((1, 20_000), {256: (1, 16_383), 512: (1, 16_383)}),
        ((20_000, 1), {256: (256, 1), 512: (512, 1)}),
    ],
)
def test_thumbnails_keep_the_aspect_and_fit_their_format(
    size: tuple[int, int], widths: dict[int, tuple[int, int]]
) -> None:
    found = look(encoded(Image.new("L", size, 200)))
    assert {width: (one.width, one.height) for width, one in found.thumbnails.items()} == widths
    assert {width: size_within(*size, width) for width in widths} == widths
    for one in found.thumbnails.values():
        assert opened(one.data).size == (one.width, one.height)


def test_a_phone_picture_of_two_pictures_is_a_jpeg() -> None:
    data = encoded(halves(), "MPO", save_all=True, append_images=[halves("L")])
    assert read_head(data).content_type == "image/jpeg"
    assert small(data).size == (40, 20)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_is_transparent(mode: str) -> None:
    """tRNS of a PNG: an index of a palette, a grey, a colour."""
    image = halves(mode)
    key = image.getpixel((2, 10))
    alpha = small(encoded(image, transparency=key)).convert("RGBA").getchannel("A")
    assert (alpha.getpixel((2, 10)), alpha.getpixel((37, 10))) == (0, 255)


def test_a_profile_is_followed() -> None:
    """The numbers 0, 128, 0 of a profile whose channels are exchanged are another colour in sRGB."""
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, other in ((b"rXYZ", b"?XYZ"), (b"gXYZ", b"rXYZ"), (b"?XYZ", b"gXYZ")):
        swapped[swapped.index(tag) : swapped.index(tag) + 4] = other
    named = bytes(swapped).replace(b"s\0R\0G\0B", b"o\0d\0d\0y")
    for name in ("PNG", "JPEG", "WEBP", "AVIF"):
        image = small(encoded(Image.new("RGB", (20, 20), (255, 0, 0)), name, icc_profile=named)).convert("RGB")
        pixel = image.getpixel((9, 9))
        assert isinstance(pixel, tuple)
        assert pixel[1] > 180 > 60 > pixel[0], name
        assert "icc_profile" not in image.info


@pytest.mark.parametrize("profile", [b"no profile at all", bytes(200), b"x" * 127])
def test_a_profile_that_is_none_does_no_harm(profile: bytes) -> None:
    for name in ("PNG", "JPEG", "WEBP"):
        assert small(encoded(halves(), name, icc_profile=profile)).size == (40, 20)


def test_a_picture_without_a_thumbnail_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.pictures.thumbnail.WEBP_OPTIONS", {"no_such_option": 1})
    found = look(encoded(halves()))
    assert (found.thumbnails, found.thumbhash) == ({}, None)
    assert found.problem == "No thumbnail can be made of this picture."


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    for name in MODES:
        file = tmp_path / "a picture [n=-1].tmp"
        file.write_bytes(turned(name, MODES[name][-1], 1))
        assert look_at(read_head(file)).thumbnails[256].width == 40
