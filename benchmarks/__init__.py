"""Safelight beside its peers, measured: `./run bench`."""
