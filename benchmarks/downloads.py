"""Downloads: the cost of access checks, journal and limits, a comparison with img2dataset, and kills at random moments.

A server on this host, in its own process, sends images of about 40 kB. `bare` is the same client library alone: httpx, with the
same number of concurrent requests, bytes into files. img2dataset is measured if `--img2dataset` names its command (it needs its
own environment): both commands completely, in wall-clock time, so use a long list and an idle machine; Sightline decodes every
image, img2dataset is configured not to change them. A kill is SIGKILL at a random moment; the same command then continues, and
the folder must hold the same bytes as one made without interruption.
"""

import argparse
import asyncio
import hashlib
import io
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.findings import Finding, fixed, say
from benchmarks.measure import Ratio, in_turn
from sightline.data.download import DownloadOptions, parse_networks
from sightline.data.download.stream import Downloads
from sightline.data.readers import FORMATS, SourceOptions, Tally

ALLOW = "127.0.0.1/32"
CONNECTIONS = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds how much is fetched, and from what kind of server."""
    parser.add_argument("--urls", type=int, default=1000, help="URLs in the list (default 1000)")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds that the server waits before an answer (default 0.01)")
    parser.add_argument("--kills", type=int, default=5, help="times that the command is killed (default 5)")
    parser.add_argument("--img2dataset", help="command of img2dataset to compare with")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures."""
    with tempfile.TemporaryDirectory() as folder, _serving(options.delay) as port:
        here = Path(folder)
        urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(options.urls)]
        found = [_over_bare(here, urls, options.repeats)]
        if options.img2dataset:
            found.append(_over_img2dataset(here, urls, options.img2dataset, options.repeats))
        found.append(_killed(here, urls[: options.urls // 3], options.kills))
    return found


def _over_bare(here: Path, urls: list[str], repeats: int) -> Finding:
    source = _list(here / "list.csv", urls)
    number = 0

    def ours() -> None:
        nonlocal number
        number += 1
        limits = DownloadOptions(CONNECTIONS, CONNECTIONS, allowed=parse_networks([ALLOW]))
        with Downloads(here / f"ours-{number}", limits, lambda: None, io.BytesIO()) as downloads:
            entries = downloads.fetch_images(FORMATS["urls"].read(source, SourceOptions(), Tally()))
            assert sum(1 for _ in entries) == len(urls)

    def bare() -> None:
        nonlocal number
        number += 1
        (here / f"bare-{number}").mkdir()
        asyncio.run(_bare(urls, here / f"bare-{number}"))

    say(f"fetching {len(urls)} images with `data prepare` and with httpx alone")
    seconds = in_turn({"ours": ours, "bare": bare}, repeats)
    ratio = Ratio.of(bare / ours for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True))
    return Finding("download_over_bare_httpx", ratio, "images per CPU second, over httpx alone")


async def _bare(urls: list[str], folder: Path) -> None:
    import httpx

    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=60) as client:
        slots = asyncio.Semaphore(CONNECTIONS)

        async def fetch(number: int, url: str) -> None:
            async with slots:
                answer = await client.get(url)
            with (folder / str(number)).open("xb") as file:
                file.write(answer.content)

        await asyncio.gather(*(fetch(number, url) for number, url in enumerate(urls)))


def _over_img2dataset(here: Path, urls: list[str], command: str, repeats: int) -> Finding:
    flags = {
        "input_format": "csv",
        "caption_col": "caption",
        "processes_count": "1",
        "thread_count": str(CONNECTIONS),
        "resize_mode": "no",
        "disable_all_reencoding": "True",
        "enable_wandb": "False",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]

    def theirs(source: Path, out: Path) -> "subprocess.Popen[bytes]":
        paths = ["--url_list", str(source), "--output_folder", str(out)]
        return subprocess.Popen([command, *paths, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def seconds(start: Callable[[Path, Path], "subprocess.Popen[bytes]"], out: Path) -> float:
        begin = time.monotonic()
        child = start(source, out)
        _, output = child.communicate()
        seconds, found = time.monotonic() - begin, len(list(out.rglob("*.jpg")))
        if found != len(urls):
            raise RuntimeError(
                f"{found} of {len(urls)} images in {out.name}, exit code {child.returncode}:\n{output.decode()[-2000:]}"
            )
        return seconds

    source = _list(here / "both.csv", urls)
    ratios = []
    for number in range(repeats):
        say(f"against img2dataset, {number + 1} of {repeats}")
        ratios.append(seconds(theirs, here / f"theirs-{number}") / seconds(_prepare, here / f"ours-{number}"))
    meaning = "images per second of the complete command; Sightline decodes each image, img2dataset does not"
    return Finding("prepare_urls_over_img2dataset", Ratio.of(ratios), meaning)


def _killed(here: Path, urls: list[str], kills: int) -> Finding:
    """Returns the share of kills after which the same command ends with the same bytes."""
    source = _list(here / "killed.csv", urls)
    begin = time.monotonic()
    _prepare(source, here / "whole").communicate()
    seconds = time.monotonic() - begin
    expected = _bytes(here / "whole")
    draw = random.Random(0)
    same = 0
    for number in range(kills):
        say(f"kill {number + 1} of {kills}")
        out = here / f"killed-{number}"
        child = _prepare(source, out)
        try:
            child.communicate(timeout=draw.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        if not out.exists():
            _prepare(source, out).communicate()
        same += _bytes(out) == expected
    return fixed("download_kills_with_the_same_bytes", same / max(kills, 1), "share of kills at random moments", at_least=1)


def _prepare(source: Path, out: Path) -> "subprocess.Popen[bytes]":
    words = ["data", "prepare", str(source), "--format", "urls", "--out", str(out), "--allow-network", ALLOW, "--workers", "1"]
    command = [sys.executable, "-m", "sightline", *words, "--per-host", str(CONNECTIONS)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _bytes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _list(path: Path, urls: list[str]) -> Path:
    path.write_text("url,caption\n" + "".join(f"{url},caption {number}\n" for number, url in enumerate(urls)), "utf-8")
    return path


@contextmanager
def _serving(delay: float) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.image_server", str(delay)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()
