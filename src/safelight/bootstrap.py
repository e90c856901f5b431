"""The world, wired once. Every door opens it the same way; nothing in it is global."""

import contextlib
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from safelight.artifacts import ArtifactStore
from safelight.config import Settings
from safelight.db import Database, new_id
from safelight.jobs import Caps, Dispatcher, Job, JobEvent, Jobs, kept_attempts
from safelight.providers.registry import Registry
from safelight.queue import HintQueue
from safelight.storage import Storage
from safelight.stream import Stream
from safelight.valkey import Valkey

PICTURE_THREADS = 2
LOCAL_OWNER = "local"  # the one user of an installation without accounts

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Safelight:
    """Everything a door needs, ready to use on the loop that opened it."""

    settings: Settings
    database: Database
    valkey: Valkey
    stream: Stream
    hints: HintQueue
    storage: Storage
    artifacts: ArtifactStore
    providers: Registry
    jobs: Jobs
    dispatcher: Dispatcher
    process_id: str


class _Announcements:
    """What follows a commit: the event to its watchers, the hint to a worker, the line to the log."""

    def __init__(self, stream: Stream, hints: HintQueue) -> None:
        self._stream = stream
        self._hints = hints

    def event(self, event: JobEvent) -> None:
        payload = event.as_json()
        self._stream.publish(event.job_id, event.task_id, event.as_message(payload), payload, event.as_celery_result())
        log.info(
            "job.status_changed",
            job_id=event.job_id,
            task_id=event.task_id,
            request_id=event.request_id,
            attempt=event.attempt,
            status=event.status,
            version=event.version,
            error_code=event.error["code"] if event.error else None,
        )

    def hint(self, job: Job) -> None:
        self._hints.send(job.queue, job.id, soft_seconds=job.soft_limit_seconds, hard_seconds=job.hard_limit_seconds)

    def nudge(self, job_id: str) -> None:
        self._stream.nudge(job_id)


@contextlib.asynccontextmanager
async def open_safelight(settings: Settings) -> AsyncGenerator[Safelight]:
    """Wire the world on the running loop and take it apart again at the end.

    Neither the database nor Redis need be there: their users find out, and go on when they come back.
    """
    database = Database(settings.database_url)
    stream: Stream
    valkey = Valkey(
        settings.redis_url.get_secret_value(),
        database=settings.redis_database,
        on_push=lambda push: stream.on_push(push),
        on_connect=lambda: stream.on_connect(),
    )
    stream = Stream(valkey, settings.redis_ns)
    hints = HintQueue(valkey, settings.redis_ns)
    storage = Storage.open(settings.storage_url)
    announcements = _Announcements(stream, hints)
    jobs = Jobs(announcements)
    pictures = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="pictures")
    artifacts = ArtifactStore(storage, pictures)

    async def tidy() -> None:
        deleted = await artifacts.collect_orphans(lambda job_ids: database.read(kept_attempts, job_ids))
        if deleted:
            log.info("orphans.collected", files=deleted)

    process_id = new_id()
    dispatcher = Dispatcher(
        database,
        jobs,
        holder=process_id,
        hint=announcements.hint,
        can_hint=lambda: hints.is_connected,
        caps=Caps(settings.provider_limits, settings.owner_limit),
        beat_seconds=settings.beat_seconds,
        rehint_seconds=settings.rehint_seconds,
        housekeeping=tidy,
    )
    await valkey.start()
    try:
        yield Safelight(
            settings=settings,
            database=database,
            valkey=valkey,
            stream=stream,
            hints=hints,
            storage=storage,
            artifacts=artifacts,
            providers=Registry(mock_mode=bool(settings.mock_mode), default=settings.default_provider),
            jobs=jobs,
            dispatcher=dispatcher,
            process_id=process_id,
        )
    finally:
        await valkey.close()
        pictures.shutdown(wait=False, cancel_futures=True)
        database.close()
