"""libvips, which reads, turns, shrinks and writes pictures: loaded when it is first needed, and held on a short rein.

A picture is worked on by one thread of ours, and libvips adds none for speed: how many are worked on at once is for
`PictureWorkers` to say. Nothing is kept for a second use, and loaders that were not made for strangers' files are shut.
"""

import importlib
import logging
from functools import cache
from typing import Any

from safelight.errors import SafelightError


class LibvipsMissing(SafelightError):
    """Pictures need libvips, and the package pyvips-binary brings none for this system."""

    code = "libvips_missing"


@cache
def libvips() -> Any:
    """The module `pyvips`, ready to use. Raises `LibvipsMissing` with what to do."""
    try:
        pyvips: Any = importlib.import_module("pyvips")
    except Exception as error:  # a missing module, a missing library, a library that does not start
        raise LibvipsMissing(
            "Pictures need libvips, which cannot be loaded here. On Linux (x86_64, aarch64) and on macOS the package "
            "pyvips-binary brings it; anywhere else install libvips 8.15 or newer from the system's packages "
            f"({type(error).__name__}: {error})."
        ) from None
    logging.getLogger("pyvips").setLevel(logging.ERROR)  # each fault of a stranger's file is a warning there
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    pyvips.block_untrusted_set(True)
    return pyvips
