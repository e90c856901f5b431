"""The Python client of Safelight: submit a generation job, watch it, keep the picture."""

from safelight_client.batch import Batches
from safelight_client.client import Client
from safelight_client.error import ApiError, ClientError, Unreachable
from safelight_client.event import Event

__all__ = ["ApiError", "Batches", "Client", "ClientError", "Event", "Unreachable"]
