"""The `safelight` command: which commands there are, and nothing of what they do.

Each is imported when it is called, so that `--help` is quick and a client command never loads the server.
"""

import importlib
import keyword
import os
import re

import click

from safelight.cli.start import quick_imports

COMMANDS = {
    "Pictures": {
        "generate": ("safelight.cli.generate", "Make a picture, watch it develop, and save it."),
        "import": ("safelight.cli.media", "Import the video, sound or picture at a URL."),
        "watch": ("safelight.cli.generate", "Follow a job again and save its picture."),
    },
    "The service": {
        "up": ("safelight.cli.service", "Start everything on this machine, with one command."),
        "api": ("safelight.cli.service", "Run the HTTP API alone."),
        "worker": ("safelight.cli.service", "Run one worker alone."),
        "migrate": ("safelight.cli.service", "Bring the database to the newest schema."),
        "storage": ("safelight.cli.storage", "Prove the place for pictures, or move them to another."),
        "keys": ("safelight.cli.keys", "Make, list and revoke API keys."),
        "providers": ("safelight.cli.providers", "See how the providers are."),
        "templates": ("safelight.cli.templates", "Check ComfyUI workflow templates, and keep your own."),
        "celery": ("safelight.cli.monitor", "Ask the workers in Celery's own words: inspect, control, events."),
        "db": ("safelight.cli.database", "Move everything to another database."),
        "cleanup": ("safelight.cli.database", "Delete what was kept long enough, now."),
    },
}

WORDS = [name for commands in COMMANDS.values() for name in commands]

HELP = """Generation jobs that nothing can lose.

Safelight takes a request for a picture, answers at once, does the work in the background on workers that may die at
any moment, shows the progress live, and keeps the result.

\b
Begin with one of these:
  safelight generate "a lighthouse at dusk" -o lighthouse.png
  safelight up
"""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the help."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        for commands in COMMANDS.values():
            if cmd_name in commands:
                name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
                with quick_imports():
                    module = importlib.import_module(commands[cmd_name][0])
                return as_typed(getattr(module, name))
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a near name for one that is not there."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            from safelight.suggestion import near_names

            near = near_names(error.command_name, self.list_commands(ctx))
            raise click.NoSuchCommand(error.command_name, possibilities=near, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, by what one wants to do, without importing them."""
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="safelight", prog_name="safelight")
def group() -> None:
    """The root of every command."""


def as_typed(command: click.Command) -> click.Command:
    """The command with examples that can be pasted: in a clone it is `./run`, not `safelight`."""
    if command.help is not None and program() != "safelight":
        command.help = re.sub(rf"\bsafelight (?={'|'.join(WORDS)})", f"{program()} ", command.help)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            as_typed(inner)
    return command


def main() -> None:
    """Run the command of this process."""
    as_typed(group)
    group(prog_name=program())


def program() -> str:
    """How the user called us, for usage lines and for hints that can be pasted."""
    return os.environ.get("SAFELIGHT_COMMAND") or "safelight"
