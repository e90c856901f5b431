"""What a downloaded result is, by its bytes."""

from collections.abc import Sequence

WEBM, MP4 = "video/webm", "video/mp4"
MAGICS: Sequence[tuple[int, bytes, str]] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftyp", MP4),
    (0, b"\x1a\x45\xdf\xa3", WEBM),
    (8, b"WAVE", "audio/wav"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
)
ENDS = {"image/png": b"IEND\xaeB`\x82", "image/jpeg": b"\xff\xd9"}


def type_of(data: bytes) -> str | None:
    """The content type of a picture, video or sound; None for anything else."""
    return next((kind for at, magic, kind in MAGICS if data[at : at + len(magic)] == magic), None)


def is_whole(data: bytes, content_type: str) -> bool:
    """Whether a file ends as its type must, for types that say so."""
    end = ENDS.get(content_type, b"")
    return end in data[-64:]
