"""Images on the web, as sources name them. A source fetches nothing: `data.download` does, before an image is asked for."""

from sightline.errors import RecordError


class Web:
    """Stands where a folder or an archive stands for images that are files; the name of an image is its URL."""

    def fetch(self, name: str) -> bytes:
        raise RecordError("image_missing", "the image was not downloaded")


WEB = Web()
