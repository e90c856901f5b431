"""kombu's Redis transport without the `unacked` copy of each message.

The job's row is the safety, so the copy is worth nothing, and it costs more than half of Celery's consumer. What stays
is kombu's bookkeeping in memory: the prefetch count bounds what a worker holds, and a clean shutdown puts undelivered
hints back. Private interfaces of kombu 5.7; a contract test watches them.
"""

import contextlib
import time
from queue import Empty
from typing import Any

import orjson
from kombu.connection import Connection
from kombu.transport import redis, virtual

BUSY_SECONDS = 0.002  # hints that follow each other this quickly are fetched several at a time
MAX_FETCHED = 16


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
    _read_at = 0.0

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._only_client is None:
            self._only_client = super()._create_client()
        return self._only_client

    def _brpop_read(self, **options: Any) -> Any:
        """As kombu's, for one key and without its decoder, which is slower than all else that is done here."""
        connection: Any = self.client.connection
        try:
            reply: list[bytes] | None = connection.read_response()
        except self.connection_errors:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
        if not reply:
            raise Empty
        queue = reply[0].decode().removeprefix(self.global_keyprefix)
        self._queue_cycle.rotate(queue)
        deliver: Any = self.connection._deliver
        deliver(orjson.loads(reply[1]), queue)
        before, self._read_at = self._read_at, time.monotonic()
        if self._read_at - before < BUSY_SECONDS:
            self._fetch_more()
        return True

    def _fetch_more(self) -> None:
        """Under load, take what else is there in one command: a BRPOP for each hint is a fifth of a worker's CPU."""
        connection: Any = self.client.connection
        qos: Any = self.qos
        deliver: Any = self.connection._deliver
        for queue in list(self.active_queues):
            held = len(qos._delivered) - len(qos._dirty)
            room = min(MAX_FETCHED, qos.prefetch_count - held) if qos.prefetch_count else MAX_FETCHED
            if room <= 0:
                return
            try:
                connection.send_command("RPOP", f"{self.global_keyprefix}{queue}", room)
                fetched: list[bytes] = connection.read_response() or []
            except self.connection_errors:
                connection.disconnect()
                raise
            for item in fetched:
                deliver(orjson.loads(item), queue)


class Transport(redis.Transport):
    """Named in the worker's settings as `broker_transport`."""

    Channel = Channel


class PatientConnection(Connection):
    """Asks again every two seconds at most while Redis is away; kombu would let up to thirty pass."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        return super().ensure_connection(
            *args, **{"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2, **kwargs}
        )
