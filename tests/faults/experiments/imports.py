"""Imports whose worker is killed, frozen or cancelled halfway: they start again, and leave no program and no file."""

import contextlib
import signal
import time

from faults.stack import LEASE_SECONDS, kill_pid, until
from faults.trial import CANCELLED, Experiment, Trial
from stand_ins.media_host import MediaHost

PATHS = ("/slow.mp4", "/slow.html")


def killed_halfway(trial: Trial) -> None:
    """The process that imports is killed, in the middle of a file and of a page's video; others are cancelled."""
    stack, random = trial.stack, trial.random
    stack.crew(io=1, imports=3)
    with contextlib.closing(MediaHost()) as host:
        for _ in range(trial.pick(1, 5)):
            host.reset()
            ids = [trial.import_media(host.url + path) for path in PATHS]
            ids.append(trial.import_media(host.url + random.choice(PATHS), ends=CANCELLED))
            trial.wait_processing(ids)
            until(lambda: len(list(stack.imports.glob("*"))) >= 3, what="downloads under way")
            trial.pause(0.0, 0.5)
            trial.fault("cancel an import")
            stack.http.post(f"/generation-jobs/{ids[2]}/cancel")
            for job_id in ids[:2]:
                process = int(stack.rows.attempts(trial.project)[job_id][-1].worker_name.rpartition(".")[2])
                trial.fault("kill the process of an import", stack.member("imports"))
                kill_pid(process, random.choice((signal.SIGKILL, signal.SIGSEGV)))
            host.released.set()
            trial.wait_ended()
            for job_id in ids[:2]:
                trial.expect(stack.rows.job(job_id).attempt >= 2, f"import {job_id} ended in its killed process")
            # What a dead process left is swept by the next import, if those above began before it was dead.
            trial.import_media(f"{host.url}/sea.mp3")
            trial.wait_ended()
            until(lambda: not list(stack.imports.glob("*")), what="the end of unfinished files")


def frozen_halfway(trial: Trial) -> None:
    """A worker that stands still longer than its lease: another imports, and the old one throws its half away."""
    stack = trial.stack
    with contextlib.closing(MediaHost()) as host:
        for path in PATHS:
            host.reset()
            stack.crew(io=1, imports=2)
            job_id = trial.import_media(host.url + path)
            trial.wait_processing([job_id])
            until(lambda: list(stack.imports.glob("*")), what="a download under way")
            victim = stack.member("imports")
            trial.fault("freeze a worker that imports", victim)
            victim.freeze()
            time.sleep(2 * LEASE_SECONDS)
            victim.thaw()
            host.released.set()
            trial.wait_ended()
            until(lambda: not list(stack.imports.glob("*")), what="the end of unfinished files")


IMPORTS = (
    Experiment(
        "import-killed", "imports whose process is killed halfway; others are cancelled", killed_halfway, short=True
    ),
    Experiment("import-frozen", "imports whose worker stands still longer than its lease", frozen_halfway),
)
