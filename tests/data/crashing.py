"""What a child process runs in tests: the real check, but some images crash the decoder, hang it, or eat the memory."""

import os
import signal
import time
from pathlib import Path

from sightline.data.images.opener import ImageLimits
from sightline.data.prepare import image_store as landing
from sightline.runtime.workers import TaskFailure


def check_images(sources: tuple[Path | bytes, ...], limits: ImageLimits) -> tuple[landing.ImageFacts | TaskFailure, ...]:
    for source in sources:
        name = source.name if isinstance(source, Path) else ""
        if name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name.startswith("hang"):
            time.sleep(60)
        if name.startswith("fat"):
            bytearray(1 << 40)
    return landing.check_images(sources, limits)
