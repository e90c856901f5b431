"""kombu's Redis transport without the `unacked` copy of each message.

The job's row is the safety, so the copy is worth nothing, and it costs more than half of Celery's consumer. What stays
is kombu's bookkeeping in memory: the prefetch count bounds what a worker holds, and a clean shutdown puts undelivered
hints back. Private interfaces of kombu 5.7; a contract test watches them.
"""

import contextlib
from typing import Any

from kombu.connection import Connection
from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Acknowledgements in memory alone."""

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            self._put_back(self.get(delivery_tag))
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what was not started, if Redis is there: an error would end the worker, a lost hint does not."""
        self._flush()
        with contextlib.suppress(*self.channel.connection_errors):
            while self._delivered:
                self._put_back(self._delivered.popitem(last=True)[1])

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to restore."""

    def _put_back(self, message: Any) -> None:
        info = message.delivery_info
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(message.serializable(), info["exchange"], info["routing_key"], client)


class Channel(redis.Channel):
    """One client object for all commands: kombu would build one for each, for 80 us."""

    QoS = QoS
    _only_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._only_client is None:
            self._only_client = super()._create_client()
        return self._only_client


class Transport(redis.Transport):
    """Named in the worker's settings as `broker_transport`."""

    Channel = Channel


class PatientConnection(Connection):
    """Asks again every two seconds at most while Redis is away; kombu would let up to thirty pass."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        return super().ensure_connection(
            *args, **{"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2, **kwargs}
        )
