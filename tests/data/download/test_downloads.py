"""`data prepare --format urls` against a server that misbehaves in every way: each URL has its outcome, the others theirs."""

import gc
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.data.dataset import open_dataset
from sightline.data.download import DownloadOptions, fetch, parse_networks
from sightline.data.download.cache import Cache
from sightline.data.download.fetch import Fetcher, FetchResult
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.readers import SourceOptions
from sightline.errors import SkipLimitError, StorageError, UsageError
from tests.data.download.server import BEHAVIOURS, PICTURE, WebServer, serving, write_list
from tests.data.pictures import lines, picture, put, tree

# A connection that is made in the very moment in which its time limit ends is left to the garbage collector by the client library.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def left_connections() -> Iterator[None]:
    """Collects them here, and not in the middle of another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize("number", [1, 500, 999])
def test_a_damaged_line_of_the_journal_costs_its_url_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    urls = [f"https://example.org/{n}.png" for n in range(1000)]
    cache = Cache(tmp_path)
    for url in urls:
        cache.part().write_bytes(url.encode())
        cache.add(
            url,
            FetchResult(hashlib.sha256(url.encode()).hexdigest(), len(url), "", "", False),
            tmp_path / f"part-{urls.index(url)}",
        )
    cache.close()
    journal = tmp_path / "journal.jsonl"
    kept = journal.read_bytes().splitlines(keepends=True)
    bad = bytearray(kept[number - 1])
    bad[12] ^= 1  # within the URL, so that the line is still JSON
    kept[number - 1] = bytes(bad)
    journal.write_bytes(b"".join(kept))
    again = Cache(tmp_path)
    assert [url for url in urls if again.find(url) is None] == [urls[number - 1]]
    again.close()
    assert f"journal.jsonl: 1 damaged line (number {number}), moved to journal.jsonl.damaged" in caplog.text


OUTCOMES = {  # behaviour -> reason in downloads.jsonl; "ok" for what only the image opener can judge
    "bad-chunk": "download_protocol",
    "big-header": "download_protocol",
    "brotli": "download_encoding",
    "busy-always": "http_429",
    "busy-date": "ok",
    "busy-long": "http_429",
    "busy-once": "ok",
    "chunked": "ok",
    "continue": "download_timeout",
    "cut": "download_cut",
    "cut-once": "ok",
    "declared-huge": "download_too_large",
    "drip": "download_timeout",
    "drip-head": "download_timeout",
    "empty": "ok",
    "endless": "download_too_large",
    "forbidden": "http_403",
    "garbage": "download_protocol",
    "gone": "http_410",
    "gzip": "ok",
    "gzip-bomb": "download_too_large",
    "gzip-torn": "download_encoding",
    "hang": "download_timeout",
    "hop/5": "ok",
    "hop/6": "download_redirects",
    "html": "ok",
    "loop": "download_redirects",
    "missing": "http_404",
    "moved": "ok",
    "no-content": "http_204",
    "no-length": "ok",
    "no-type": "ok",
    "ok/1": "ok",
    "opted-out": "download_opted_out",
    "partial": "http_206",
    "reset": "download_cut",
    "reset-once": "ok",
    "shaky": "ok",
    "sick": "http_500",
    "slow/2": "ok",
    "to-file": "url_refused",
    "to-inner": "url_refused",
    "to-metadata": "url_refused",
    "to-nowhere": "download_redirects",
    "to-password": "url_refused",
    "too-short": "ok",
    "torn": "ok",
    "wrong-type": "ok",
}
OPENER = {"empty": "image_empty", "html": "image_format", "too-short": "image_broken", "torn": "image_broken"}
RETRIED = {"busy-always": 3, "busy-once": 2, "cut": 3, "cut-once": 2, "missing": 1, "hang": 1, "reset": 3, "shaky": 3, "sick": 3}
LOOPBACK = parse_networks(["127.0.0.1/32"])


def quick(**options: Any) -> DownloadOptions:
    """Limits for a server beside us."""
    plain = {"connections": 32, "per_host": 16, "tries": 3, "seconds": 2.0, "silence_seconds": 0.7, "pause_seconds": 0.01}
    return DownloadOptions(**{**plain, "allowed": LOOPBACK, **options})


def downloaded(path: Path, out: Path, download: DownloadOptions | None = None, **options: Any) -> dict[str, Any]:
    return prepare(
        path, "urls", PrepareOptions(out=out, download=download or quick(), **{"workers": 0, "max_skipped": 1.0, **options})
    )


def outcomes(out: Path) -> list[str]:
    return [line["outcome"] for line in lines(out / "downloads.jsonl")]


# What servers do ------------------------------------------------------------------------------------------------------------


def test_every_behaviour_of_a_server_has_its_outcome_and_costs_no_other_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1_000_000)
    assert {name.partition("/")[0] for name in OUTCOMES} == set(BEHAVIOURS)
    good = [f"ok/{number}" for number in range(10, 10 + len(OUTCOMES))]
    paths = [path for pair in zip(OUTCOMES, good, strict=True) for path in pair]
    with serving() as server:
        begin = time.monotonic()
        summary = downloaded(write_list(tmp_path / "list.jsonl", [server.url(path) for path in paths]), tmp_path / "out")
        assert time.monotonic() - begin < 30
        assert server.knocks == 0, "the forbidden host was reached"
        assert {path: server.visits[path] for path in RETRIED} == RETRIED
    found = lines(tmp_path / "out/downloads.jsonl")
    assert dict(zip(paths, (line["outcome"] for line in found), strict=True)) == {**OUTCOMES, **dict.fromkeys(good, "ok")}
    assert summary["input"] == summary["ok"] + sum(summary["skipped"].values()) == 2 * len(OUTCOMES)
    skipped = {line["id"]: line["reason"] for line in lines(tmp_path / "out/skipped.jsonl")}
    expected = {f"row-{2 * n}": OPENER.get(path, outcome) for n, (path, outcome) in enumerate(OUTCOMES.items())}
    assert skipped == {name: reason for name, reason in expected.items() if reason != "ok"}
    dataset = open_dataset(tmp_path / "out")
    dataset.verify()
    seen = {record.captions[0]: dataset.image_bytes(record) for record in dataset.records()}
    assert all(seen[f"caption {2 * n + 1}"] == picture(10 + n) for n in range(len(OUTCOMES)))
    for path in ("gzip", "chunked", "no-length", "shaky", "hop/5", "cut-once"):
        assert seen[f"caption {paths.index(path)}"] == (picture(7) if path != "ok/1" else PICTURE)


def test_urls_that_must_not_be_asked_are_refused_and_their_passwords_told_nobody(tmp_path: Path) -> None:
    with serving() as server:
        inner = f"127.0.0.2:{server.port}"
        urls = [
            f"http://{inner}/ok/1",
            f"http://localtest:secret@{inner}/",
            f"http://[::ffff:127.0.0.2]:{server.port}/",
            f"http://2130706434:{server.port}/",
            f"http://0x7f000002:{server.port}/",
            f"http://127.2:{server.port}/",
            f"http://example.com\\@{inner}/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[fd00:ec2::254]/",
            "file:///etc/passwd",
            "ftp://example.com/a.png",
            "what?",
            f"http://127.0.0.1:{server.port}/ok/1",
        ]
        summary = downloaded(write_list(tmp_path / "list.jsonl", [*urls, server.url("ok/2")]), tmp_path / "out")
        assert (server.knocks, sum(server.visits.values())) == (0, 2)
    assert outcomes(tmp_path / "out")[-2:] == ["ok", "ok"]
    assert set(outcomes(tmp_path / "out")[:-2]) == {"bad_url", "url_refused"}
    assert summary["ok"] == 2
    assert not any(b"secret" in content for content in tree(tmp_path / "out").values())


def test_without_permission_this_host_is_closed(tmp_path: Path) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url("ok/1"), server.url("ok/1", "localhost")])
        with pytest.raises(SkipLimitError, match="url_refused 2"):
            downloaded(source, tmp_path / "out", quick(allowed=()))
        assert not server.visits


def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving() as server:
        assert downloaded(write_list(tmp_path / "list.csv", [server.url("ok/1")]), tmp_path / "out")["ok"] == 1
        head = server.heads[0].decode()
    assert head.startswith("GET /ok/1 HTTP/1.1\r\n")
    assert "sightline/" in head
    assert "cookie" not in head.lower()


# Being a good guest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("connections", "per_host", "peak"), [(32, 3, 3), (2, 16, 2)])
def test_no_host_gets_more_requests_at_a_time_than_allowed(tmp_path: Path, connections: int, per_host: int, peak: int) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"slow/{number}") for number in range(20)])
        assert downloaded(source, tmp_path / "out", quick(connections=connections, per_host=per_host))["ok"] == 20
        assert server.peak[""] == peak


def test_a_host_is_left_alone_as_long_as_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, str]] = []

    async def busy(visit: Any) -> None:
        asked.append((time.monotonic(), visit.path))
        await (visit.status("429 Slow down", "Retry-After: 1") if len(asked) == 1 else visit.send(PICTURE))

    monkeypatch.setitem(BEHAVIOURS, "busy-once", busy)
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"busy-once?{number}") for number in range(3)])
        assert downloaded(source, tmp_path / "out", quick(per_host=1))["ok"] == 3
    assert len(asked) == 4
    assert asked[1][0] - asked[0][0] >= 0.95, "every URL of the host waits"


def test_a_host_that_only_refuses_is_given_up_with_the_reason_it_gave(tmp_path: Path) -> None:
    with serving() as server:
        urls = [server.url(f"busy-always?{number}") for number in range(60)]
        with pytest.raises(SkipLimitError, match="http_429 60"):
            downloaded(write_list(tmp_path / "list.csv", urls), tmp_path / "out", quick(per_host=2))
        assert sum(server.visits.values()) < 25


def test_a_url_is_fetched_once_however_many_records_name_it(tmp_path: Path) -> None:
    with serving() as server:
        urls = [server.url("slow/1")] * 5 + [server.url("missing")] * 4 + [server.url("ok/2")] + [server.url("slow/1")]
        summary = downloaded(write_list(tmp_path / "list.jsonl", urls), tmp_path / "out")
        assert server.visits == {"slow/1": 1, "missing": 1, "ok/2": 1}
    assert (summary["ok"], summary["images"], summary["skipped"]) == (7, 2, {"http_404": 4})
    assert len(outcomes(tmp_path / "out")) == 11


# Sources --------------------------------------------------------------------------------------------------------------------


def test_text_in_any_script_other_columns_and_hashes_are_kept(tmp_path: Path) -> None:
    import hashlib

    texts = ["一只狗", "كلب", 'ein, "zwei"', "🐕 a\u2028b"]
    with serving() as server:
        rows = [{"image_url": server.url(f"ok/{n}"), "caption": text, "id": f"ü{n}"} for n, text in enumerate(texts)]
        rows[0]["sha256"] = hashlib.sha256(picture(0)).hexdigest().upper()
        rows[1]["image_sha256"] = "0" * 64
        rows[2]["sha256"] = "short"
        rows.append({"image_url": [server.url("ok/8"), server.url("ok/9")], "caption": "two", "id": "two"})
        rows.append({"image_url": None, "caption": "none", "id": "none"})
        rows.append({"caption": "none", "id": "absent"})
        summary = downloaded(put(tmp_path / "list.jsonl", rows), tmp_path / "out")
    assert summary["skipped"] == {"hash_mismatch": 1, "bad_image_info": 1, "bad_url": 2}
    records = {record.id: record for record in open_dataset(tmp_path / "out").records()}
    assert {name: record.captions for name, record in records.items()} == {"ü0": (texts[0],), "ü3": (texts[3],), "two": ("two",)}
    assert len(records["two"].images) == 2
    assert records["ü3"].meta["url"].endswith("/ok/3")


def test_a_quote_that_is_never_closed_loses_no_row_after_it(tmp_path: Path) -> None:
    with serving() as server:
        rows = [
            f"{server.url('ok/1')},fine",
            f'{server.url("ok/2")},"open',
            *(f"{server.url(f'ok/{n}')},c{n}" for n in range(3, 9)),
        ]
        source = put(tmp_path / "list.csv", "image_url,caption\n" + "\n".join(rows) + "\n")
        summary = downloaded(source, tmp_path / "out")
    assert (summary["ok"], summary["skipped"]) == (7, {"unbalanced_quote": 1})


def test_only_what_is_needed_is_fetched(tmp_path: Path) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"ok/{number}") for number in range(30)])
        assert downloaded(source, tmp_path / "sample", sample=4)["ok"] == 4
        assert sum(server.visits.values()) == 4
        assert downloaded(source, tmp_path / "text", source=SourceOptions(text_only=True))["ok"] == 30
        with pytest.raises(UsageError, match="a URL is none"):
            downloaded(source, tmp_path / "names", source=SourceOptions(without_images=True))
        assert sum(server.visits.values()) == 4
    assert not (tmp_path / "text/downloads.jsonl").exists()


def test_shards_hold_what_a_folder_holds(tmp_path: Path) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"ok/{number}") for number in range(9)])
        plain = downloaded(source, tmp_path / "plain")
        assert downloaded(source, tmp_path / "shards", shards=2_000)["fingerprint"] == plain["fingerprint"]
    open_dataset(tmp_path / "shards").verify()


@pytest.mark.parametrize("options", [{"connections": 0}, {"per_host": 0}, {"tries": 0}, {"seconds": 0.0}])
def test_limits_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        DownloadOptions(**options)


# Stopping and going on ------------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from pathlib import Path
from sightline.data.download import DownloadOptions, parse_networks
from sightline.data.prepare.run import PrepareOptions, prepare
allowed = parse_networks(["127.0.0.1"])
limits = DownloadOptions(int(sys.argv[3]), 8, 3, 2.0, silence_seconds=0.5, pause_seconds=0.01, allowed=allowed)
prepare(Path(sys.argv[1]), "urls", PrepareOptions(out=Path(sys.argv[2]), workers=0, max_skipped=1.0, download=limits))
"""
MIXED = [
    "busy-once",
    "cut-once",
    "forbidden",
    "gzip",
    "html",
    "missing",
    "moved",
    "reset",
    "shaky",
    "sick",
    "to-inner",
    "torn",
    "hop/6",
]


def mixed_list(server: WebServer, path: Path, count: int = 26) -> Path:
    """Good images between bad ones, some URLs twice."""
    paths = [f"slow/{number}" if number % 2 else MIXED[number // 2 % len(MIXED)] for number in range(count)]
    return write_list(path, [server.url(name) for name in [*paths, *paths[:5]]])


def in_child(source: Path, out: Path, faults: str = "", connections: int = 8) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, str(source), str(out), str(connections)]
    return subprocess.Popen(command, env={**os.environ, "SIGHTLINE_FAULTS": faults}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "faults", ["download.fetched=kill@3", "download.landed=kill@20", "prepare.before_records=kill", "publish.before_rename=kill"]
)
def test_killed_anywhere_it_goes_on_to_the_same_bytes_and_fetches_nothing_good_twice(tmp_path: Path, faults: str) -> None:
    with serving() as server:
        source = mixed_list(server, tmp_path / "list.jsonl")
        downloaded(source, tmp_path / "reference")
        server.visits.clear()
        child = in_child(source, tmp_path / "out", faults)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, errors
        assert not (tmp_path / "out").exists()
        journal = tmp_path / "out.preparing/fetched/journal.jsonl"
        kept = [line["url"] for line in lines(journal) if not line["reason"]]
        assert kept
        visits = dict(server.visits)
        downloaded(source, tmp_path / "out")
        again = [url for url in kept if server.visits[url.split("/", 3)[3]] > visits[url.split("/", 3)[3]]]
        assert not again
        assert server.knocks == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def test_killed_again_and_again_at_random_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """With another number of connections each time."""
    draw = random.Random(3)
    with serving() as server:
        source = mixed_list(server, tmp_path / "list.jsonl")
        downloaded(source, tmp_path / "reference")
        for connections in (1, 2, 5):
            in_child(source, tmp_path / "out", f"download.fetched=kill@{draw.randint(4, 12)}", connections).communicate(timeout=60)
        downloaded(source, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def test_a_signal_stops_it_at_once_and_keeps_what_was_fetched(tmp_path: Path) -> None:
    with serving() as server:
        source = write_list(
            tmp_path / "list.csv", [server.url(f"ok/{n}") for n in range(5)] + [server.url(f"hang?{n}") for n in range(9)]
        )
        child = in_child(source, tmp_path / "out", connections=4)
        deadline = time.monotonic() + 60
        while server.visits["hang?3"] + server.visits["hang?0"] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        _, errors = child.communicate(timeout=20)
        assert time.monotonic() - begin < 5
    assert "Run the same command again" in errors
    assert len(list((tmp_path / "out.preparing/fetched").glob("??/*"))) == 5


def test_final_answers_are_believed_and_passing_trouble_is_asked_again(tmp_path: Path) -> None:
    with serving() as server:
        paths = ["ok/1", "missing", "gone", "sick", "hang", "to-inner"]
        source = write_list(tmp_path / "list.csv", [server.url(path) for path in paths])
        in_child(source, tmp_path / "out", "prepare.before_records=kill").communicate(timeout=60)
        assert [server.visits.pop(path) for path in paths] == [1, 1, 1, 3, 1, 1]
        downloaded(source, tmp_path / "out")
        assert [server.visits[path] for path in paths] == [0, 0, 0, 3, 1, 1]


def test_looking_through_what_is_there_does_not_make_servers_look_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of an earlier try are hashed while requests run: their time limits must not pass meanwhile."""
    with serving() as server:
        paths = ["sick", *(f"ok/{number}" for number in range(40)), "shaky?2"]
        source = write_list(tmp_path / "list.csv", [server.url(path) for path in paths])
        in_child(source, tmp_path / "out", "prepare.before_records=kill").communicate(timeout=60)
        whole = Cache._is_whole

        def slowly(self: Cache, url: str, sha256: str) -> bool:
            time.sleep(0.05)  # a large file on a slow disk
            return whole(self, url, sha256)

        monkeypatch.setattr(Cache, "_is_whole", slowly)
        downloaded(source, tmp_path / "out", quick(connect_seconds=0.5))
    assert outcomes(tmp_path / "out") == ["http_500", *["ok"] * 41]


def test_a_file_that_a_crash_tore_is_fetched_again(tmp_path: Path) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"ok/{number}") for number in range(4)])
        in_child(source, tmp_path / "out", "prepare.before_records=kill").communicate(timeout=60)
        torn = sorted((tmp_path / "out.preparing/fetched").glob("??/*"))[0]
        torn.unlink()  # its other name is an image of the dataset
        torn.write_bytes(b"half")
        (tmp_path / "out.preparing/fetched/part-7").write_bytes(b"rest")
        with (tmp_path / "out.preparing/fetched/journal.jsonl").open("a") as file:
            file.write('{"url": "http')
        downloaded(source, tmp_path / "out")
        assert sorted(server.visits.values()) == [1, 1, 1, 2]
        downloaded(source, tmp_path / "reference")
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def test_a_disk_that_refuses_is_an_error_and_no_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"ok/{number}") for number in range(4)])
        monkeypatch.setenv("SIGHTLINE_FAULTS", "download.write=enospc@2")
        with pytest.raises(StorageError, match="No space left"):
            downloaded(source, tmp_path / "out")
        monkeypatch.delenv("SIGHTLINE_FAULTS")
        assert downloaded(source, tmp_path / "out")["ok"] == 4


def test_an_unforeseen_fault_costs_its_url_alone_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Fetcher._get

    async def odd(self: Fetcher, target: Any, *rest: Any) -> Any:
        if target.url.raw_path == b"/ok/2":
            raise ZeroDivisionError
        return await get(self, target, *rest)

    monkeypatch.setattr(Fetcher, "_get", odd)
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url(f"ok/{number}") for number in range(4)])
        summary = downloaded(source, tmp_path / "out")
    assert (summary["ok"], summary["skipped"]) == (3, {"download_error": 1})


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    with serving() as server:
        source = write_list(tmp_path / "list.csv", [server.url("ok/1"), server.url("missing"), server.url("ok/2")])
        command = [
            sys.executable,
            "-m",
            "sightline",
            "data",
            "prepare",
            str(source),
            "--format",
            "urls",
            "--out",
            str(tmp_path / "out"),
        ]
        options = ["--allow-network", "127.0.0.1/32", "--per-host", "2", "--workers", "1", "--json"]
        run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert (result["input"], result["ok"], result["skipped"]) == (3, 2, {"http_404": 1})
