"""A worker dies at every step of every provider, and the submits that the other side saw are counted.

The other sides are stand-ins with a ledger, on real sockets, in this process: where a step is theirs (the request was
read, a file is asked for) it is they who kill the worker.
"""

import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from faults.stack import kill_pid, until
from faults.trial import COMPLETED, FAILED, TINY, Experiment, Trial
from stand_ins.comfyui import ComfyStandIn
from stand_ins.modelslab import KEY as MODELSLAB_KEY
from stand_ins.modelslab import ModelsLabStandIn, says
from stand_ins.openai_images import KEY as OPENAI_KEY
from stand_ins.openai_images import OpenAIStandIn
from stand_ins.serve import Dropped

STEPS = {
    "claimed": "claimed, nothing asked yet",
    "submitting": "about to submit, nothing sent",
    "sent": "it has the request, nothing was answered",
    "answered": "answered, its id not written down",
    "accepted": "its id written down",
    "news": "it told its progress",
    "download": "a result is being fetched",
    "stored": "the result stored, not settled",
    "settling": "settled, not committed",
    "settled": "committed, not announced",
    "cut": "the answer is cut off, nobody dies",
}
END_POINTS = {"stored": "after-upload", "settling": "in-settle", "settled": "before-event"}


@dataclass(frozen=True)
class Way:
    """How a worker dies at a step, and what is right then. `point` is None where the stand-in kills."""

    submits: int
    code: str = ""  # of the failure; none: it completes
    point: str | None = None

    def __str__(self) -> str:
        return f"{self.submits}, {self.code or 'completed'}"


UNKNOWN = "unknown_outcome"
MOCK = {
    "claimed": Way(1, point="after-claim"),
    "submitting": Way(1, point="before-provider"),
    "sent": Way(2, point="after-provider"),  # it costs nothing, so it is asked again
    "answered": Way(2, point="before-accepted"),
    "accepted": Way(1, point="after-accepted"),
    "news": Way(1, point="in-progress"),
    **{step: Way(1, point=point) for step, point in END_POINTS.items()},
}
PAID_MOCK = MOCK | {
    "submitting": Way(0, UNKNOWN, "after-submitting"),
    "sent": Way(1, UNKNOWN, "after-provider"),
    "answered": Way(1, UNKNOWN, "before-accepted"),
}
COMFYUI = {  # writes its id down before it sends anything
    "claimed": Way(1, point="after-claim"),
    "submitting": Way(1, point="before-accepted"),
    "accepted": Way(1, point="after-accepted"),
    "sent": Way(1),
    "news": Way(1, point="in-progress"),
    "download": Way(1),
    **{step: Way(1, point=point) for step, point in END_POINTS.items()},
    "cut": Way(1),
}
MODELSLAB = {
    "claimed": Way(1, point="after-claim"),
    "submitting": Way(0, UNKNOWN, "after-submitting"),
    "sent": Way(1, UNKNOWN),
    "answered": Way(1, UNKNOWN, "before-accepted"),
    "accepted": Way(1, point="after-accepted"),
    "news": Way(1, point="in-progress"),
    "download": Way(1),
    **{step: Way(1, point=point) for step, point in END_POINTS.items()},
    "cut": Way(1, UNKNOWN),
}
OPENAI = {  # one long request, without an id: nothing to come back to
    "claimed": Way(1, point="after-claim"),
    "submitting": Way(0, UNKNOWN, "after-submitting"),
    "sent": Way(1, UNKNOWN),
    "news": Way(1, UNKNOWN, "in-progress"),
    "download": Way(1, UNKNOWN),
    "stored": Way(1, UNKNOWN, "after-upload"),
    "settling": Way(1, UNKNOWN, "in-settle"),
    "settled": Way(1, point="before-event"),
    "cut": Way(1, UNKNOWN),
}
WAYS = {"mock": MOCK, "mock, paid": PAID_MOCK, "ComfyUI": COMFYUI, "ModelsLab": MODELSLAB, "OpenAI": OPENAI}

SHORT = (("ComfyUI", "sent"), ("ModelsLab", "sent"), ("ModelsLab", "download"))


class OtherSides:
    """The three stand-ins, told when to kill whom, and what they were asked."""

    def __init__(self, comfyui: ComfyStandIn, modelslab: ModelsLabStandIn, openai: OpenAIStandIn) -> None:
        self._comfyui = comfyui
        self._modelslab = modelslab
        self._openai = openai

    @classmethod
    @contextmanager
    def opened(cls) -> Generator["OtherSides"]:
        with ExitStack() as stack:
            comfyui, modelslab, openai = stack.enter_context(ComfyStandIn()), ModelsLabStandIn(), OpenAIStandIn()
            stack.callback(modelslab.close)
            stack.callback(openai.close)
            yield cls(comfyui, modelslab, openai)

    @property
    def settings(self) -> dict[str, str]:
        """Of a service that uses them."""
        return {
            "AI_MOCK_MODE": "false",
            "SAFELIGHT_COMFYUI_URLS": self._comfyui.url,
            "SAFELIGHT_MODELSLAB_BASE_URL": self._modelslab.url,
            "SAFELIGHT_MODELSLAB_KEY": MODELSLAB_KEY,
            "SAFELIGHT_OPENAI_BASE_URL": self._openai.url,
            "SAFELIGHT_OPENAI_KEY": OPENAI_KEY,
            "SAFELIGHT_OPENAI_MODEL": "stand-in",
            "SAFELIGHT_PROVIDER_LIMITS": '{"comfyui": 50, "modelslab": 50}',  # the dead hold their places for a while
        }

    def submits(self, job_id: str, prompt: str) -> int:
        """How often a job was asked for."""
        return (
            self._comfyui.submits(job_id)
            + sum(order["track_id"] == job_id for order in self._modelslab.ledger)
            + sum(order["prompt"] == prompt for order in self._openai.ledger)
        )

    def arm(self, provider: str, step: str, kill: Callable[[], None]) -> None:
        """What happens to the next request of this kind."""
        match provider, step:
            case "ComfyUI", "sent" | "download":
                asked = "POST /prompt" if step == "sent" else "GET /view"
                self._comfyui.on_request = lambda request: kill() if request == asked else None
            case "ComfyUI", "cut":
                self._comfyui.lost_replies = 1
            case "ModelsLab", "sent":
                self._modelslab.on_submit = [lambda *_: kill()]
            case "ModelsLab", "download":
                self._modelslab.on_file = [lambda *_: kill()]
            case "ModelsLab", "cut":
                self._modelslab.on_submit = [lambda *_: Dropped()]
            case "OpenAI", "sent":
                self._openai.acts = [lambda *_: kill()]
            case "OpenAI", "download":
                self._openai.on_file = kill
                self._openai.acts = [lambda _, base: says(data=[{"url": f"{base}/files/64x64.png"}])]
            case "OpenAI", "cut":
                self._openai.acts = [lambda *_: Dropped()]
            case _:
                pass

    def disarm(self) -> None:
        self._comfyui.on_request = self._openai.on_file = None


ASKED: dict[str, dict[str, Any]] = {
    "mock": {"provider": "mock", "provider_options": {"duration_seconds": 0.3}},
    "mock, paid": {"provider": "mock", "provider_options": {"duration_seconds": 0.3, "mock": {"paid": True}}},
    "ComfyUI": {"provider": "comfyui", "checkpoint_model": "tiny.safetensors", "sampler_params": {"steps": 4}},
    "ModelsLab": {"provider": "modelslab", "width": 256, "height": 256},
    "OpenAI": {"provider": "openai_images"},
}


def at_every_step(trial: Trial) -> None:
    """One worker and one job for each provider and step; while it dies, the jobs of those before it are recovered."""
    chosen = trial.pick(SHORT, [(provider, step) for provider, ways in WAYS.items() for step in STEPS if step in ways])
    asked: dict[tuple[str, str], str] = {}
    with OtherSides.opened() as others:
        for live in (False, True):
            cells = [cell for cell in chosen if cell[0].startswith("mock") != live]
            if not cells:
                continue
            settings = others.settings if live else {}
            _open(trial, settings)
            for provider, step in cells:
                asked[provider, step] = _die(trial, others, provider, step, settings)
            trial.wait_ended()
        rows, ledger = trial.stack.rows.jobs(trial.project), trial.stack.submits()
        found: dict[tuple[str, str], Way] = {}
        for cell, job_id in asked.items():
            job = rows[job_id]
            submits = len(ledger.get(job_id, [])) + others.submits(job_id, job.prompt)
            code = job.error["code"] if job.error is not None else "" if job.status == "completed" else job.status
            found[cell] = Way(submits, code)
            right = WAYS[cell[0]][cell[1]]
            trial.expect(str(found[cell]) == str(right), f"{', '.join(cell)}: {found[cell]} submits; right is {right}")
    providers = [provider for provider in WAYS if any(provider == cell[0] for cell in found)]
    steps = {step: words for step, words in STEPS.items() if any(step == cell[1] for cell in found)}
    trial.outcome.grid = [
        ["the worker dies when", *providers],
        *([words, *(str(found.get((provider, step), "-")) for provider in providers)] for step, words in steps.items()),
    ]


def _open(trial: Trial, settings: dict[str, str]) -> None:
    """An API and children that take the jobs of the dead: no other worker."""
    stack = trial.stack
    stack.crew(api=False, io=0, local=0)
    stack.hire("api", SAFELIGHT_HOST="127.0.0.1", **settings)
    stack.hire("local", SAFELIGHT_LOCAL_SLOTS="3", **settings)
    stack.wait_for_workers(isolated=3)
    stack.wait_for_api()


def _die(trial: Trial, others: OtherSides, provider: str, step: str, settings: dict[str, str]) -> str:
    """The job that met it there."""
    way = WAYS[provider][step]
    options = () if way.point is None else ("--die", way.point)
    victim = trial.stack.start_worker("io", f"victim-{step}", *options, **settings)
    trial.stack.wait_for_workers(image_generation=1)
    others.arm(provider, step, lambda: kill_pid(victim.pid, signal.SIGKILL))
    trial.fault(f"{provider}: {step}", victim)
    prompt = f"a lighthouse, {provider}, {step}"
    body: dict[str, Any] = {**TINY, "prompt": prompt, "provider_options": {}} | ASKED[provider]
    job_id = trial.submit(ends=FAILED if way.code else COMPLETED, **body)
    if step == "cut":
        until(lambda: trial.stack.rows.job(job_id).is_terminal, what=f"the end of {prompt}")
        victim.kill()
    else:
        until(lambda: not victim.is_alive, what=f"the death of {provider}'s worker: {step}")
    others.disarm()
    return job_id


PROVIDERS = (
    Experiment(
        "points-of-providers",
        "a worker dies at each step of each provider; who was asked how often",
        at_every_step,
        short=True,
    ),
)
