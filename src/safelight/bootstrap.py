"""The world, wired once. Every door opens it the same way; nothing in it is global."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from safelight import stories
from safelight.accounts import LOCAL_OWNER, Authenticator, Tokens, purge_sessions, tier_of
from safelight.artifacts import ArtifactStore, FfmpegMissing, Links, find_ffmpeg, load_signing_key
from safelight.config import DATA_DIR_REMEDY, Settings
from safelight.db import Database, Tx, new_id, parse_url, prove_file
from safelight.folder import open_folder
from safelight.jobs import BreakerPolicy, Caps, Dispatcher, Job, JobEvent, Jobs, KeepFor, Retention, RetentionDays
from safelight.limits import Limiter, Policy
from safelight.pictures import PictureWorkers, libvips
from safelight.providers.base import Limits, Provider, ProviderError
from safelight.providers.media_import.workspace import Workspace
from safelight.providers.registry import Own, Registry
from safelight.queue import HintQueue
from safelight.schema import admit, require
from safelight.storage import Storage
from safelight.stream import Stream
from safelight.valkey import Valkey

LOOK_SECONDS = 3.0  # for a first look at the database

__all__ = ["LOCAL_OWNER", "Safelight", "open_safelight"]

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
    pictures: PictureWorkers
    artifacts: ArtifactStore
    links: Links
    providers: Registry
    jobs: Jobs
    retention: Retention
    dispatcher: Dispatcher
    authenticator: Authenticator
    limiter: Limiter
    process_id: str


class _Announcements:
    """What follows a commit: the event to its watchers, the hint to a worker, the line to the log."""

    def __init__(self, stream: Stream, hints: HintQueue) -> None:
        self._stream = stream
        self._hints = hints
        self.changed: Callable[[Job], None]  # set before anything is written: dispatch needs the rows' own code first

    def event(self, job: Job, event: JobEvent) -> None:
        self.changed(job)
        payload = event.as_json()
        result = event.as_celery_result()
        self._stream.publish(event.job_id, event.task_id, event.as_message(payload), payload, result, event.batch_id)
        log.info(
            "job.status_changed",
            job_id=event.job_id,
            task_id=event.task_id,
            request_id=event.request_id,
            owner_id=job.owner_id,
            tier=job.tier,
            attempt=event.attempt,
            status=event.status,
            version=event.version,
            error_code=event.error["code"] if event.error else None,
            chapter_id=event.chapter_id,
            scene_number=event.scene_number,
            batch_id=event.batch_id,
        )

    def hint(self, job: Job) -> None:
        self._hints.send(job.queue, job.id, soft_seconds=job.soft_limit_seconds, hard_seconds=job.hard_limit_seconds)

    def waits(self, job: Job) -> None:
        self.changed(job)

    def nudge(self, job_id: str) -> None:
        self._stream.nudge(job_id)


def _token_verifier(settings: Settings) -> Tokens | None:
    """Who verifies the tokens of the identity provider, if there is one."""
    secret = settings.jwt_secret.get_secret_value()
    if not secret and not settings.jwt_jwks_url:
        return None
    from safelight.accounts.token import TokenVerifier  # noqa: PLC0415 - 15 MB that others need not carry

    return TokenVerifier(
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer or None,
        secret=secret or None,
        jwks_url=settings.jwt_jwks_url or None,
        leeway_seconds=settings.jwt_leeway_seconds,
    )


def _own_providers(settings: Settings, workspace: Workspace) -> dict[str, Own]:
    """How the house's own providers are made of the settings. Imported when one is first asked for."""
    missing = settings.missing

    def comfyui() -> Provider:
        from safelight.providers.comfyui import ComfyUI, shared_templates  # noqa: PLC0415

        return ComfyUI(
            settings.comfyui_urls,
            headers={name: value.get_secret_value() for name, value in settings.comfyui_headers.items()},
            default_checkpoint=settings.comfyui_checkpoint or None,
            templates=shared_templates(settings.comfyui_templates),
        )

    def modelslab() -> Provider:
        from safelight.providers.modelslab import ModelsLab  # noqa: PLC0415

        _need(missing["modelslab"])
        return ModelsLab(
            settings.modelslab_key.get_secret_value(),
            base_url=settings.modelslab_base_url,
            models=tuple(settings.modelslab_models.values()),
            resubmit_unknown=settings.modelslab_resubmit_unknown,
            webhook_url=settings.modelslab_webhook_url or None,
        )

    def openai_images() -> Provider:
        from safelight.providers.openai_images import OpenAIImages  # noqa: PLC0415

        _need(missing["openai_images"])
        return OpenAIImages(
            settings.openai_key.get_secret_value(),
            base_url=settings.openai_base_url,
            model=settings.openai_model,
            models=settings.openai_models,
            streams=settings.openai_streams,
        )

    def media() -> Provider:
        from safelight.providers.media_import import EXTRACTORS, MediaImport  # noqa: PLC0415

        try:
            ffmpeg = find_ffmpeg()
        except FfmpegMissing:
            ffmpeg = None
        return MediaImport(
            workspace=workspace,
            ffmpeg=ffmpeg,
            limits=Limits(settings.media_soft_limit_seconds, settings.media_hard_limit_seconds),
            networks=settings.media_allow_private,
            max_bytes=settings.media_max_bytes,
            max_seconds=settings.media_max_seconds,
            idle_seconds=settings.media_idle_seconds,
            min_bytes_per_second=settings.media_min_bytes_per_second,
            slow_seconds=settings.media_slow_seconds,
            memory_bytes=settings.media_memory_bytes,
            probe_seconds=settings.media_probe_seconds,
            extractors=settings.media_extractors or EXTRACTORS,
        )

    return {
        "comfyui": Own(comfyui, missing["comfyui"]),
        "media": Own(media, makes_pictures=False),
        "modelslab": Own(modelslab, missing["modelslab"]),
        "openai_images": Own(openai_images, missing["openai_images"]),
    }


def _need(missing: str) -> None:
    if missing:
        raise ProviderError(f"{missing} is not set.")


@contextlib.asynccontextmanager
async def open_safelight(settings: Settings) -> AsyncGenerator[Safelight]:
    """Wire the world on the running loop and take it apart again at the end.

    Neither the database nor Redis need be there: their users find out, and go on when they come back. Each connection
    to the database looks whether the schema is ours; on another one everything is refused with what to do.
    """
    libvips()
    database = Database(settings.database_url, admit=admit)
    stream: Stream
    valkey = Valkey(
        settings.redis_url.get_secret_value(),
        database=settings.redis_database,
        on_push=lambda push: stream.on_push(push),
        on_connect=lambda: stream.on_connect(),
    )
    stream = Stream(valkey, settings.redis_ns)
    hints = HintQueue(valkey, settings.redis_ns)
    storage = open_storage(settings)
    announcements = _Announcements(stream, hints)
    retention_days_of = _retention_days(settings)
    jobs = Jobs(
        announcements,
        [stories.StoryFollower(), *([] if _keeps_everything(settings) else [KeepFor(retention_days_of)])],
        breaker=BreakerPolicy(settings.breaker_failures, settings.breaker_seconds),
        pause_seconds=settings.retry_seconds,
        provider_wait_seconds=settings.provider_wait_seconds,
    )
    pictures = open_pictures(settings)
    artifacts = ArtifactStore(
        storage,
        pictures,
        media_memory_bytes=settings.media_memory_bytes,
        max_waiting_uploads=settings.max_waiting_uploads,
    )
    links = open_links(settings, storage)
    retention = Retention(
        database, artifacts, retention_days_of=retention_days_of, tombstone_days=settings.tombstone_days
    )

    authenticator = Authenticator(
        database, tokens=_token_verifier(settings), tiers=settings.tiers, default_tier=settings.default_tier
    )

    workspace = Workspace(
        settings.data_dir.resolve() / "imports",
        keep_free_bytes=settings.media_keep_free_bytes,
        quota_bytes=settings.media_quota_bytes,
    )

    async def tidy() -> None:
        await database.write(purge_sessions)
        await retention.tidy()
        await asyncio.to_thread(workspace.sweep)

    process_id = new_id()
    limiter = Limiter(valkey, settings.redis_ns)
    dispatcher = Dispatcher(
        database,
        jobs,
        holder=process_id,
        hint=announcements.hint,
        can_hint=lambda: hints.is_connected,
        caps=Caps(
            settings.provider_limits,
            settings.owner_limit,
            _rates(settings),
            {name: tier.weight for name, tier in settings.tiers.items()},
        ),
        beat_seconds=settings.beat_seconds,
        rehint_seconds=settings.rehint_seconds,
        housekeeping=tidy,
        limiter=limiter,
        wake_leader=stream.wake_dispatch,
    )
    announcements.changed = dispatcher.changed
    stream.listen_for_dispatch(dispatcher.wake)
    providers = Registry(
        bool(settings.mock_mode),
        settings.default_provider,
        _own_providers(settings, workspace),
    )
    if settings.played:
        log.warning("mock.plays", providers=settings.played, because="AI_MOCK_MODE is not false")
    await valkey.start()
    try:
        yield Safelight(
            settings=settings,
            database=database,
            valkey=valkey,
            stream=stream,
            hints=hints,
            storage=storage,
            pictures=pictures,
            artifacts=artifacts,
            links=links,
            providers=providers,
            jobs=jobs,
            retention=retention,
            dispatcher=dispatcher,
            authenticator=authenticator,
            limiter=limiter,
            process_id=process_id,
        )
    finally:
        await providers.close()
        await authenticator.close()
        await valkey.close()
        pictures.close()
        database.close()


def _rates(settings: Settings) -> dict[str, Policy]:
    return {name: Policy("provider", rate.jobs, rate.seconds) for name, rate in settings.provider_rates.items()}


def open_pictures(settings: Settings) -> PictureWorkers:
    """The threads that these settings allow pictures."""
    return PictureWorkers(
        threads=settings.picture_threads,
        large_threads=settings.large_picture_threads,
        large_pixels=settings.large_picture_pixels,
        max_pixels=settings.max_picture_pixels,
    )


def open_storage(settings: Settings) -> Storage:
    """The storage that these settings name."""
    return Storage.open(
        settings.storage_url,
        access_key=settings.storage_access_key.get_secret_value(),
        secret_key=settings.storage_secret_key.get_secret_value(),
    )


def open_links(settings: Settings, storage: Storage) -> Links:
    """What makes links to its files. The key is not needed, nor made, before the first one."""
    given = settings.signing_key.get_secret_value()
    return Links(
        storage,
        signing_key=lambda: given.encode() or load_signing_key(settings.data_dir),
        public_url=settings.storage_public_url if settings.storage_delivery == "public" else "",
    )


def _keeps_everything(settings: Settings) -> bool:
    return settings.retention_days is None and all(tier.retention_days is None for tier in settings.tiers.values())


def _retention_days(settings: Settings) -> RetentionDays:
    """How long what ends or comes now is kept: as its owner's tier says, or else the setting for all."""
    if settings.auth == "local" or all(tier.retention_days is None for tier in settings.tiers.values()):
        return lambda tx, owner_id: settings.retention_days

    def days(tx: Tx, owner_id: str) -> int | None:
        tier = settings.tiers.get(tier_of(tx, owner_id) or "", settings.tiers[settings.default_tier])
        return settings.retention_days if tier.retention_days is None else tier.retention_days

    return days


def require_folder(settings: Settings) -> None:
    """For a start: make the data directory and prove it, if these settings keep anything in it."""
    folder = settings.data_dir.resolve()
    database = parse_url(settings.database_url)
    holds_files = settings.storage_url.startswith(folder.as_uri())
    holds_rows = database.get_backend_name() == "sqlite" and Path(database.database or "").is_relative_to(folder)
    if holds_files or holds_rows or not settings.signing_key.get_secret_value():
        open_folder(folder, "data directory", DATA_DIR_REMEDY)


async def require_database(settings: Settings) -> None:
    """For a start: raise what is wrong with the database, as far as it answers within a few seconds."""
    prove_file(parse_url(settings.database_url))
    database = Database(settings.database_url, readers=1, admit=admit)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await require(database)
    finally:
        database.close()


@contextlib.asynccontextmanager
async def open_retention(settings: Settings) -> AsyncGenerator[Retention]:
    """What deletes, without the rest of the world: for a command. Raises what is wrong with the schema."""
    database = Database(settings.database_url, readers=1, admit=admit)
    pictures = open_pictures(settings)
    try:
        await require(database)
        store = ArtifactStore(open_storage(settings), pictures)
        yield Retention(database, store, tombstone_days=settings.tombstone_days)
    finally:
        pictures.close()
        database.close()
