"""Bytes by key, on obstore: a local folder, memory, S3 and what speaks like it, Google Cloud Storage, Azure."""

from safelight.storage.address import Address, parse_address
from safelight.storage.disposition import inline
from safelight.storage.store import KEY, Storage
from safelight.storage.trouble import BadKey, BucketMissing, FileMissing, StorageRefused, StorageUnavailable

__all__ = [
    "KEY",
    "Address",
    "BadKey",
    "BucketMissing",
    "FileMissing",
    "Storage",
    "StorageRefused",
    "StorageUnavailable",
    "inline",
    "parse_address",
]
