"""Downloads images, with limits on addresses, bytes and time. The HTTP client is imported when a download runs."""

from sightline.data.download.options import DownloadOptions as DownloadOptions
from sightline.data.download.options import parse_networks as parse_networks
