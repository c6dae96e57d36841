"""Downloads of images: what may be fetched, from where, how much of it and for how long. The engine is imported when it runs."""

from sightline.data.download.options import DownloadOptions as DownloadOptions
from sightline.data.download.options import parse_networks as parse_networks
