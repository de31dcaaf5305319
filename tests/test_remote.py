import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fakes
import pytest
from object_store import KEY, SECRET, ObjectStore
from output import exit_code, plant, published, put_fakes_on_the_path, started, statuses
from test_store import attempt

from crm_cli.errors import Locked, OutputError, PhotoError, UsageError
from crm_cli.preset import Override, load_preset
from crm_cli.run import lists
from crm_cli.run.batch import convert
from crm_cli.run.commits import CommitRecord
from crm_cli.run.elsewhere import reading, writing
from crm_cli.run.events import (
    AssetFinished,
    AssetPlanned,
    AssetStarted,
    Event,
    Plan,
    RunFinished,
    RunStarted,
    Warned,
)
from crm_cli.run.journal import read_lines
from crm_cli.run.options import Engine, RunOptions, Stop
from crm_cli.run.remote import Remote, Taken, check_url, is_url, local_path
from crm_cli.run.retry import plan_retry
from crm_cli.run.selection import Selection
from crm_cli.run.shards import Shard
from crm_cli.run.store import Store

HERE = Path(__file__).parent

NAMES = ("a.jpg", "sub/b.png", "sub/c.webp", "sub/näme [1] #2.jpg")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, credentials: None) -> None:
    put_fakes_on_the_path(monkeypatch)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))


@pytest.fixture
def bucket(store: ObjectStore) -> str:
    """A bucket with photos in it."""
    name = store.new_bucket()
    for photo in NAMES:
        store.put(name, f"in/{photo}", photo.encode())
    return name


def run(
    bucket: str, *assignments: str, engine: Engine | None = None, stop: Stop | None = None, **changes: Any
) -> list[Event]:
    preset = load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset
    options: dict[str, Any] = {
        "inputs": (), "out": Path(), "urls": (f"s3://{bucket}/in",), "place": f"s3://{bucket}/out",
        "device": "cpu", "jobs": 1, "report": False, "deadlines_s": {"unwrap": 2.0},
    }  # fmt: skip
    wanted = RunOptions(**{**options, **changes})
    return list(convert(preset, wanted, engine=engine or fakes.engine(), stop=stop))


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The production command line with fakes in it."""
    return subprocess.run(
        [sys.executable, str(HERE / "fakes.py"), *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "CRM_PROGRESS": "plain", **environment}, cwd=HERE,
    )  # fmt: skip


def reasons(events: list[Event]) -> Any:
    return next(event for event in events if isinstance(event, Plan)).reasons


def record_names(store: ObjectStore, bucket: str) -> list[str]:
    return [name for name in store.names(bucket, "out/.crm/records/") if name.endswith(".json")]


def records(store: ObjectStore, bucket: str) -> list[CommitRecord]:
    return [CommitRecord.from_bytes(store.get(bucket, name)) for name in record_names(store, bucket)]


def litter(store: ObjectStore, bucket: str) -> list[str]:
    private = store.names(bucket, "out/.crm/")
    return [name for name in private if re.search(r"\.intent$|/lease|/lock|/tmp/|\.part$", name)]


def test_a_run_in_and_out_of_a_store_makes_what_a_run_in_folders_makes(
    store: ObjectStore,
    bucket: str,
    tmp_path: Path,
) -> None:
    photos = plant(tmp_path / "in", *NAMES)
    preset = load_preset("tiny").preset
    local = RunOptions(inputs=(photos,), out=tmp_path / "out", device="cpu", jobs=1, report=False)
    list(convert(preset, local, engine=fakes.engine()))
    events = run(bucket)
    assert exit_code(events) == 0
    assert statuses(events) == dict.fromkeys(NAMES, "converted")
    assert store.objects(bucket, "out/") == published(tmp_path / "out")
    assert store.objects(bucket, "in/") == {name: name.encode() for name in NAMES}
    assert litter(store, bucket) == []
    assert store.get(bucket, "out/.crm/FORMAT") == b"1\n"
    assert next(e for e in events if isinstance(e, RunStarted)).out == f"s3://{bucket}/out"
    assert os.listdir(tmp_path / "tmp") == []  # noqa: PTH208


def test_what_stands_in_the_store_is_told_by_the_records(store: ObjectStore, bucket: str) -> None:
    run(bucket)
    for record in records(store, bucket):
        photo = store.client.head_object(Bucket=bucket, Key=f"in/{record.asset}")
        assert (record.input.etag, record.input.size) == (photo["ETag"].strip('"'), photo["ContentLength"])
        for output in record.outputs:
            about = store.client.head_object(Bucket=bucket, Key=f"out/{output.path}")
            assert (output.etag, output.size) == (about["ETag"].strip('"'), about["ContentLength"])


def test_a_second_run_reads_no_photo_and_writes_nothing_but_about_itself(
    store: ObjectStore,
    bucket: str,
) -> None:
    run(bucket, report=True)
    store.requests()
    events = run(bucket, report=True)
    assert set(statuses(events).values()) == {"cached"} and exit_code(events) == 0
    seen = store.requests()
    gets = {path for method, path in seen if method == "GET"}
    assert not [path for path in gets if path.startswith(f"/{bucket}/in/")]
    assert not [path for path in gets if re.fullmatch(r".*\.(glb|obj|usd)", path)]
    written = {
        path.removeprefix(f"/{bucket}/out/") for method, path in seen if method in ("PUT", "POST", "DELETE")
    }
    strange = [path for path in written if not re.match(r"\.crm/(lease|journal/|runs/)", path)]
    assert strange == []


def test_only_what_changed_is_done_again_and_the_reason_is_told(store: ObjectStore, bucket: str) -> None:
    run(bucket)
    store.put(bucket, "in/a.jpg", b"another picture")
    store.client.delete_object(Bucket=bucket, Key="out/sub/c.obj")
    store.put(bucket, "in/sub/b.png", b"sub/b.png")  # the same bytes again
    events = run(bucket)
    assert started(events) == {"a.jpg", "sub/c.webp"}
    assert reasons(events) == {"photo changed": 1, "output missing": 1}
    events = run(bucket, "texture.size_px=512")
    assert set(statuses(events).values()) == {"converted"}
    assert len(record_names(store, bucket)) == len(NAMES)
    assert set(statuses(run(bucket, "texture.size_px=512")).values()) == {"cached"}


def test_an_object_that_somebody_edited_or_put_there_is_kept(store: ObjectStore, bucket: str) -> None:
    store.put(bucket, "out/sub/b.glb", b"an artist's")
    assert statuses(run(bucket))["sub/b.png"] == "conflict"
    store.put(bucket, "out/a.glb", store.get(bucket, "out/a.glb")[:-1] + b"!")  # of the same size
    events = run(bucket, "texture.size_px=512")
    assert {name for name, status in statuses(events).items() if status == "conflict"} == {
        "a.jpg",
        "sub/b.png",
    }
    assert store.get(bucket, "out/a.glb").endswith(b"!")
    assert store.get(bucket, "out/sub/b.glb") == b"an artist's"
    assert exit_code(events) == 3
    events = run(bucket, "texture.size_px=512", overwrite=True)
    assert exit_code(events) == 0
    assert not store.get(bucket, "out/a.glb").endswith(b"!")


def test_photos_in_a_store_make_assets_in_a_folder_and_the_other_way_round(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    here = tmp_path / "out"
    assert exit_code(run(bucket, out=here, place="")) == 0
    assert set(statuses(run(bucket, out=here, place="")).values()) == {"cached"}
    assert not list((here / ".crm" / "tmp").iterdir())
    photos = plant(tmp_path / "in", *NAMES)
    run(bucket, inputs=(photos,), urls=())
    assert store.objects(bucket, "out/") == published(here)
    # The same photos, from elsewhere: they are read once more, and nothing is made.
    assert set(statuses(run(bucket)).values()) == {"cached"}


def test_photos_are_chosen_named_and_refused_as_in_folders(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    for name in ("in/.hidden/x.jpg", "in/sub/.y.jpg", "in/notes.txt", "in//z.jpg", "in/../w.jpg", "in/sub/"):
        store.put(bucket, name, b"")
    some = run(bucket, select=Selection(include=("*.jpg",), exclude=("sub/*",)), dry_run=True)
    assert [str(event.path) for event in some if isinstance(event, AssetPlanned)] == ["a.jpg"]
    flat = run(bucket, select=Selection(is_recursive=False), dry_run=True)
    assert [str(event.path) for event in flat if isinstance(event, AssetPlanned)] == ["a.jpg"]
    one = run(bucket, urls=(f"s3://{bucket}/in/sub/b.png", f"s3://{bucket}/in/sub/b.png"))
    assert statuses(one) == {"b.png": "converted"}
    everything = run(bucket, dry_run=True)
    assert {str(e.path) for e in everything if isinstance(e, AssetPlanned)} == set(NAMES)
    strange = [event.message for event in everything if isinstance(event, Warned)]
    assert strange == [f"{name}: passed over: no name for a file" for name in ("../w.jpg", "/z.jpg")]
    store.put(bucket, "in/a.png", b"")
    with pytest.raises(UsageError, match=r"a\.jpg and a\.png would write the same files"):
        run(bucket)
    names = tmp_path / "list.txt"
    names.write_text(f"s3://{bucket}/in/sub/b.png\n")
    listed = run(bucket, urls=(), listed=lists.read_lists([str(names)]), place=f"s3://{bucket}/listed")
    assert statuses(listed) == {"b.png": "converted"}


def test_shards_share_a_store_and_divide_its_photos(store: ObjectStore, bucket: str) -> None:
    done: dict[str, str] = {}
    for number in (1, 2, 3):
        events = run(bucket, select=Selection(shard=Shard(number=number, of=3)))
        assert not done.keys() & statuses(events).keys()
        done |= statuses(events)
    assert done == dict.fromkeys(NAMES, "converted")
    assert set(statuses(run(bucket)).values()) == {"cached"}


def test_the_output_folder_may_lie_in_the_input_and_may_not_be_it(store: ObjectStore, bucket: str) -> None:
    inside = f"s3://{bucket}/in/made"
    store.put(bucket, "in/made/x.jpg", b"not a photo of ours")
    assert statuses(run(bucket, place=inside)) == dict.fromkeys(NAMES, "converted")
    with pytest.raises(UsageError, match="is the input and the output folder"):
        run(bucket, place=f"s3://{bucket}/in/")


@pytest.mark.parametrize("is_input", [True, False])
def test_a_photo_is_never_overwritten_even_when_told_to(
    store: ObjectStore, bucket: str, is_input: bool
) -> None:
    """An OBJ's texture may be named like a photo."""
    store.put(bucket, "in/sub/a.png", b"a photo")
    with writing(f"s3://{bucket}/in") as mirror:
        mirror.inputs = frozenset({f"s3://{bucket}/in/sub/a.png"} if is_input else ())
        opened = Store.open(mirror.folder, run="r1", place=mirror)
        record, scratch = attempt(opened, suffixes=("obj", "png"))
        if is_input:
            with pytest.raises(PhotoError, match=r"sub/a\.png is in the way: it is an input"):
                opened.publish(record, scratch, may_overwrite=True)
        else:
            opened.publish(record, scratch, may_overwrite=True)
        opened.close()
    assert store.get(bucket, "in/sub/a.png") == (b"a photo" if is_input else b"data png")


def test_names_that_an_object_cannot_have_fail_alone(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    photos = plant(
        tmp_path / "in", "a.jpg", os.fsdecode(b"bad-\xff.jpg"), "/".join(["d" * 200] * 5) + "/b.jpg"
    )
    events = run(bucket, inputs=(photos,), urls=())
    fates = [(event.status, event.code) for event in events if isinstance(event, AssetFinished)]
    assert sorted(fates, key=str) == [("converted", ""), ("failed", "E_NAME"), ("failed", "E_NAME")]


@pytest.mark.slow
def test_a_file_that_goes_in_parts_arrives_whole(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    remote = Remote.open(f"s3://{bucket}/large")
    file = tmp_path / "file"
    data = random.Random(0).randbytes(1 << 20)
    with file.open("wb") as out:
        for number in range(110):
            out.write(data + b"%d" % number)
    first = remote.put(file, "x.bin", over="")
    other = tmp_path / "other"
    other.write_bytes(data)
    with pytest.raises(Taken):
        remote.put(other, "x.bin", over="")
    with file.open("ab") as out:
        out.write(b"more")
    with pytest.raises(Taken):
        remote.put(file, "x.bin", over="another")
    second = remote.put(file, "x.bin", over=first.etag)
    assert second != first and second.size == file.stat().st_size
    digest, stamp = remote.fetch("x.bin", tmp_path / "copy")
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest() and stamp == second
    assert remote.abort_uploads(lambda name: True) == 0


def test_a_run_works_on_any_store_that_fsspec_knows(tmp_path: Path) -> None:
    """Without conditions and tags of its own: the plainest there is."""
    remote = Remote.open(f"memory://plain{tmp_path}/in")
    for name in NAMES:
        remote.write(name, name.encode())
    place = f"memory://plain{tmp_path}/out"
    events = run("", urls=(remote.url,), place=place, report=True)
    assert statuses(events) == dict.fromkeys(NAMES, "converted")
    assert set(statuses(run("", urls=(remote.url,), place=place)).values()) == {"cached"}
    Remote.open(place).write("a.glb", b"edited")
    events = run("", "texture.size_px=512", urls=(remote.url,), place=place)
    assert [name for name, status in statuses(events).items() if status == "conflict"] == ["a.jpg"]
    assert Remote.open(place).read("a.glb") == b"edited"


@pytest.mark.parametrize(
    "url",
    [
        "http://bucket/x", "https://user:hunter2@host/x", "ftp://x/y", "simplecache::s3://bucket/x",
        "s3://user:hunter2@bucket/x", "s3://bucket/x?X-Amz-Signature=hunter2", "s3://", "s3://bucket/../x",
        "s3://bucket//x", "s3://bucket/a::b", "s3://bucket/\x1b[2J", "az://u:hunter2@account/x",
    ],
)  # fmt: skip
def test_urls_that_are_not_plain_folders_of_a_store_are_refused_and_not_repeated(url: str) -> None:
    assert is_url(url)
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert "hunter2" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_every_command_refuses_a_url_with_a_password_before_it_does_anything(tmp_path: Path) -> None:
    url, here = "s3://user:hunter2@bucket/x", str(tmp_path / "out")
    plant(tmp_path / "in", "a.jpg")
    lists = tmp_path / "list.txt"
    lists.write_text(f"{url}\n")
    for words in (
        ("convert", str(tmp_path / "in"), "-o", url), ("convert", url, "-o", here),
        ("convert", "--from-file", str(lists), "-o", here),
        ("status", url), ("verify", url), ("report", url), ("gc", url), ("retry", url),
    ):  # fmt: skip
        result = command(*words)
        assert result.returncode == 2 and "E_URL" in result.stderr, (words, result.stderr)
        assert "hunter2" not in result.stderr + result.stdout
    assert not (tmp_path / "out").exists()


def test_paths_are_paths_and_file_urls_as_well() -> None:
    for text in ("photos", "./a::b", "/srv/photos", "a/s3://b", "s3:/x", "file:///srv/photos"):
        assert not is_url(text)
    assert local_path("file:///srv/photos") == Path("/srv/photos")
    assert check_url("s3://bucket/a folder/") == "s3://bucket/a folder"
    assert check_url("abfs://container@account.dfs.core.windows.net/x")


def test_an_address_with_a_password_is_refused(bucket: str) -> None:
    result = command("status", f"s3://{bucket}/out", "--endpoint-url", "http://u:hunter2@127.0.0.1:1/")
    assert result.returncode == 2 and "hunter2" not in result.stderr


def test_what_is_not_there_or_not_allowed_is_said_in_one_line(store: ObjectStore, bucket: str) -> None:
    out = f"s3://{bucket}/out"
    fates = {
        ("convert", f"s3://{bucket}/nothing", "-o", out): 7,
        ("convert", f"s3://no-such-{bucket}/in", "-o", out): 7,
        ("convert", f"s3://{bucket}/in", "-o", f"s3://no-such-{bucket}/out"): 5,
        ("status", f"s3://{bucket}/nothing"): 7,
        ("verify", f"s3://no-such-{bucket}/out"): 7,
        ("gc", f"s3://{bucket}/nothing"): 7,
        ("report", f"s3://{bucket}/nothing"): 7,
        ("retry", f"s3://{bucket}/nothing"): 7,
    }
    for words, code in fates.items():
        result = command(*words)
        lines = result.stderr.splitlines()
        assert result.returncode == code, (words, result.stderr)
        assert [line for line in lines if line.startswith("error: s3://")] == lines[-1:], (words, lines)
        assert "Traceback" not in result.stderr
    result = command(
        "convert", f"s3://{bucket}/in", "-o", out, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""
    )
    assert result.returncode == 6 and "E_CREDENTIALS" in result.stderr, result.stderr


def test_a_store_whose_driver_is_not_installed_is_named_with_what_to_install(
    bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "s3fs.py").write_text("raise ImportError('no such library')")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    result = command("convert", f"s3://{bucket}/in", "-o", str(tmp_path / "out"), PYTHONPATH=path)
    assert result.returncode == 6
    assert "s3fs is not installed [E_DRIVER]; pip install 'crm-cli[s3]'" in result.stderr.replace("\n", " ")


def test_every_command_works_on_a_url(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    out = f"s3://{bucket}/out"
    store.put(bucket, "in/input_x.jpg", b"nothing in it")
    result = command("convert", f"s3://{bucket}/in", "-o", out, "--preset", "tiny")
    assert result.returncode == 3, result.stderr
    assert f"contact sheet: {out}/report/index.html" in result.stderr.replace("\n", "")
    assert b"input_x.jpg" in store.get(bucket, "out/report/index.html")
    status = json.loads(command("status", out, "--json").stdout)
    assert (status["finished"], len(status["failures"]), status["is_running"]) == (len(NAMES), 1, False)
    assert status["out"] == out
    assert command("verify", out).returncode == 0
    deep = command("verify", out, "--deep")
    assert deep.returncode == 0 and "read: all as they were left" in deep.stdout
    retried = command("retry", out, "--json")
    assert retried.returncode == 3, retried.stderr
    finished = [json.loads(line) for line in retried.stdout.splitlines()][-1]
    assert finished["counts"] == {"failed": 1} and finished["report"] == f"{out}/report/index.html"
    store.client.delete_object(Bucket=bucket, Key="out/report/index.html")
    assert f"contact sheet: {out}/report/index.html" in command("report", out).stdout.replace("\n", "")
    assert b"input_x.jpg" in store.get(bucket, "out/report/index.html")
    store.put(bucket, "out/a.glb", b"edited")
    store.client.delete_object(Bucket=bucket, Key="out/sub/b.obj")
    for flags in ((), ("--deep",)):
        verdict = command("verify", out, "--json", *flags)
        assert verdict.returncode == 3
        problems = {(p["kind"], p["path"]) for p in json.loads(verdict.stdout)["problems"]}
        assert problems == {("changed", "a.glb"), ("missing", "sub/b.obj")}
    mended = command("verify", out, "--repair", "--json")
    assert {p["path"]: p["is_repaired"] for p in json.loads(mended.stdout)["problems"]} == {
        "a.glb": False, "sub/b.obj": True,
    }  # fmt: skip
    assert json.loads(command("status", out, "--json").stdout)["finished"] == len(NAMES) - 2
    again = command("convert", f"s3://{bucket}/in", "-o", out, "--preset", "tiny", "--json", "--overwrite")
    counts = [json.loads(line) for line in again.stdout.splitlines()][-1]["counts"]
    assert counts == {"converted": 2, "cached": 2, "failed": 1}
    assert command("verify", out, "--deep").returncode == 0


def test_a_folder_that_was_copied_into_a_store_goes_on_there(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    photos = plant(tmp_path / "in", *NAMES)
    here = tmp_path / "out"
    run(bucket, inputs=(photos,), urls=(), out=here, place="")
    for file in here.rglob("*"):
        if file.is_file() and "lock" not in file.name:
            store.put(bucket, f"out/{file.relative_to(here)}", file.read_bytes())
    assert set(statuses(run(bucket, inputs=(photos,), urls=())).values()) == {"cached"}
    store.requests()
    assert set(statuses(run(bucket, inputs=(photos,), urls=())).values()) == {"cached"}
    assert not [path for method, path in store.requests() if method == "GET" and path.endswith(".glb")]
    # An object that was put again has another tag and the same bytes: verify knows, and repair notes it.
    for record in records(store, bucket):
        for output in record.outputs:
            key = f"out/{output.path}"
            parts = store.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            which = {"Bucket": bucket, "Key": key, "UploadId": parts}
            part = store.client.upload_part(**which, PartNumber=1, Body=store.get(bucket, key))
            done = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
            store.client.complete_multipart_upload(**which, MultipartUpload=done)
    out = f"s3://{bucket}/out"
    deep = command("verify", out, "--deep", "--repair", "--json")
    assert {p["kind"] for p in json.loads(deep.stdout)["problems"]} == {"moved"}
    assert command("verify", out).returncode == 0
    assert set(statuses(run(bucket, inputs=(photos,), urls=())).values()) == {"cached"}


def test_decisions_are_taken_over_into_a_store_and_its_sheet_is_written_over(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    run(bucket, report=True)
    out = f"s3://{bucket}/out"
    made = {record.asset.as_posix(): record for record in records(store, bucket)}
    store.put(bucket, f"out/report/thumbs/{made['a.jpg'].id}-model.js", b"crm.model()")
    for _ in range(2):  # over its own scripts as well
        assert command("report", out).returncode == 0
    assert store.get(bucket, "out/report/model-viewer.js").startswith(b"/* crm contact sheet */")
    decisions = [
        {"id": made[name].id, "photo": name, "decision": verb}
        for name, verb in (("a.jpg", "redo"), ("sub/b.png", "approve"))
    ]
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps({"schema": "crm.decisions/1", "decisions": decisions}))
    done = command("redo", str(file), out)
    assert done.returncode == 0, done.stderr
    seeds = {record.asset.as_posix(): record.seed for record in records(store, bucket)}
    assert seeds == {name: int(name == "a.jpg") for name in NAMES}
    assert "1 approved" in command("status", out).stdout.splitlines()
    assert b'"decision":"approve"' in store.get(bucket, "out/report/entries.js")
    assert set(statuses(run(bucket)).values()) == {"cached"}
    assert litter(store, bucket) == []


def test_gc_ends_uploads_and_removes_what_nobody_needs_and_nothing_else(
    store: ObjectStore, bucket: str
) -> None:
    for _ in range(3):
        run(bucket, report=True)
    store.put(bucket, "out/theirs.txt", b"a person's")
    store.begin_upload(bucket, "out/a.glb")
    store.begin_upload(bucket, "out/.crm/records/aa/x.json")
    store.begin_upload(bucket, "out/theirs.bin")
    store.begin_upload(bucket, "elsewhere/x.bin")
    store.put(bucket, "out/.crm/lease.probe-0123abcd", b"")
    store.put(bucket, "out/report/thumbs/0123456789abcdef-photo.webp", b"of no photo")
    before = store.objects(bucket)
    dry = command("gc", f"s3://{bucket}/out", "--keep-runs", "1", "--dry-run")
    assert dry.returncode == 0 and "would remove" in dry.stdout and store.objects(bucket) == before
    result = command("gc", f"s3://{bucket}/out", "--keep-runs", "1")
    assert result.returncode == 0, result.stderr
    for words in ("2 unfinished uploads", "2 runs' logs", "1 picture"):
        assert words in result.stdout.replace("\n", " ")
    assert (
        sorted(store.uploads(bucket)) == ["elsewhere/x.bin", "out/theirs.bin"] and litter(store, bucket) == []
    )
    after = store.objects(bucket)
    assert before.keys() - after.keys() == {"out/report/thumbs/0123456789abcdef-photo.webp"}
    runs = {name.split("/")[3] for name in store.names(bucket, "out/.crm/runs/")}
    assert len(runs) == 1
    assert set(statuses(run(bucket)).values()) == {"cached"}


def test_a_run_that_fails_is_remembered_in_segments_that_are_read_together(
    store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(bucket, "in/input_x.jpg", b"nothing in it")
    for number in range(8):
        store.put(bucket, f"in/slow_{number}.jpg", b"%d" % number)
    monkeypatch.setattr("crm_cli.run.elsewhere.SEGMENT_S", 0.3)
    run(bucket)
    segments = store.names(bucket, "out/.crm/journal/")
    assert len(segments) > 2
    assert [name[-12:] for name in segments] == [f"{n:05}.ndjson" for n in range(1, len(segments) + 1)]
    with reading(f"s3://{bucket}/out") as mirror:
        lines = list(read_lines(mirror.folder))
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert (lines[0]["ev"], lines[-1]["ev"]) == ("run_start", "run_end")
    assert statuses(run(bucket))["input_x.jpg"] == "failed"
    assert started(run(bucket)) == set()


def test_nothing_of_a_later_version_is_touched(store: ObjectStore, bucket: str) -> None:
    store.put(bucket, "out/.crm/FORMAT", b"2\n")
    before = store.names(bucket)
    with pytest.raises(UsageError, match=f"^s3://{bucket}/out: written in format '2'"):
        run(bucket)
    assert store.names(bucket) == before


def test_a_second_run_is_refused_while_the_first_is_at_work(store: ObjectStore, bucket: str) -> None:
    store.put(bucket, "in/slow_x.jpg", b"x")
    out = f"s3://{bucket}/out"
    refused: list[str] = []
    preset = load_preset("tiny").preset
    options = RunOptions(
        inputs=(), urls=(f"s3://{bucket}/in",), out=Path(), place=out, device="cpu", jobs=1, report=False
    )
    for event in convert(preset, options, engine=fakes.engine()):
        if isinstance(event, AssetStarted) and not refused:
            with pytest.raises(Locked, match=f"^s3://{bucket}/out: another run holds") as caught:
                run(bucket)
            refused.append(str(caught.value))
            assert json.loads(command("status", out, "--json").stdout)["is_running"] is True
            [waiting] = run(bucket, wait_lock_s=600, stop=Stop(signal=signal.SIGTERM))
            assert isinstance(waiting, RunFinished) and waiting.exit_code == 143
    assert refused and exit_code([event]) == 0


def test_a_run_whose_lease_was_taken_over_publishes_nothing_more(
    store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crm_cli.run.lease.HEARTBEAT_S", 0.05)
    preset = load_preset("tiny").preset
    options = RunOptions(
        inputs=(), urls=(f"s3://{bucket}/in",), out=Path(), place=f"s3://{bucket}/out", device="cpu", jobs=1,
        report=False,
    )  # fmt: skip
    finished = 0
    with pytest.raises(OutputError, match="another run has taken this folder over"):
        for event in convert(preset, options, engine=fakes.engine()):
            if isinstance(event, AssetFinished):
                finished += 1
                store.put(bucket, "out/.crm/lease", b"{}")
                time.sleep(2)
    assert finished == 1 and len(record_names(store, bucket)) == 1
    assert store.get(bucket, "out/.crm/lease") == b"{}"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_object_that_appears_while_its_asset_is_made_is_kept(
    store: ObjectStore, bucket: str, overwrite: bool
) -> None:
    """Nobody looks again before the put: the store itself refuses."""
    preset = load_preset("tiny").preset
    options = RunOptions(
        inputs=(), urls=(f"s3://{bucket}/in",), out=Path(), place=f"s3://{bucket}/out", device="cpu", jobs=1,
        report=False, overwrite=overwrite,
    )  # fmt: skip
    events = []
    for event in convert(preset, options, engine=fakes.engine()):
        events.append(event)
        if isinstance(event, AssetStarted) and event.path.name == "a.jpg":
            store.put(bucket, "out/a.glb", b"somebody was quicker")
    assert {name for name, status in statuses(events).items() if status == "conflict"} == {"a.jpg"}
    assert store.get(bucket, "out/a.glb") == b"somebody was quicker"


@pytest.mark.parametrize("later", [b"A.JPG", b"longer than before"])
@pytest.mark.parametrize("times", [1, 9])
def test_a_photo_that_changes_while_it_is_fetched_is_never_a_mixture(
    store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, later: bytes, times: int
) -> None:
    seen = Remote.stamp
    asked: list[bytes] = []

    def late(self: Remote, name: str) -> Any:
        if name == "a.jpg" and len(asked) < times:
            asked.append(later + b"." * len(asked))
            store.put(bucket, "in/a.jpg", asked[-1])
        return seen(self, name)

    monkeypatch.setattr(Remote, "stamp", late)
    events = run(bucket)
    if times > 1:  # it never keeps still
        [failed] = [e for e in events if isinstance(e, AssetFinished) and e.status == "failed"]
        assert (str(failed.path), failed.kind, failed.code) == ("a.jpg", "io", "E_READ")
        assert "changed while it was read" in failed.reason
        monkeypatch.setattr(Remote, "stamp", seen)
        events = run(bucket)
    assert statuses(events)["a.jpg"] == "converted"
    [record] = [record for record in records(store, bucket) if str(record.asset) == "a.jpg"]
    assert record.input.sha256 == hashlib.sha256(store.get(bucket, "in/a.jpg")).hexdigest()


def test_what_a_run_was_asked_for_and_its_failures_outlive_a_kill(
    store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crm_cli.run.elsewhere.SEGMENT_S", 0.2)
    store.put(bucket, "in/input_x.jpg", b"nothing in it")
    store.put(bucket, "in/slow_x.jpg", b"slow")
    preset = load_preset("tiny").preset
    options = RunOptions(
        inputs=(), urls=(f"s3://{bucket}/in",), out=Path(), place=f"s3://{bucket}/out", device="cpu", jobs=1,
        report=False,
    )  # fmt: skip
    for event in convert(preset, options, engine=fakes.engine()):
        if isinstance(event, AssetStarted) and event.path.name == "slow_x.jpg":
            patience = time.monotonic() + 30
            while b"asset_failed" not in b"".join(
                store.get(bucket, name) for name in store.names(bucket, "out/.crm/journal/")
            ):
                assert time.monotonic() < patience
                time.sleep(0.1)
            # What stands now is what a kill would leave.
            with reading(f"s3://{bucket}/out") as mirror:
                [again] = plan_retry(mirror.folder)
    assert [str(path) for path in again.photos] == ["input_x.jpg"]
    assert again.options.urls == options.urls


def test_two_runs_without_any_lease_never_leave_a_wrong_file(
    store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Free:
        is_lost = False

        def release(self) -> None:
            pass

    monkeypatch.setattr("crm_cli.run.elsewhere.take_lease", lambda *_, **__: Free())
    inner: list[Event] = []
    preset = load_preset("tiny").preset
    options = RunOptions(
        inputs=(), urls=(f"s3://{bucket}/in",), out=Path(), place=f"s3://{bucket}/out", device="cpu", jobs=1,
        report=False,
    )  # fmt: skip
    for event in convert(preset, options, engine=fakes.engine()):
        if isinstance(event, AssetFinished) and not inner:
            inner = run(bucket)
    assert exit_code(inner) == 0
    assert set(statuses(run(bucket)).values()) == {"cached"}
    assert command("verify", f"s3://{bucket}/out", "--deep").returncode == 0


def test_a_store_that_fails_now_and_then_costs_nothing_but_time(store: ObjectStore, bucket: str) -> None:
    for number in range(8):
        store.put(bucket, f"in/more/{number}.jpg", b"%d" % number)
    with store.failing(0.05, seed=5) as failed:
        events = run(bucket, report=True)
        again = run(bucket, "texture.size_px=512", report=True)
    assert failed[0] >= 5
    for one in (events, again):
        assert exit_code(one) == 0 and set(statuses(one).values()) == {"converted"}
    assert set(statuses(run(bucket, "texture.size_px=512")).values()) == {"cached"}
    assert command("verify", f"s3://{bucket}/out", "--deep").returncode == 0
    assert litter(store, bucket) == []


def test_credentials_are_nowhere(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    token = "session-token-that-nobody-should-see"
    store.put(bucket, "in/raise_x.jpg", b"a surprise")
    store.put(bucket, "in/input_x.jpg", b"nothing in it")
    out = f"s3://{bucket}/out"
    said = ""
    with store.failing(0.1, seed=1):
        for words in (
            ["convert", f"s3://{bucket}/in", "-o", out, "-vv", "--json"],
            ["convert", f"s3://{bucket}/in", "-o", str(tmp_path / "out"), "-vv"],
            ["convert", f"s3://{bucket}/in", "-o", f"s3://no-such-{bucket}/x", "-vv"],
            ["status", out], ["verify", out, "--deep"], ["retry", out, "-vv"], ["report", out], ["gc", out],
        ):  # fmt: skip
            result = command(*words, AWS_SESSION_TOKEN=token)
            said += result.stdout + result.stderr
    said += "".join(store.get(bucket, name).decode("latin1") for name in store.names(bucket, "out/"))
    said += "".join(p.read_text("latin1") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "raise_x" in said and len(said) > 10_000
    for secret in (KEY, SECRET, token, "Signature="):
        assert secret not in said


def test_a_terminated_run_leaves_the_store_as_a_finished_one_would(store: ObjectStore, bucket: str) -> None:
    for number in range(6):
        store.put(bucket, f"in/slow_{number}.jpg", b"%d" % number)
    out = f"s3://{bucket}/out"
    words = [
        "convert",
        f"s3://{bucket}/in",
        "-o",
        out,
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "-j",
        "1",
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fakes.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if '"asset_finished"' in line:
            process.terminate()
            break
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "Unclosed" not in said and "Traceback" not in said
    done = len(record_names(store, bucket))
    assert 1 <= done < len(NAMES) + 6 and litter(store, bucket) == []
    finished = json.loads(rest.splitlines()[-1])
    assert finished["counts"]["converted"] == done
    with reading(out) as mirror:
        assert [line["ev"] for line in read_lines(mirror.folder)][-1] == "run_end"
    assert set(statuses(run(bucket)).values()) == {"cached", "converted"}


def test_mirrors_of_killed_runs_go_and_those_at_work_stay(bucket: str, tmp_path: Path) -> None:
    with writing(f"s3://{bucket}/out") as mirror:
        gone, young = tmp_path / "tmp" / "crm-mirror-gone", tmp_path / "tmp" / "crm-mirror-young"
        for folder in (gone, young, mirror.folder):
            (folder / "inner").mkdir(parents=True)
        for folder in (gone, mirror.folder):
            os.utime(folder, (1_600_000_000, 1_600_000_000))
        with reading(f"s3://{bucket}/out", must_stand=False):
            assert not gone.exists() and young.exists() and mirror.folder.exists()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing_and_leave_every_object_whole(
    store: ObjectStore, bucket: str, tmp_path: Path, kills: int
) -> None:
    names = [*NAMES, *(f"more/slow_{number}.jpg" for number in range(16))]
    photos = plant(tmp_path / "in", *names)
    for name in names:
        store.put(bucket, f"in/{name}", name.encode())
    settings = ["texture.size_px=512", "texture.size_px=256"]
    whole: list[dict[str, bytes]] = []
    for setting in settings:
        preset = load_preset("tiny", [Override.from_assignment(setting)]).preset
        made = tmp_path / setting
        list(
            convert(
                preset,
                RunOptions(inputs=(photos,), out=made, device="cpu", report=False),
                engine=fakes.engine(),
            )
        )
        whole.append(published(made))
    dice = random.Random(kills)
    out = f"s3://{bucket}/out"
    words = [
        "convert",
        f"s3://{bucket}/in",
        "-o",
        out,
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--progress",
        "none",
    ]
    for turn in range(kills):
        process = subprocess.Popen(
            [sys.executable, str(HERE / "fakes.py"), *words, "--json", "--set", settings[turn % 2]],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=HERE,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            # Most die at work, which takes longer than any of them is given, the others on the way to it.
            if dice.random() < 0.75:
                assert b"run_started" in process.stdout.readline()
            time.sleep(dice.uniform(0, 3.5))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        for name, data in store.objects(bucket, "out/").items():
            if not name.startswith("report/"):
                assert data in (whole[0][name], whole[1][name]), name
    store.begin_upload(bucket, "out/a.glb")
    for setting, expected in zip(settings, whole, strict=True):
        result = command(*words, "--set", setting)
        assert result.returncode == 0, result.stderr
        objects = store.objects(bucket, "out/")
        assert {name: data for name, data in objects.items() if not name.startswith("report/")} == expected
        assert command("verify", out, "--deep").returncode == 0
    assert command("gc", out).returncode == 0
    assert store.uploads(bucket) == [] and litter(store, bucket) == []
    assert len(record_names(store, bucket)) == len(names)
