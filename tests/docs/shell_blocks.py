"""The shell commands of a page, in order, as its reader would type them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Typed:
    """One command, and what the page says that it answers."""

    command: str
    answer: str


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def typed(page: str) -> list[Typed]:
    """Every command of the page: of `console` what follows `$ `, of `sh` everything that is no comment."""
    commands: list[Typed] = []
    for language, text in blocks(page, "console", "sh"):
        joined = text.replace("\\\n", " ")
        if language == "console":
            for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
                command, _, answer = part.partition("\n")
                commands.append(Typed(command, answer))
        else:
            # Quotes may go on over lines.
            lines = [line for line in joined.splitlines() if not line.startswith("#")]
            rest = ""
            for line in lines:
                rest = f"{rest}\n{line}" if rest else line
                if rest.count("'") % 2 == 0:
                    commands.append(Typed(rest, ""))
                    rest = ""
    return [one for one in commands if one.command.strip()]


def names_in(answer: str) -> set[str]:
    """The keys of the JSON that a page shows."""
    return set(re.findall(r'"(\w+)":', answer))
