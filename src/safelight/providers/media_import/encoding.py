"""`Content-Encoding`, undone in bites: what is small on the wire may be a thousand times as large."""

import zlib
from collections.abc import Iterator

from safelight.providers.media_import.error import SourceRefuses, SourceUnavailable

BITE = 256 * 1024
GZIP, ZLIB, RAW = 31, 15, -15  # zlib's `wbits`
FORMS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": ZLIB}


class Decoder:
    """Decodes one answer. `header` is its `Content-Encoding`; raises `SourceRefuses` for one that is not known."""

    def __init__(self, header: str) -> None:
        names = [name for name in (part.strip().lower() for part in header.split(",")) if name not in ("", "identity")]
        if len(names) > 1 or not all(name in FORMS for name in names):
            raise SourceRefuses(f"The source sends its content encoded as {header[:80]!r}, which was not asked for.")
        self.is_needed = bool(names)
        self.is_whole = not names
        self._wbits = FORMS[names[0]] if names else RAW
        self._inflate = zlib.decompressobj(self._wbits)
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes stand for, in pieces of at most `BITE`. Raises `SourceUnavailable` if they are no such."""
        if not self.is_needed:
            yield data
            return
        while not self.is_whole:  # whatever follows the end is none of it
            piece = self._decompressed(data)
            data = self._inflate.unconsumed_tail
            self.is_whole = self._inflate.eof
            if piece:
                yield piece
            if not data and len(piece) < BITE:
                return

    def _decompressed(self, data: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(data, BITE)
        except zlib.error as error:
            if self._wbits == ZLIB and not self._has_begun:  # some call that deflate which has no head
                self._wbits = RAW
                self._inflate = zlib.decompressobj(RAW)
                return self._decompressed(data)
            raise SourceUnavailable("What the source sends is not encoded as it says.") from error
        self._has_begun = True
        return piece
