"""`generate` and `watch`: a job from its prompt, or from its id, to the saved picture."""

import json
import shlex
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from safelight.cli.display import Display, open_display
from safelight.cli.failure import Exit, Failure
from safelight.cli.main import program
from safelight.cli.picture import check_target, save_artifacts
from safelight.cli.stack import StackAccess
from safelight.cli.watch import StillRunning, watch_job
from safelight_client import ApiError, ClientError, Unreachable

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
OPTIONS = {  # by the field of the request's body that they set
    "prompt": "PROMPT",
    "negative_prompt": "--negative-prompt",
    "provider": "--provider",
    "model": "--model",
    "checkpoint_model": "--model",
    "width": "--width",
    "height": "--height",
    "seed": "--seed",
    "batch_size": "--batch-size",
    "provider_options": "--option",
    "template": "--template",
    "inputs": "--input",
    "workflow": "--workflow",
    "input_images": "--image",
}
CANCEL_WINDOW = 2.0  # seconds after Ctrl-C in which another one cancels the job
CANCEL_SECONDS = 5  # how long the end of a cancelled job is waited for


def watching(command: AnyCommand) -> AnyCommand:
    """The options of what follows a job."""
    options = [
        click.option("-o", "--output", type=click.Path(path_type=Path), help="File to save, or a folder.  [JOB.png]"),
        click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Stop watching after so many seconds."),
        click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Whose stack.  [.safelight]"),
        click.option("--url", help="Use the Safelight at this address; never start one."),
        click.option(
            "--api-key", help="For a Safelight with accounts; better SAFELIGHT_API_KEY: arguments can be seen."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the finished job as JSON instead of the path."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_options(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`key=value`, where the value is JSON if it can be read so, else text."""
    options: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"'{value}' is not KEY=VALUE.", context, parameter)
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def read_workflow(context: click.Context, parameter: click.Parameter, file: Path | None) -> dict[str, Any] | None:
    """The workflow in a file."""
    if file is None:
        return None
    try:
        workflow = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{file} is not JSON: {error}", context, parameter) from None
    if not isinstance(workflow, dict):
        raise click.BadParameter(f"{file} is no workflow: that is a JSON object.", context, parameter)
    return workflow


def read_images(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[Path | str]:
    """Files to upload, or references to what is elsewhere."""
    images: list[Path | str] = []
    for value in values:
        if Path(value).is_file():
            images.append(Path(value))
        elif value.startswith(("http://", "https://")) or is_id(value):
            images.append(value)
        else:
            problem = f"'{value}' is no file here, no id of an artifact, and no http:// or https:// address."
            raise click.BadParameter(problem, context, parameter)
    return images


def is_id(text: str) -> bool:
    """Whether it can be the id of something."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


@click.command()
@click.argument("prompt")
@click.option("--negative-prompt", help="What should not be in the picture.")
@click.option("--provider", help="Who makes it.  [the default provider]")
@click.option("--model", help="Which model of the provider.")
@click.option("--width", type=click.IntRange(1), help="Pixels.")
@click.option("--height", type=click.IntRange(1), help="Pixels.")
@click.option("--seed", type=int, help="The same seed and prompt give the same picture.")
@click.option("--batch-size", type=click.IntRange(1), help="How many pictures; saved as NAME-1.png, NAME-2.png, ...")
@click.option(
    "--option", "options", multiple=True, callback=read_options, metavar="KEY=VALUE", help="For the provider."
)
@click.option("--template", metavar="NAME", help="Fill this workflow template; `templates ls` lists them.")
@click.option(
    "--input", "inputs", multiple=True, callback=read_options, metavar="KEY=VALUE", help="What the template takes."
)
@click.option(
    "--workflow",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=read_workflow,
    help="Run this ComfyUI workflow, exported with Workflow > Export (API).",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    callback=read_images,
    metavar="FILE|ID|URL",
    help="A picture to start from; a file is uploaded first.",
)
@watching
def generate(
    prompt: str,
    options: dict[str, Any],
    inputs: dict[str, Any],
    images: list[Path | str],
    output: Path | None,
    timeout: float | None,
    data_dir: Path | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Make a picture from PROMPT, watch it develop, and save it.

    Uses the Safelight that runs; without one it starts one, for as long as this takes.
    Ctrl-C stops watching and says how to go on; twice cancels the job. --option, --input and --image may be repeated;
    a VALUE is read as JSON where that is possible, else it is a text.

    \b
    Examples:
      safelight generate "a lighthouse at dusk" -o lighthouse.png
      safelight generate "a portrait of a sailor" --width 768 --height 1024 --batch-size 4 -o sailor.png
    \b
    On ComfyUI servers of your own:
      safelight generate "a lighthouse" --provider comfyui --model sd_xl_base_1.0.safetensors
      safelight generate "a pier" --provider comfyui --template txt2img --model NAME --input steps=30 --input cfg=6.5
      safelight generate "in oil" --provider comfyui --template img2img --model NAME --image photo.jpg
      safelight generate "my graph" --provider comfyui --workflow graph.json --image photo.jpg
    \b
    Exit codes: 0 saved, 1 the job failed, 2 usage, 5 Safelight is unavailable, 6 stopped watching (the job goes on),
    130 cancelled.
    """
    check_target(output)
    if inputs and fields["template"] is None:
        raise click.UsageError("--input is for a template: name it with --template.")
    if fields["template"] is not None and fields["workflow"] is not None:
        raise click.UsageError("--template and --workflow exclude each other; give one of them.")

    def submit(stack: StackAccess) -> dict[str, Any]:
        given: dict[str, Any] = {
            "provider_options": options or None,
            "inputs": inputs or None,
            "input_images": [uploaded(stack, image) for image in images] or None,
        }
        return stack.client.submit(prompt=prompt, **given, **fields)

    JobSession(output, timeout, data_dir, url, api_key, as_json).run(submit)


def uploaded(stack: StackAccess, image: Path | str) -> str:
    """A reference to a picture, of a file after its upload."""
    if isinstance(image, str):
        return image
    try:
        return stack.client.upload(image)["id"]
    except OSError as error:
        raise Failure(f"--image {image}: it cannot be read: {error.strerror}.", Exit.USAGE) from None
    except ApiError as error:
        if error.status not in (413, 415, 422):
            raise
        raise Failure(f"--image {image}: {error.detail}", Exit.USAGE) from None


@click.command()
@click.argument("job_id", metavar="JOB")
@watching
def watch(
    job_id: str,
    output: Path | None,
    timeout: float | None,
    data_dir: Path | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Follow the job with the id JOB to its end and save its picture. Of a finished one, just save the picture.

    Where no Safelight runs it says so: `safelight up` starts one, and a job that was left unfinished then goes on.

    \b
    Example:
      safelight watch 0199f1c2-7d2e-7a55-b5d4-6f1f7f0c2b11 -o lighthouse.png
    """
    check_target(output)
    JobSession(output, timeout, data_dir, url, api_key, as_json).run(
        lambda stack: stack.client.get(job_id), starts=False
    )


class JobSession:
    """One command's way with one job: find or start a Safelight, watch, save, and leave in a way that is said."""

    def __init__(
        self,
        output: Path | None,
        timeout: float | None,
        data_dir: Path | None,
        url: str | None,
        api_key: str | None,
        as_json: bool,
    ) -> None:
        self._output = output
        self._timeout = timeout
        self._data_dir = data_dir
        self._url = url
        self._api_key = api_key
        self._as_json = as_json

    def run(self, begin: Callable[[StackAccess], dict[str, Any]], *, starts: bool = True) -> None:
        """From `begin`, which submits or finds the job, to the end of the command."""
        job: dict[str, Any] | None = None
        try:
            with StackAccess(self._url, self._data_dir, say, self._api_key, starts=starts) as stack:
                try:
                    job = begin(stack)
                    for warning in job.get("warnings") or ():
                        say(warning)
                    job = self._watch(stack, job)
                    self._conclude(stack, job)
                except KeyboardInterrupt:
                    if job is None:
                        raise
                    self._detach(stack, job)
                except StillRunning:
                    say(f"Still running after {self._timeout:g} s. {self._how_to_resume(stack, job or {})}")
                    raise click.exceptions.Exit(Exit.STILL_RUNNING) from None
        except KeyboardInterrupt:
            say("Interrupted.")
            raise click.exceptions.Exit(Exit.CANCELLED) from None
        except Unreachable as error:
            resume = f"\nThe job {job['id']} is kept; watch it again when Safelight is back." if job else ""
            raise Failure(f"{error}{resume}", Exit.UNAVAILABLE) from None
        except ApiError as error:
            unavailable = error.status in (429, 502, 503, 504)
            code = (
                Exit.UNAVAILABLE
                if unavailable
                else Exit.USAGE
                if error.status in (400, 401, 403, 413, 422)
                else Exit.FAILED
            )
            hint = f"\nSet SAFELIGHT_API_KEY; `{program()} keys create` makes one." if error.status == 401 else ""
            raise Failure(f"{explained(error)}{hint}", code) from None

    def _watch(self, stack: StackAccess, job: dict[str, Any]) -> dict[str, Any]:
        give_up = None if self._timeout is None else time.monotonic() + self._timeout
        with open_display() as display:
            while True:
                try:
                    return watch_job(stack.client, job, display, give_up=give_up, patience=stack.patience)
                except Unreachable:
                    if not self._find_again(stack, display):
                        raise
                    job = stack.client.get(job["id"])

    def _find_again(self, stack: StackAccess, display: Display) -> bool:
        display.say("Safelight went away. Looking for it...")
        return stack.find_again()

    def _conclude(self, stack: StackAccess, job: dict[str, Any]) -> None:
        saved = save_artifacts(stack.client, job, self._output) if job["status"] == "completed" else []
        if self._as_json:
            click.echo(json.dumps(job | {"saved": [str(path) for path in saved]}, indent=2))
        else:
            for path in saved:
                click.echo(path)
        if job["status"] == "cancelled":
            raise Failure("The job was cancelled.")
        if job["status"] != "completed":
            error = job.get("error") or {}
            raise Failure(f"{error.get('code') or job['status']}: {error.get('message') or 'the job failed'}")

    def _detach(self, stack: StackAccess, job: dict[str, Any]) -> None:
        """After Ctrl-C: say how to go on, and give another Ctrl-C a moment to mean cancel."""
        how = self._how_to_resume(stack, job)
        try:
            say(f"Detached. {how}\nPress Ctrl-C again within {CANCEL_WINDOW:g} s to cancel it.")
            time.sleep(CANCEL_WINDOW)
        except KeyboardInterrupt:
            self._cancel(stack, job)
            raise click.exceptions.Exit(Exit.CANCELLED) from None
        raise click.exceptions.Exit(Exit.STILL_RUNNING)

    def _cancel(self, stack: StackAccess, job: dict[str, Any]) -> None:
        say("Cancelling the job...")
        try:
            job = stack.client.cancel(job["id"])
            if not job.get("is_terminal"):
                job = stack.client.get(job["id"], wait=CANCEL_SECONDS)
        except ApiError as error:
            if error.status != 409:  # it had ended meanwhile
                say(f"It could not be cancelled: {error}")
                return
            with suppress(ClientError):
                job = stack.client.get(job["id"])
        except Unreachable as error:
            say(f"It could not be cancelled: {error}")
            return
        say(f"The job is {job['status']}." if job.get("is_terminal") else "It will be cancelled in a moment.")

    def _how_to_resume(self, stack: StackAccess, job: dict[str, Any]) -> str:
        command = [program(), "watch", job["id"]]
        if self._output:
            command += ["-o", str(self._output)]
        if self._url:
            command += ["--url", self._url]
        if self._data_dir:
            command += ["--data-dir", str(self._data_dir)]
        if not stack.is_own:
            return f"The job goes on. To follow it: {shlex.join(command)}"
        up = shlex.join([program(), "up", *(["--data-dir", str(self._data_dir)] if self._data_dir else [])])
        return f"The job stays. To go on with it: {up}\nand then to follow it: {shlex.join(command)}"


def explained(error: ApiError) -> str:
    """What was wrong, by the option that said it."""
    if not error.errors:
        return f"{error.code}: {error.detail}"
    parts = (f"\n  {option_of(str(each.get('pointer')))}: {each.get('detail')}" for each in error.errors)
    return f"{error.code}:{''.join(parts)}"


def option_of(pointer: str) -> str:
    """The option behind a field of the request's body."""
    field, *below = pointer.removeprefix("#/").split("/")
    if field not in OPTIONS:
        return pointer
    if field == "input_images":
        below = [str(int(place) + 1) for place in below if place.isdecimal()]
    return " ".join([OPTIONS[field], "/".join(below)]).rstrip()


def say(text: str) -> None:
    """A sentence for the person, apart from the result."""
    click.echo(text, err=True)
