"""Whether a source is worth waiting for: a floor for its rate, averaged over a window."""

from safelight.providers.media_import.error import SourceTooSlow


class RateFloor:
    """Counts what came in the time that was spent waiting for it; time in which nobody waited is not the source's.

    A source that brings less than `bytes_per_second` on average over `seconds` is given up.
    """

    def __init__(self, bytes_per_second: float, seconds: float) -> None:
        self.seconds = seconds
        self._bytes_per_second = bytes_per_second
        self._waited = 0.0
        self._came = 0

    def add(self, waited_seconds: float, count: int) -> None:
        """So many bytes came after so long. Raises `SourceTooSlow`."""
        self._waited += waited_seconds
        self._came += count
        if self._waited < self.seconds:
            return
        if self._came < self._bytes_per_second * self._waited:
            raise self.too_slow(f"{self._came:,} bytes came in {self._waited:.0f} s")
        self._waited, self._came = 0.0, 0

    def too_slow(self, what: str) -> SourceTooSlow:
        """The error that says so."""
        return SourceTooSlow(
            f"The source is too slow: {what}; at least {self._bytes_per_second:,.0f} bytes a second are waited for."
        )
