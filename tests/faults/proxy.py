"""A door between a process and a server that can freeze: connections stay open and carry nothing (half-open)."""

import contextlib
import selectors
import socket
import threading
from pathlib import Path

from patience import PATIENCE_SECONDS


class FreezingProxy:
    """Forwards a unix socket to another in a thread of its own.

    `freeze` stops every connection that stands, for good if `forget` follows; new ones are let through unless the door
    is `closed`, as after a failover of whatever stood between.
    """

    def __init__(self, listen: Path, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.socket(socket.AF_UNIX)
        listen.unlink(missing_ok=True)
        self._listener.bind(str(listen))
        listen.chmod(0o777)
        self._listener.listen(128)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._frozen: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def freeze(self, *, closed: bool = False) -> int:
        """Nothing passes any more over what is connected now (nor, if `closed`, over new ones); how many."""
        with self._lock:
            self._frozen |= set(self._pairs)
            self._closed = closed
            return len(self._pairs) // 2

    def thaw(self) -> None:
        """What is frozen goes on, with all that was sent meanwhile."""
        with self._lock:
            self._frozen.clear()
            self._closed = False

    def close(self) -> None:
        self._over = True
        self._thread.join(timeout=PATIENCE_SECONDS)
        for connection in [self._listener, *self._pairs]:
            connection.close()

    def _serve(self) -> None:
        while not self._over:
            with self._lock:
                readable = [c for c in self._pairs if c not in self._frozen]
            with selectors.DefaultSelector() as selector:
                for connection in [self._listener, *readable]:
                    selector.register(connection, selectors.EVENT_READ)
                ready = [key.fileobj for key, _ in selector.select(0.05)]
            for connection in ready:
                if connection is self._listener:
                    self._accept()
                elif isinstance(connection, socket.socket) and connection not in self._frozen:
                    self._forward(connection)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs[client], self._pairs[server] = server, client
            if self._closed:
                self._frozen |= {client, server}

    def _forward(self, connection: socket.socket) -> None:
        other = self._pairs.get(connection)
        if other is None:
            return
        try:
            data = connection.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        with self._lock:
            for end in (connection, other):
                self._pairs.pop(end, None)
                self._frozen.discard(end)
                with contextlib.suppress(OSError):
                    end.close()
