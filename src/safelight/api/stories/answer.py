"""What the routes of stories answer alike: a page of rows, a page of pictures, a deletion."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from starlette.responses import Response

from safelight.api.deps import list_response
from safelight.api.stories.request import Images
from safelight.api.stories.view import image_view, pictures_among
from safelight.bootstrap import Safelight
from safelight.db import Tx
from safelight.errors import SafelightError
from safelight.jobs import Jobs, Page

Row = TypeVar("Row")


class Deletion(Protocol):
    """Deletes a row and what belongs to it; returns the jobs that are to go with it."""

    def __call__(
        self, tx: Tx, jobs: Jobs, item_id: str, owner_id: str, /, *, with_images: bool
    ) -> list[str] | SafelightError: ...


async def page(
    found: Sequence[Row], limit: int, view: Callable[[Row], dict[str, Any]], place: Callable[[Row], str | int]
) -> Response:
    """The first `limit` of the rows, of which one more was asked for, and the cursor that goes on after their last."""
    shown = found[:limit]
    following = str(place(shown[-1])) if len(found) > limit else None
    return await list_response(map(view, shown), next_cursor=following)


async def pictures(found: Page) -> Response:
    """An `ImageList`: what these jobs made."""
    items = [image_view(job, image) for job in found.jobs for image in pictures_among(found.artifacts.get(job.id, ()))]
    following = found.jobs[-1].id if found.more else None
    return await list_response(items, next_cursor=following)


async def delete(world: Safelight, deletion: Deletion, item_id: str, owner: str, images: Images) -> Response:
    """Delete a row, and its pictures' jobs if `images` says so. Raises what stands in the way."""
    gone = await world.database.write(
        lambda tx: deletion(tx, world.jobs, item_id, owner, with_images=images == "delete")
    )
    if isinstance(gone, SafelightError):
        raise gone
    await world.retention.delete_jobs(gone)
    return Response(status_code=204)
