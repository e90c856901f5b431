"""What a picture says of itself: that AI made it (IPTC's digital source type, in XMP), and the recipe it was made by.

Both are laid between the parts of the file: no pixel is encoded again. PNG has its recipe as text chunks, JPEG and WebP
in the XMP. A file with content credentials must not come here: any change would break their signature.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from xml.sax.saxutils import escape

Origin = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]  # made by AI, or changed by it

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
RECIPE = "urn:safelight:recipe#"
PROPERTY = "DigitalSourceType"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEAD_BYTES = len(PNG_SIGNATURE) + 25  # the signature and IHDR, which is always first
PNG_XMP = b"XML:com.adobe.xmp\0"
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
JPEG_SEGMENT_BYTES = 65_533  # after the two that tell its length
WEBP_XMP_FLAG, WEBP_ALPHA_FLAG = 0x04, 0x10
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Mark:
    """What a picture is to say of itself: its origin, and its recipe by keyword."""

    recipe: Mapping[str, str] = field(default_factory=dict[str, str])
    origin: Origin = "trainedAlgorithmicMedia"


def marked(data: bytes, mark: Mark) -> bytes:
    """The same PNG, JPEG or WebP with this mark. Others, and what makes no sense, come back unchanged.

    Keywords of a PNG's text are Latin-1 of 1 to 79 bytes. XMP that is there already is kept, and added to.
    """
    recipe, origin = mark.recipe, mark.origin
    if data.startswith(PNG_SIGNATURE) and data[12:16] == b"IHDR":
        return _marked_png(data, recipe, origin)
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _marked_jpeg(data, recipe, origin)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _marked_webp(data, recipe, origin)
    except (struct.error, IndexError):
        pass
    return data


# --- the packet -------------------------------------------------------------------------------------------------------


def packet_of(recipe: Mapping[str, str], origin: Origin) -> bytes:
    """An XMP packet that tells them."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'{_description(recipe, origin)}</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _description(recipe: Mapping[str, str], origin: Origin) -> str:
    told = "".join(
        f"<recipe:{name}>{escape(NOT_XML.sub('', text))}</recipe:{name}>"
        for name, text in ((re.sub(r"[^\w.-]", "_", name), text) for name, text in recipe.items())
    )
    names = f' xmlns:recipe="{RECIPE}"' if told else ""
    return (
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC}"{names}>'
        f"<Iptc4xmpExt:{PROPERTY}>{SOURCE_TYPES}{origin}</Iptc4xmpExt:{PROPERTY}>{told}</rdf:Description>"
    )


def _added(packet: bytes, recipe: Mapping[str, str], origin: Origin) -> bytes:
    """Somebody's packet with ours added; unchanged if it tells its origin already, or has another form."""
    end = packet.rfind(b"</rdf:RDF>")
    if end < 0 or PROPERTY.encode() in packet:
        return packet
    return packet[:end] + _description(recipe, origin).encode() + packet[end:]


# --- the formats ------------------------------------------------------------------------------------------------------


def _marked_png(data: bytes, recipe: Mapping[str, str], origin: Origin) -> bytes:
    texts = b"".join(_text_chunk(keyword, text.replace("\0", "")) for keyword, text in recipe.items())
    at = PNG_HEAD_BYTES
    while data[at + 4 : at + 8] not in (b"IDAT", b"IEND", b""):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 8 : at + 8 + size]
        if data[at + 4 : at + 8] == b"iTXt" and body.startswith(PNG_XMP):
            plain = len(PNG_XMP) + 4  # not compressed, no language, no other name for the keyword
            if body[len(PNG_XMP) : plain] == bytes(4):
                body = body[:plain] + _added(body[plain:], {}, origin)
            chunk = _chunk(b"iTXt", body)
            return data[:PNG_HEAD_BYTES] + texts + data[PNG_HEAD_BYTES:at] + chunk + data[at + 12 + size :]
        at += 12 + size
    xmp = _chunk(b"iTXt", PNG_XMP + bytes(4) + packet_of({}, origin))
    return data[:PNG_HEAD_BYTES] + xmp + texts + data[PNG_HEAD_BYTES:]


def _text_chunk(keyword: str, text: str) -> bytes:
    name = keyword.encode("latin-1")
    if not 1 <= len(name) <= 79 or b"\0" in name:
        raise ValueError(f"a PNG keyword has 1 to 79 Latin-1 characters, not {keyword!r}")
    if text.isascii():
        return _chunk(b"tEXt", name + b"\0" + text.encode("ascii"))
    return _chunk(b"iTXt", name + bytes(5) + text.encode("utf-8", "replace"))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _marked_jpeg(data: bytes, recipe: Mapping[str, str], origin: Origin) -> bytes:
    at = after = 2
    while True:
        marker, code, size = struct.unpack_from(">BBH", data, at)
        if marker != 0xFF or code == 0xDA:
            return data[:after] + _segment(packet_of(recipe, origin), packet_of({}, origin)) + data[after:]
        body, end = data[at + 4 : at + 2 + size], at + 2 + size
        if code == 0xE1 and body.startswith(JPEG_XMP):
            theirs = body[len(JPEG_XMP) :]
            segment = _segment(_added(theirs, recipe, origin), _added(theirs, {}, origin), theirs)
            return data[:at] + segment + data[end:]
        if code in (0xE0, 0xE1) and at == after:  # JFIF and EXIF stay first
            after = end
        at = end


def _segment(*packets: bytes) -> bytes:
    """The first of these packets that a segment can hold: a recipe may be too long for it."""
    packet = next(packet for packet in packets if len(JPEG_XMP) + len(packet) <= JPEG_SEGMENT_BYTES)
    return b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG_XMP) + len(packet)) + JPEG_XMP + packet


def _marked_webp(data: bytes, recipe: Mapping[str, str], origin: Origin) -> bytes:
    chunks: list[tuple[bytes, bytes]] = []
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    if chunks[0][0] != b"VP8X":
        chunks.insert(0, (b"VP8X", _extended_head(*chunks[0])))
    head = chunks[0][1]
    chunks[0] = b"VP8X", bytes([head[0] | WEBP_XMP_FLAG]) + head[1:]
    theirs = next((body for kind, body in chunks if kind == b"XMP "), None)
    packet = packet_of(recipe, origin) if theirs is None else _added(theirs, recipe, origin)
    chunks = [chunk for chunk in chunks if chunk[0] != b"XMP "] + [(b"XMP ", packet)]
    body = b"".join(kind + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for kind, part in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _extended_head(kind: bytes, body: bytes) -> bytes:
    """What a plain WebP must be given before it can hold more: its size, and whether anything is transparent."""
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, bits >> 28 & 1
    else:
        across, down = struct.unpack_from("<HH", body, 6)
        width, height, alpha = (across & 0x3FFF) - 1, (down & 0x3FFF) - 1, 0
    flags = WEBP_ALPHA_FLAG if alpha else 0
    return bytes([flags, 0, 0, 0]) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
