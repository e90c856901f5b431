"""What a picture is drawn of: a scene in its story, or a character, and the prompt that is built of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from safelight.db import Tx
from safelight.errors import SafelightError
from safelight.stories.chapter import ChapterNotFound, find_chapter, get_chapter
from safelight.stories.character import Character, CharacterNotFound, characters, get_character, read_characters
from safelight.stories.project import Project, ProjectNotFound, get_project
from safelight.stories.scene import Scene, SceneNotFound, read_scenes, scenes

MAX_PROMPT = 4000


class SceneEmpty(SafelightError):
    """The scene has no description to build a prompt of. Give it one, or the picture a prompt."""

    kind = "invalid"
    code = "scene_empty"


class CharacterEmpty(SafelightError):
    """The character has no description to build a prompt of. Give it one, or the portrait a prompt."""

    kind = "invalid"
    code = "character_empty"


class PromptTooLong(SafelightError):
    """The prompt that is built of the story is too long."""

    kind = "invalid"
    code = "prompt_too_long"


@dataclass(frozen=True, slots=True)
class DrawnScene:
    """A scene, its characters in their order, and the project whose style it has."""

    project: Project
    scene: Scene
    cast: Sequence[Character]

    def prompt(self) -> str:
        """What it shows, how those in it look, and the style. Raises `SceneEmpty` or `PromptTooLong`."""
        shown = self.scene.description.strip()
        if not shown:
            raise SceneEmpty(f"Scene {self.scene.scene_number} has no description to build a prompt of.")
        looks = [f"{one.name}: {one.description}".strip(": ") for one in self.cast]
        return _built(shown, "; ".join(looks), self.project.style)


@dataclass(frozen=True, slots=True)
class DrawnCharacter:
    """A character, and the project whose style the portrait has."""

    project: Project
    character: Character

    def prompt(self) -> str:
        """Who it is, how they look, and the style. Raises `CharacterEmpty` or `PromptTooLong`."""
        look = self.character.description.strip()
        if not look:
            raise CharacterEmpty
        return _built(f"Portrait of {self.character.name}: {look}", self.project.style)


def _built(*parts: str) -> str:
    prompt = "\n".join(part.strip() for part in parts if part.strip())
    if len(prompt) > MAX_PROMPT:
        raise PromptTooLong(
            f"The prompt built of the story has {len(prompt)} characters, and at most {MAX_PROMPT} can be drawn from: "
            "shorten descriptions or the style, or give a prompt."
        )
    return prompt


def is_story_id(value: str | None) -> bool:
    """Whether this can be the id of something kept here: callers have ids of their own, of any shape."""
    try:
        return value is not None and str(UUID(value)) == value
    except ValueError:
        return False


def drawn_scene(
    tx: Tx, chapter_id: str, scene_number: int, owner_id: str
) -> DrawnScene | ChapterNotFound | SceneNotFound | None:
    """A scene by its number; None if no chapter that is kept here has this id."""
    if not is_story_id(chapter_id):
        return None
    chapter = find_chapter(tx, chapter_id, owner_id)
    if chapter is None or isinstance(chapter, ChapterNotFound):
        return chapter
    found = read_scenes(tx, scenes.c.chapter_id == chapter_id, scenes.c.scene_number == scene_number)
    if not found:
        return SceneNotFound(f"The chapter has no scene with the number {scene_number}.")
    project = get_project(tx, chapter.project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return ChapterNotFound()
    return _with_cast(tx, project, found)[0]


def undrawn_scenes(tx: Tx, chapter_id: str, owner_id: str) -> list[DrawnScene] | ChapterNotFound:
    """The scenes of a chapter that show no picture and have no job under way, by number."""
    chapter = get_chapter(tx, chapter_id, owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    project = get_project(tx, chapter.project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return ChapterNotFound()
    found = read_scenes(tx, scenes.c.chapter_id == chapter_id)
    return _with_cast(tx, project, [scene for scene in found if scene.image.is_missing])


def drawn_character(tx: Tx, character_id: str, owner_id: str) -> DrawnCharacter | CharacterNotFound:
    """A character with its project."""
    character = get_character(tx, character_id, owner_id)
    if isinstance(character, CharacterNotFound):
        return character
    project = get_project(tx, character.project_id, owner_id)
    return CharacterNotFound() if isinstance(project, ProjectNotFound) else DrawnCharacter(project, character)


def _with_cast(tx: Tx, project: Project, found: Sequence[Scene]) -> list[DrawnScene]:
    if not any(scene.character_ids for scene in found):
        return [DrawnScene(project, scene, ()) for scene in found]
    known = {one.id: one for one in read_characters(tx, characters.c.project_id == project.id)}
    return [DrawnScene(project, scene, [known[one] for one in scene.character_ids if one in known]) for scene in found]
