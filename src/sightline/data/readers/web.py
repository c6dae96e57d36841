"""Images on the web, as sources name them. A source fetches nothing: `data.download` does, before an image is asked for."""

from collections.abc import Iterator, Sequence

from sightline.data.readers.roots import ImageRoot
from sightline.errors import RecordError


class Web:
    """Stands where a folder or an archive stands for images that are files; the name of an image is its URL."""

    def locations(self, name: str) -> tuple[str, ...]:
        return ()

    def parts(self) -> Sequence[ImageRoot]:
        return (self,)

    def members(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def fetch(self, name: str) -> bytes:
        raise RecordError("image_missing", "the image was not downloaded")


WEB = Web()
