"""Content credentials stay valid; every other picture says that AI made it, and how."""

import struct
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from content_credentials import faults_of, signed
from made_pictures import encoded, halves, opened
from media import media
from safelight.pictures import Mark, credentials_of, marked

RECIPE = {"prompt": "ein Leuchtturm <in> der Dämmerung & 灯台 🗼\x01", "seed": "42", "sampler.cfg": "7", "empty": ""}
NAMES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF", "image/avif": "AVIF"}
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def xmp_of(data: bytes) -> str:
    info = opened(data).info
    found = info.get("XML:com.adobe.xmp", info.get("xmp", b""))
    return found if isinstance(found, str) else found.decode()


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"])
def test_signed_pictures_are_found(content_type: str, tmp_path: Path) -> None:
    plain = encoded(halves(), NAMES[content_type])
    with_credentials = signed(plain, content_type)
    assert faults_of(with_credentials, content_type) == set()
    assert (credentials_of(plain), credentials_of(with_credentials)) == ("none", "present")
    file = tmp_path / "picture"
    file.write_bytes(with_credentials)
    assert credentials_of(file) == "present"
    for end in range(0, len(plain), 7):
        assert credentials_of(plain[:end]) == "none"
    if content_type in ("image/png", "image/jpeg", "image/webp"):  # why they must be left alone
        assert faults_of(marked(with_credentials, Mark(RECIPE)), content_type)
        assert faults_of(signed(marked(plain, Mark(RECIPE)), content_type), content_type) == set()


@pytest.mark.parametrize(("name", "content_type"), [("mp4", "video/mp4"), ("wav", "audio/wav")])
def test_signed_videos_are_found(name: str, content_type: str) -> None:
    assert (credentials_of(media(name)), credentials_of(signed(media(name), content_type))) == ("none", "present")


def test_credentials_that_are_kept_elsewhere_count() -> None:
    xmp = b"<x xmlns:dcterms='http://purl.org/dc/terms/' dcterms:provenance='https://example.com/m.c2pa'/>"
    for name in ("JPEG", "WEBP"):
        assert credentials_of(encoded(halves(), name, xmp=xmp)) == "present"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_the_mark_reads_back_and_no_pixel_changes(name: str, mode: str, lossless: bool) -> None:
    image = halves("RGB" if name == "JPEG" else mode, (41, 23))
    if image.mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encoded(image, name, **({"lossless": lossless} if name == "WEBP" else {}))
    written = marked(data, Mark(RECIPE))
    assert opened(written).convert("RGBA").tobytes() == opened(data).convert("RGBA").tobytes()
    assert opened(written).size == image.size
    xmp = xmp_of(written)
    assert f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>" in xmp
    if name == "PNG":
        texts = opened(written).info
        assert {keyword: texts[keyword] for keyword in RECIPE} == RECIPE
    else:
        assert "ein Leuchtturm &lt;in&gt; der Dämmerung &amp; 灯台 🗼</recipe:prompt>" in xmp
        assert "<recipe:sampler.cfg>7<" in xmp
    assert marked(written, Mark()).count(b"trainedAlgorithmicMedia") == 1


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_xmp_that_is_there_is_kept(name: str) -> None:
    theirs = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/x"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    written = marked(encoded(halves(), name, xmp=theirs), Mark({"seed": "1"}))
    xmp = xmp_of(written)
    assert 'dc:format="image/x"' in xmp
    assert SOURCE_TYPE in xmp
    assert written.count(b"<x:xmpmeta") == 1
    odd = encoded(halves(), name, xmp=b"no packet")
    assert xmp_of(marked(odd, Mark({"seed": "1"}))) == "no packet"


def test_exif_stays_before_the_mark_and_a_long_recipe_out_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x10E] = "what was there"
    written = marked(encoded(halves(), "JPEG", exif=exif), Mark({"prompt": "x" * 70_000}))
    assert opened(written).getexif()[0x10E] == "what was there"
    assert SOURCE_TYPE in xmp_of(written)
    assert "xxxx" not in xmp_of(written)


def test_other_files_stay_as_they_are() -> None:
    jpeg = encoded(halves(), "JPEG")
    for data in (encoded(halves(), "GIF"), encoded(halves(), "AVIF"), b"", b"\x89PNG\r\n\x1a\n", jpeg[:20], b"RIFF\0"):
        assert marked(data, Mark(RECIPE)) == data
    with pytest.raises(ValueError, match="keyword"):
        marked(encoded(halves()), Mark({"x" * 80: "y"}))


def test_a_webp_of_the_largest_size_keeps_it() -> None:
    image = Image.new("L", (16_383, 3), 90)
    written = marked(encoded(image, "WEBP"), Mark())
    assert opened(written).size == (16_383, 3)
    assert struct.unpack_from("<I", written, 4)[0] == len(written) - 8
    assert BytesIO(written).read(4) == b"RIFF"
