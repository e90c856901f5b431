"""Celery's view of the workers: the app, its one task, and what happens when a process starts and ends.

`celery -A safelight.worker.tasks` finds the workers too: the app takes its settings from the environment, as they do.
"""

import os
import sys
import threading
from typing import Any
from urllib.parse import quote

from celery import Celery, signals
from celery.events import EventDispatcher
from celery.exceptions import ImproperlyConfigured
from kombu.entity import Queue
from kombu.transport import TRANSPORT_ALIASES

from safelight import log
from safelight.config import Settings
from safelight.queue import DEFAULT, IMPORT_QUEUES, IO_QUEUES, LOCAL_QUEUES, TASK_NAME
from safelight.valkey import ValkeyAddress
from safelight.worker.engine import Engine
from safelight.worker.transport import PatientConnection

TASKS_PER_CHILD = 100
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

TRANSPORT_ALIAS = "safelight"
TRANSPORT_ALIASES[TRANSPORT_ALIAS] = "safelight.worker.transport:Transport"


class Events(EventDispatcher):
    """Task events leave in Celery's own thread alone: jobs end on the engine's loop, which must not wait for Redis."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, buffer_limit=sys.maxsize)


app = Celery("safelight")
app.amqp.Connection = PatientConnection
app.events.dispatcher_cls = Events


class _Process:
    """What this process is. Celery makes pools and child processes itself, so it must be found from here."""

    engine: Engine | None = None
    settings: Settings | None = None  # of a worker; other processes look into their environment


def use_engine(engine: Engine) -> None:
    """Let tasks of this process run on `engine`."""
    _Process.engine = engine


@app.task(name=TASK_NAME)  # pyright: ignore[reportUntypedFunctionDecorator]
def run(job_id: str, queue: str) -> None:
    """Carry out a hint; for pools of threads and processes."""
    if _Process.engine is None:
        raise RuntimeError("start workers with `safelight worker`: it makes the engine that this task needs")
    _Process.engine.run_blocking(job_id, queue)


def configure(settings: Settings) -> None:
    """Make this process a worker with these settings."""
    _Process.settings = settings
    app.conf.update(_configuration(settings))


def _configuration(settings: Settings) -> dict[str, Any]:
    """Celery delivers, routes, isolates and shows; everything else is ours, so everything else is off."""
    url = settings.redis_url.get_secret_value()
    if not url:
        raise ImproperlyConfigured("SAFELIGHT_REDIS_URL is not set: it names the queue of the workers to look at.")
    address = ValkeyAddress.parse(url, database=settings.redis_database)
    return {
        "broker_url": celery_url(address),
        "broker_use_ssl": celery_tls(address),
        "broker_transport": TRANSPORT_ALIAS,
        "broker_transport_options": {
            "priority_steps": [0],  # dispatch orders; else each BRPOP names four keys for each queue
            "global_keyprefix": f"{settings.redis_ns}:",
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,  # how soon a connection that went dead without a word is noticed
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        # With the hint transport a late acknowledgement costs nothing and lets the prefetch count bound what runs.
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_prefetch_multiplier": 1,
        "worker_max_tasks_per_child": TASKS_PER_CHILD,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "task_queues": [Queue(name, routing_key=name) for name in (*IO_QUEUES, *LOCAL_QUEUES, *IMPORT_QUEUES)],
        "task_default_queue": DEFAULT,
        "worker_proc_alive_timeout": 120,
    }


app.add_defaults(lambda: _configuration(_Process.settings or Settings.model_validate({})))


def celery_url(address: ValkeyAddress) -> str:
    """The Redis URL as kombu spells it, for our transport."""
    login = f"{quote(address.username, safe='')}:{quote(address.password, safe='')}@" if address.password else ""
    if address.path is not None:
        # In this form kombu takes the transport from the URL, whatever `broker_transport` says.
        return f"{TRANSPORT_ALIAS}+socket://{login}{address.path}?virtual_host={address.database}"
    scheme = "redis" if address.tls is None else "rediss"
    return f"{scheme}://{login}{address}/{address.database}"


def celery_tls(address: ValkeyAddress) -> dict[str, Any] | None:
    """What redis-py's TLS connection is told: the certificate options of the URL."""
    if address.tls is None:
        return None
    files = {name: address.tls_options[name] for name in TLS_FILES if name in address.tls_options}
    return {"ssl_cert_reqs": address.tls.verify_mode, "ssl_check_hostname": address.tls.check_hostname, **files}


def start_children_with(settings: Settings, *, name: str, queues: tuple[str, ...]) -> None:
    """Prefork: every child process gets an engine of its own with one slot, and hears of its parent's end.

    The parent alone holds the writing end of a pipe. When it closes it, on purpose at shutdown or by dying, all
    children see the end of the pipe: they drain, and leave if the parent is gone.
    """
    reading, writing = os.pipe()
    parent = os.getpid()

    def begin(**_: Any) -> None:
        os.close(writing)
        log.configure(settings.log_level, settings.log_format)
        engine = Engine(settings, name=f"{name}.{os.getpid()}", queues=queues, slots=1, dispatches=False)
        engine.start()
        use_engine(engine)
        threading.Thread(target=_follow_parent, args=(reading, parent, engine), daemon=True).start()

    def end(**_: Any) -> None:
        if _Process.engine is not None:
            _Process.engine.stop()

    def leave(**_: Any) -> None:
        os.close(writing)

    # Celery keeps weak references to receivers unless told otherwise.
    signals.worker_process_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(end, weak=False)
    signals.worker_shutting_down.connect(leave, weak=False)


def _follow_parent(reading: int, parent: int, engine: Engine) -> None:
    os.read(reading, 1)
    engine.drain()
    engine.wait_drained()
    if os.getppid() != parent:
        engine.stop()
        os._exit(0)
