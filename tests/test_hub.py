"""Fetching the published files, by a process of its own each time: the hub's library reads its environment
once, and what a user sets there is what has to work."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import COMMIT, Fault, HubStandIn, environment, serving

from crm_cli.models import hub
from crm_cli.models.weights import PUBLISHED_FILES

CHILD = """
import json, sys
from crm_cli.errors import CrmError
from crm_cli.models import download, hub

asked = json.loads(sys.argv[1])
download.PAUSES_S = asked.pop("pauses_s")
hub.DIGESTS, hub.SIZES = asked.pop("digests") or hub.DIGESTS, asked.pop("sizes") or hub.SIZES
exec(asked.pop("first"))
said = []
try:
    files = hub.fetch(**asked, progress=lambda *words: said.append(words))
    answer = {"files": [str(file) for file in files]}
except CrmError as error:
    answer = {"code": error.code, "exit": int(error.exit_code), "text": str(error)}
print(json.dumps({**answer, "said": said, "heavy": "torch" in sys.modules}))
"""

FILES = {name: random.Random(name).randbytes(300_000 + 7 * len(name)) for name in PUBLISHED_FILES}

KNOWN = {
    "digests": {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
    "sizes": {name: len(data) for name, data in FILES.items()},
}
"""As if these were the published files."""

BIG = "pixel-diffusion.pth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a user fetches."""

    home: Path
    environment: Mapping[str, str]

    def command(self, **asked: Any) -> list[str]:
        whole = {"repository": "test/crm", "pauses_s": [0, 0], "digests": None, "sizes": None, "first": ""}
        return [sys.executable, "-c", CHILD, json.dumps({**whole, **asked})]

    def fetch(self, **asked: Any) -> dict[str, Any]:
        done = subprocess.run(
            self.command(**asked), capture_output=True, text=True, env=dict(self.environment)
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert "\n" not in answer.get("text", "")
        return answer

    def where(self, **changes: str) -> Machine:
        return replace(self, environment={**self.environment, **changes})

    @property
    def storage(self) -> Path:
        return self.home / "hub" / "models--test--crm"

    def blobs(self) -> dict[str, int]:
        """Names and sizes of everything the cache holds of contents."""
        return {file.name: file.stat().st_size for file in (self.storage / "blobs").glob("*")}


@pytest.fixture
def server() -> Iterator[HubStandIn]:
    with serving(HubStandIn(files=FILES)) as hub:
        yield hub


@pytest.fixture
def machine(server: HubStandIn, tmp_path: Path) -> Machine:
    return Machine(home=tmp_path / "hf", environment=environment(server, tmp_path))


def contents(answer: Mapping[str, Any]) -> dict[str, bytes]:
    """Files by their names, in the order they were given."""
    return {Path(file).name: Path(file).read_bytes() for file in answer["files"]}


def test_all_files_come_whole_and_in_their_order_through_the_mirror_that_is_set(
    machine: Machine, server: HubStandIn
) -> None:
    answer = machine.fetch()
    assert contents(answer) == FILES
    assert list(contents(answer)) == list(PUBLISHED_FILES)
    assert all(Path(file).is_relative_to(machine.home) for file in answer["files"])
    assert machine.blobs() == {server.digest(name): len(data) for name, data in FILES.items()}
    assert not answer["heavy"]


def test_the_sizes_and_digests_of_the_published_files_are_pinned() -> None:
    assert tuple(hub.DIGESTS) == tuple(hub.SIZES) == PUBLISHED_FILES
    assert all(len(digest) == 64 for digest in hub.DIGESTS.values())
    assert sum(hub.SIZES.values()) == 12_801_173_825


def test_nothing_is_asked_but_for_the_files_and_nothing_is_told_about_the_machine(
    machine: Machine, server: HubStandIn
) -> None:
    machine.fetch()
    paths = {request.path for request in server.requests}
    assert {path.split("/")[1] for path in paths} == {"test", "store"}


def test_the_bytes_are_those_of_the_commit_that_was_asked_about(machine: Machine, server: HubStandIn) -> None:
    machine.fetch()
    asked = [request.path for request in server.requests if (request.method, request.status) == ("GET", 302)]
    assert asked == [f"/test/crm/resolve/{COMMIT}/{name}" for name in PUBLISHED_FILES]


def test_progress_counts_every_byte_and_ends_at_the_whole(machine: Machine) -> None:
    said = machine.fetch()["said"]
    for name, data in FILES.items():
        counts = [done for what, done, of in said if what == name]
        assert counts == sorted(counts) and counts[-1] == len(data)
        assert {of for what, _, of in said if what == name} == {len(data)}
        # Small files are hashed at once, and each only once.
        assert [done for what, done, _ in said if what == f"checking {name}"] == [len(data)]


def test_a_second_fetch_downloads_nothing_and_hashes_nothing(machine: Machine, server: HubStandIn) -> None:
    first = machine.fetch()
    server.requests.clear()
    second = machine.fetch()
    assert second["files"] == first["files"]
    assert server.downloads() == []
    assert second["said"] == []


def test_files_of_known_digests_are_not_even_asked_about_again(machine: Machine) -> None:
    with serving(HubStandIn(files=FILES, repository=hub.REPOSITORY)) as official:
        there = machine.where(HF_ENDPOINT=official.endpoint)
        there.fetch(repository=hub.REPOSITORY, **KNOWN)
        official.requests.clear()
        assert contents(there.fetch(repository=hub.REPOSITORY, **KNOWN)) == FILES
        assert official.requests == []


def test_a_file_touched_after_its_check_is_hashed_again_and_refused(machine: Machine) -> None:
    file = Path(machine.fetch()["files"][0])
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    blob = file.resolve()
    blob.write_bytes(data)
    answer = machine.fetch()
    assert answer["code"] == "E_WEIGHTS_DIGEST" and answer["exit"] == 6
    assert not blob.exists() and not file.is_symlink()
    assert contents(machine.fetch()) == FILES


def test_a_body_that_breaks_off_is_taken_up_in_its_middle(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(cut_after=100_000, times=1)
    assert contents(machine.fetch()) == FILES
    first, second = [request for request in server.downloads() if request.path.endswith(BIG)]
    assert (first.range, first.sent) == (None, 100_000)
    assert (second.range, second.sent) == ("bytes=100000-", len(FILES[BIG]) - 100_000)


def test_tries_start_over_as_long_as_something_comes(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(cut_after=40_000)
    assert contents(machine.fetch(pauses_s=[0])) == FILES
    assert sum(request.path.endswith(BIG) for request in server.downloads()) == 8


def test_what_has_come_is_kept_for_the_next_process(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(cut_after=0)
    machine.fetch(pauses_s=[])
    server.faults[BIG] = Fault(cut_after=120_000, times=1)
    answer = machine.fetch(pauses_s=[])
    assert (answer["code"], answer["exit"]) == ("E_HUB_UNREACHABLE", 6)
    assert "what has come is kept" in answer["text"]
    # Whole files alone bear their names.
    assert set(machine.blobs()) == {
        server.digest("CRM.pth"),
        f"{server.digest(BIG)}.crm.incomplete",
    }
    server.requests.clear()
    server.faults.clear()
    assert contents(machine.fetch()) == FILES
    sent = {request.path.rpartition("/")[2]: request for request in server.downloads()}
    assert set(sent) == {BIG, "ccm-diffusion.pth"}
    assert (sent[BIG].range, sent[BIG].sent) == ("bytes=120000-", len(FILES[BIG]) - 120_000)


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(cut_after=150_000, hangs=True, times=1)
    part = machine.storage / "blobs" / f"{server.digest(BIG)}.crm.incomplete"
    with subprocess.Popen(machine.command(), env=dict(machine.environment)) as process:
        while not (part.exists() and part.stat().st_size > 100_000):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = part.stat().st_size
    assert contents(machine.fetch()) == FILES
    last = [request for request in server.downloads() if request.path.endswith(BIG)][-1]
    assert (last.range, last.sent) == (f"bytes={there}-", len(FILES[BIG]) - there)


def test_a_server_without_ranges_begins_anew(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(cut_after=100_000, times=1, ignores_ranges=True)
    assert contents(machine.fetch()) == FILES


def test_a_store_that_is_busy_is_asked_again(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(busy=2)
    assert contents(machine.fetch(pauses_s=[0, 0])) == FILES
    server.faults["ccm-diffusion.pth"] = Fault(busy=3)
    other = machine.where(HF_HOME=str(machine.home / "other"))
    assert "answers 503" in other.fetch(pauses_s=[0, 0])["text"]


def test_what_is_longer_than_the_file_is_no_beginning_of_it(machine: Machine, server: HubStandIn) -> None:
    part = machine.storage / "blobs" / f"{server.digest(BIG)}.crm.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[BIG] + b"more")
    assert contents(machine.fetch()) == FILES


def test_a_server_that_falls_silent_is_asked_again(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(cut_after=100_000, times=1, hangs=True)
    assert contents(machine.where(HF_HUB_DOWNLOAD_TIMEOUT="1").fetch()) == FILES


@pytest.mark.parametrize("name", ["CRM.pth", "ccm-diffusion.pth"])
def test_wrong_bytes_are_refused_by_name_and_digests_and_come_anew_next_time(
    machine: Machine, server: HubStandIn, name: str
) -> None:
    wrong = bytes(len(FILES[name]))
    server.faults[name] = Fault(contents=wrong)
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_WEIGHTS_DIGEST", 6)
    for word in (name, server.digest(name), hashlib.sha256(wrong).hexdigest(), "crm weights fetch"):
        assert word in answer["text"]
    assert not any(server.digest(name) in blob for blob in machine.blobs())
    server.faults.clear()
    assert contents(machine.fetch()) == FILES


def test_a_small_file_is_checked_by_the_digest_git_gives_it(machine: Machine) -> None:
    small = frozenset({"CRM.pth"})
    with serving(HubStandIn(files=FILES, small=small)) as hub:
        hub.faults["CRM.pth"] = Fault(contents=bytes(len(FILES["CRM.pth"])))
        there = machine.where(HF_ENDPOINT=hub.endpoint)
        answer = there.fetch()
        assert answer["code"] == "E_WEIGHTS_DIGEST" and hub.digest("CRM.pth") in answer["text"]
        hub.faults.clear()
        assert contents(there.fetch()) == FILES


def test_a_body_shorter_than_the_hub_said_is_not_taken_for_the_file(
    machine: Machine, server: HubStandIn
) -> None:
    server.faults[BIG] = Fault(contents=FILES[BIG][:-1])
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_UNREACHABLE", 6)
    assert server.digest(BIG) not in machine.blobs()


def test_another_file_under_a_published_name_is_refused_before_it_is_downloaded(machine: Machine) -> None:
    for expected in ({"sizes": KNOWN["sizes"]}, {"digests": KNOWN["digests"]}, {}):
        with serving(HubStandIn(files=FILES, repository=hub.REPOSITORY)) as official:
            there = machine.where(HF_ENDPOINT=official.endpoint)
            answer = there.fetch(repository=hub.REPOSITORY, **expected)
            assert (answer["code"], answer["exit"]) == ("E_WEIGHTS_DIGEST", 6)
            assert "CRM.pth" in answer["text"]
            assert official.downloads() == []


def test_a_mirror_that_lies_about_a_published_file_is_found_out(machine: Machine) -> None:
    liar = HubStandIn(files=FILES, repository=hub.REPOSITORY)
    liar.faults["CRM.pth"] = Fault(contents=bytes(len(FILES["CRM.pth"])), etag="no-digest-at-all")
    with serving(liar):
        answer = machine.where(HF_ENDPOINT=liar.endpoint).fetch(repository=hub.REPOSITORY, **KNOWN)
    assert (answer["code"], answer["exit"]) == ("E_WEIGHTS_DIGEST", 6)
    assert KNOWN["digests"]["CRM.pth"] in answer["text"]


def test_a_token_is_sent_to_the_hub_and_never_to_its_store(machine: Machine, server: HubStandIn) -> None:
    server.token = "hf_secret"
    assert contents(machine.where(HF_TOKEN="hf_secret").fetch()) == FILES
    asked = {request.token for request in server.requests if not request.path.startswith("/store/")}
    stored = {request.token for request in server.requests if request.path.startswith("/store/")}
    assert asked == {"hf_secret"} and stored == {None}


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize(
    ("given", "word"), [({}, "set HF_TOKEN to a token"), ({"HF_TOKEN": "hf_old"}, "another token")]
)
def test_without_the_right_token_the_message_names_it(
    machine: Machine, server: HubStandIn, given: dict[str, str], word: str, is_gated: bool
) -> None:
    server.token, server.is_gated = "hf_secret", is_gated
    answer = machine.where(**given).fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_TOKEN", 6)
    assert word in answer["text"] and "test/crm" in answer["text"]
    assert "hf_old" not in answer["text"]


def test_offline_what_is_there_is_used_and_the_rest_is_named(machine: Machine, server: HubStandIn) -> None:
    offline = machine.where(HF_HUB_OFFLINE="1")
    answer = offline.fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_OFFLINE", 6)
    assert "CRM.pth, pixel-diffusion.pth, ccm-diffusion.pth" in answer["text"]
    assert "HF_HUB_OFFLINE" in answer["text"]
    machine.fetch()
    server.requests.clear()
    assert contents(offline.fetch()) == FILES
    assert server.requests == []


@pytest.mark.parametrize(
    ("asked", "code", "exit_code", "word"),
    [
        ({"repository": "test/no"}, "E_HUB_TOKEN", 6, "no such repository"),
        ({"repository": "a/b/c"}, "E_HUB_NAME", 2, "a/b/c"),
        ({"revision": "v9"}, "E_HUB_MISSING", 6, "no such revision"),
    ],
)
def test_a_name_that_does_not_exist_is_named(
    machine: Machine, asked: dict[str, str], code: str, exit_code: int, word: str
) -> None:
    answer = machine.fetch(**asked)
    assert (answer["code"], answer["exit"]) == (code, exit_code)
    assert word in answer["text"]


def test_with_a_token_an_unknown_repository_is_simply_missing(machine: Machine) -> None:
    answer = machine.where(HF_TOKEN="hf_secret").fetch(repository="test/no")
    assert (answer["code"], answer["exit"]) == ("E_HUB_MISSING", 6)
    assert "test/no@main: no such repository" in answer["text"]


def test_a_repository_without_all_files_is_refused_before_any_download(machine: Machine) -> None:
    with serving(HubStandIn(files={"CRM.pth": FILES["CRM.pth"]})) as poor:
        answer = machine.where(HF_ENDPOINT=poor.endpoint).fetch()
        assert (answer["code"], answer["exit"]) == ("E_HUB_MISSING", 6)
        assert poor.downloads() == []


@pytest.mark.parametrize("status", [500, 503, 418])
def test_a_hub_that_fails_is_quoted(machine: Machine, server: HubStandIn, status: int) -> None:
    server.faults["CRM.pth"] = Fault(status=status)
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_UNREACHABLE", 6)
    assert f"answers {status}" in answer["text"]


def test_a_hub_that_fails_behind_the_download_is_quoted_and_the_file_kept(
    machine: Machine, server: HubStandIn
) -> None:
    server.faults["CRM.pth"] = Fault(status=418, answers=2)
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_UNREACHABLE", 6)
    assert "answers 418" in answer["text"]
    server.faults.clear()
    server.requests.clear()
    assert contents(machine.fetch()) == FILES
    assert not any(request.path.endswith("CRM.pth") for request in server.downloads())


@pytest.mark.parametrize(
    ("address", "code", "word"),
    [
        ("http://localhost:1", "E_HUB_UNREACHABLE", "cannot be reached"),
        ("ftp://localhost", "E_HUB_SETTING", "not an address"),
        ("mirror", "E_HUB_SETTING", "not an address"),
    ],
)
def test_an_address_where_no_hub_is_is_named(machine: Machine, address: str, code: str, word: str) -> None:
    answer = machine.where(HF_ENDPOINT=address).fetch()
    assert (answer["code"], answer["exit"]) == (code, 6)
    assert word in answer["text"] and address in answer["text"]


@pytest.mark.parametrize(
    "setting", [{"HF_ENDPOINT": "http://[mirror"}, {"HF_HUB_DOWNLOAD_TIMEOUT": "long"}], ids=str
)
def test_a_setting_that_the_library_cannot_read_is_no_bug(machine: Machine, setting: dict[str, str]) -> None:
    answer = machine.where(**setting).fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_SETTING", 6)
    assert next(iter(setting)) in answer["text"]


def test_without_the_library_the_message_says_how_to_get_it(machine: Machine) -> None:
    answer = machine.fetch(first="sys.modules['huggingface_hub'] = None")
    assert (answer["code"], answer["exit"]) == ("E_HUB_LIBRARY", 6)
    assert "pip install 'huggingface-hub" in answer["text"]


def test_a_digest_that_would_lead_out_of_the_cache_is_no_digest(machine: Machine, server: HubStandIn) -> None:
    server.faults["CRM.pth"] = Fault(etag="../../../outside")
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_HUB_ANSWER", 6)
    assert server.downloads() == []


def test_a_full_disk_is_told_before_the_first_byte(machine: Machine, server: HubStandIn) -> None:
    free = "import types; hub.shutil.disk_usage = lambda place: types.SimpleNamespace(free={})"
    answer = machine.fetch(first=free.format(800_000))
    assert (answer["code"], answer["exit"]) == ("E_DISK_FULL", 5)
    assert "0.8 MB free" in answer["text"] and server.downloads() == []
    part = machine.storage / "blobs" / f"{server.digest(BIG)}.crm.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[BIG][:100_000])
    rest = sum(map(len, FILES.values())) - 100_000
    assert machine.fetch(first=free.format(rest - 1))["code"] == "E_DISK_FULL"
    assert contents(machine.fetch(first=free.format(rest))) == FILES


@pytest.mark.parametrize("is_one_disk", [True, False])
def test_there_must_be_room_for_what_the_files_are_converted_into(
    machine: Machine, server: HubStandIn, tmp_path: Path, is_one_disk: bool
) -> None:
    downloads = sum(map(len, FILES.values()))
    later = int(hub.CONVERTED_SHARE * downloads)
    first = """
import pathlib, types
hub._convert = hub.fetch
hub.fetch = lambda **asked: hub._convert(**asked, converted=pathlib.Path({place!r}))
hub._disk_of = lambda folder: {disk}
hub.shutil.disk_usage = lambda place: types.SimpleNamespace(free={free})
"""
    place = str(tmp_path / "home" / "published")
    disk = "0" if is_one_disk else "str(folder)"
    needed = downloads + later if is_one_disk else downloads
    short = machine.fetch(first=first.format(place=place, disk=disk, free=needed - 1))
    assert short["code"] == "E_DISK_FULL" and server.downloads() == []
    assert "files" in machine.fetch(first=first.format(place=place, disk=disk, free=needed))


def test_a_cache_that_cannot_be_written_is_named(machine: Machine) -> None:
    machine.home.write_text("not a folder")
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_OUTPUT", 5)
    assert str(machine.home) in answer["text"]


def test_two_processes_never_write_one_file(machine: Machine, server: HubStandIn) -> None:
    server.faults["CRM.pth"] = Fault(cut_after=100_000, hangs=True, times=1)
    part = machine.storage / "blobs" / f"{server.digest('CRM.pth')}.crm.incomplete"
    with subprocess.Popen(machine.command(), env=dict(machine.environment)) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        answer = machine.fetch()
        process.kill()
    assert (answer["code"], answer["exit"]) == ("E_LOCKED", 11)


MEANWHILE = """
import fcntl, types
from pathlib import Path

def let_another_finish(stream, operation):
    part = Path(stream.name)
    target = part.with_name(part.name.removesuffix(".crm.incomplete"))
    if {is_new}:
        target.write_bytes(part.read_bytes())
        stream.truncate(0)
    else:
        part.rename(target)

download.fcntl = types.SimpleNamespace(LOCK_EX=0, LOCK_NB=0, flock=let_another_finish)
"""


@pytest.mark.parametrize("is_new", [True, False])
def test_what_another_process_has_brought_meanwhile_is_not_brought_again(
    machine: Machine, server: HubStandIn, is_new: bool
) -> None:
    blobs = machine.storage / "blobs"
    blobs.mkdir(parents=True)
    for name, data in FILES.items():
        (blobs / f"{server.digest(name)}.crm.incomplete").write_bytes(data)
    answer = machine.fetch(first=MEANWHILE.format(is_new=is_new))
    assert contents(answer) == FILES and server.downloads() == []
    assert machine.blobs() == {server.digest(name): len(data) for name, data in FILES.items()}


def test_a_body_without_an_end_is_not_read_to_it(machine: Machine, server: HubStandIn) -> None:
    server.faults[BIG] = Fault(contents=FILES[BIG] + bytes(50_000_000))
    answer = machine.fetch()
    assert (answer["code"], answer["exit"]) == ("E_WEIGHTS_DIGEST", 6)
    assert max(done for what, done, _ in answer["said"] if what == BIG) < len(FILES[BIG]) + 10_000_000


def test_the_files_can_be_asked_for_by_their_commit(machine: Machine) -> None:
    assert contents(machine.fetch(revision=COMMIT)) == FILES
