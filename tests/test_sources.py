"""Folders become examples: of each file its own share, in any order, and none of what cannot be read."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from glbs import glb_of, painted, quad
from in_process import Crm
from published_layout import layout_of

from crm_cli.errors import UsageError
from crm_cli.frame import FRONT
from crm_cli.learn import rendering, sources
from crm_cli.learn.camera import EXTENT, draw_pose, pose
from crm_cli.learn.course import Course, run_course, ship
from crm_cli.learn.data import HELD_OUT, NO_FAMILY, Shards, Writer, build, write_shard
from crm_cli.learn.examples import ARRAYS, Example, Source, example_of, outer_surface, six_views
from crm_cli.learn.materials import Material, solid
from crm_cli.learn.meshes import read_mesh
from crm_cli.learn.parts import Part, assemble
from crm_cli.learn.portraits import ARRAYS as PORTRAITS
from crm_cli.learn.portraits import write_portraits
from crm_cli.learn.products import make_product
from crm_cli.learn.rendering import held_out_examples, training_examples
from crm_cli.learn.shapes import ellipsoid
from crm_cli.learn.sources import LIST, VISIT, Folder, open_folder
from crm_cli.learn.subject import Unusable
from crm_cli.learn.surface import EndToEnd
from crm_cli.learn.train import TrainSettings
from crm_cli.learn.truth import encode_truth
from crm_cli.mesh.raster import WarpRaster

BALL = trimesh.creation.icosphere(subdivisions=3)
RASTER = WarpRaster()
SIZE = 16


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No test sees what another one has read."""
    sources._read.cache_clear()
    yield


def box_of(number: int) -> bytes:
    """A box that no other number has."""
    colour = tuple(float(bit) for bit in np.binary_repr(number % 7 + 1, 3))
    return glb_of(painted(trimesh.creation.box((1, 1 + number / 10, 0.7)), colour))


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Twenty files, some in a folder within."""
    folder = tmp_path / "boxes"
    (folder / "more").mkdir(parents=True)
    for number in range(20):
        (folder / ("more" if number % 3 else "") / f"{number}.glb").write_bytes(box_of(number))
    return folder


def opened(folder: Path, data: Path, **other: int) -> sources.Split:
    return open_folder(folder, data, **{"size_px": SIZE, "workers": 1, "held_out_seed": HELD_OUT} | other)


def example(folder: Folder, seed: int, *, has_field: bool = False) -> Example:
    return folder.example(seed, RASTER, size_px=SIZE, has_field=has_field)


def test_every_file_is_in_one_part_and_the_parts_do_not_depend_on_names(boxes: Path, tmp_path: Path) -> None:
    split = opened(boxes, tmp_path / "data")
    parts = [{found.digest for found in part.objects} for part in (split.train, split.held_out)]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 20
    assert len(parts[1]) >= 1
    for file in list(boxes.rglob("*.glb")):
        file.rename(boxes / f"renamed {file.name}")
    again = opened(boxes, tmp_path / "other")
    assert [f.digest for f in again.train.objects] == [f.digest for f in split.train.objects]
    assert [f.digest for f in again.held_out.objects] == [f.digest for f in split.held_out.objects]


def test_the_held_out_share_is_one_in_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [sources.Found(name="", files=(), digest=f"{k * 2**22:08x}{0:056x}") for k in range(1024)]
    split = sources._split("meshes", many, HELD_OUT)
    assert len(split.held_out.objects) == 64 and len(split.train.objects) == 960
    assert len(sources._split("meshes", many[500:502], HELD_OUT).held_out.objects) == 1
    assert len(sources._split("meshes", many[:2], HELD_OUT).train.objects) == 1
    assert not sources._split("meshes", many[:1], HELD_OUT).held_out.objects


def test_an_example_depends_on_its_file_and_its_turn_alone(boxes: Path, tmp_path: Path) -> None:
    split = opened(boxes, tmp_path / "data")
    late = example(split.train, VISIT * len(split.train.objects) + 1)
    alone = replace(split.train, objects=split.train.objects[:1])
    same = example(alone, VISIT + 1)  # the same file, its second visit
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(late, name), getattr(same, name))
    assert (example(alone, VISIT).photo != same.photo).any()


def test_files_take_turns(boxes: Path, tmp_path: Path) -> None:
    train = opened(boxes, tmp_path / "data").train
    shown = [example(train, VISIT * visit).views[FRONT, :3].max(axis=(1, 2)) > 128 for visit in range(5)]
    for number, found in enumerate(train.objects[:5]):
        mesh = read_mesh(found.files[0].read_bytes(), size_px=SIZE)
        own = mesh.colour_at(np.zeros(1, np.int64), np.float32([[1, 0, 0]]))
        np.testing.assert_array_equal(shown[number], own[0] > 0.5)


def test_another_process_renders_the_same(boxes: Path, tmp_path: Path) -> None:
    train = opened(boxes, tmp_path / "data").train
    writes = partial(write_shard, has_field=False)
    list(build(tmp_path / "two", 6, 1, size_px=SIZE, shard=3, source=train, write=writes))
    write_shard(tmp_path / "0000000.npz", range(6), RASTER, SIZE, has_field=False, source=train)
    one, two = Shards(tmp_path), Shards(tmp_path / "two")
    assert len(two.files) == 2
    for k in range(6):
        for name in ("photo", "views", "depth", "seed"):
            np.testing.assert_array_equal(one[k][name], two[k][name])
    assert (one.families == NO_FAMILY).all()


def test_what_cannot_be_read_is_named_and_passed_over(
    boxes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (boxes / "more" / "bad.glb").write_bytes(b"glTF of sorts")
    (boxes / "empty.GLB").write_bytes(b"")
    (boxes / "folder.glb").mkdir()
    (boxes / "notes.txt").write_text("not a mesh")
    with caplog.at_level(logging.WARNING):
        split = opened(boxes, tmp_path / "data")
    assert sorted(record.getMessage().split(": passed over: ")[0] for record in caplog.records) == [
        str(boxes / "empty.GLB"),
        str(boxes / "more" / "bad.glb"),
    ]
    assert len(split.train.objects) + len(split.held_out.objects) == 20
    caplog.clear()
    assert opened(boxes, tmp_path / "data") == split
    assert not caplog.records, "a run that goes on does not repeat itself"
    listed = json.loads((tmp_path / "data" / LIST).read_text())["objects"].values()
    assert sorted(entry["name"] for entry in listed if entry["unusable"]) == ["empty.GLB", "more/bad.glb"]


def test_copies_count_once(boxes: Path, tmp_path: Path) -> None:
    (boxes / "copy.glb").write_bytes((boxes / "0.glb").read_bytes())
    split = opened(boxes, tmp_path / "data")
    assert len(split.train.objects) + len(split.held_out.objects) == 20


def test_a_folder_of_nothing_readable_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"neither GLB files nor the published layout .*E_TRAIN_SOURCE"):
        opened(folder, tmp_path / "data")
    (folder / "bad.glb").write_bytes(b"bad")
    with pytest.raises(UsageError, match="none of its 1 objects can be read"):
        opened(folder, tmp_path / "data")
    with pytest.raises(UsageError, match="no such folder"):
        opened(tmp_path / "nowhere", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_examples_of_one_folder_are_not_passed_off_as_another_s(boxes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    opened(boxes, data)
    (boxes / "21.glb").write_bytes(box_of(21))
    with pytest.raises(UsageError, match=r"another state of .*E_TRAIN_DATA"):
        opened(boxes, data)
    with pytest.raises(UsageError, match=r"holds examples of a folder of objects .*E_TRAIN_DATA"):
        sources.refuse_other(data)
    (tmp_path / "procedural" / "train").mkdir(parents=True)
    write_shard(tmp_path / "procedural" / "train" / "0000000.npz", range(1), RASTER, SIZE, has_field=False)
    with pytest.raises(UsageError, match="procedural products"):
        opened(boxes, tmp_path / "procedural")


def test_a_file_that_changes_while_it_is_learned_from_is_noticed(boxes: Path, tmp_path: Path) -> None:
    train = opened(boxes, tmp_path / "data").train
    sources._read.cache_clear()
    train.objects[0].files[0].write_bytes(box_of(50))
    with pytest.raises(Unusable, match="has changed since"):
        example(train, 0)


@pytest.mark.parametrize(
    "mesh",
    [
        quad([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]),
        trimesh.Trimesh([[0, 0, 0], [0.001, 0, 0], [0, 9, 0]], [[0, 1, 2]]),
        trimesh.Trimesh(BALL.vertices, BALL.faces[BALL.triangles_center[:, 2] < 0.5]),
    ],
    ids=["lying flat", "needle", "open"],
)
def test_meshes_without_an_inside_give_whole_examples(mesh: trimesh.Trimesh, tmp_path: Path) -> None:
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "odd.glb").write_bytes(glb_of(mesh))
    train = opened(tmp_path / "meshes", tmp_path / "data").train
    for seed in range(6):
        made = example(train, seed, has_field=True)
        assert np.isfinite(made.sdf.astype(float)).all() and (made.sdf > 0).any()
        assert np.isfinite(made.depth.astype(float)).all() and np.abs(made.surface).max() <= 1
    assert (made.sdf < 0).any(), "sheets have a thickness"


@pytest.mark.parametrize(("seed", "family"), [(3, "mug"), (8, "chair"), (5, "carton")])
def test_a_product_s_own_file_gives_the_product_s_views(seed: int, family: str) -> None:
    rng = np.random.default_rng(seed)
    posed = pose(make_product(rng, family), draw_pose(rng))
    loaded = read_mesh(encode_truth(posed, seed, RASTER), size_px=64)
    again = pose(loaded, np.eye(3))
    views, depth = six_views(again, RASTER, size_px=64)
    truth, true_depth = six_views(posed, RASTER, size_px=64)
    mine, theirs = views[:, 3] > 127, truth[:, 3] > 127
    assert ((mine & theirs).sum(axis=(1, 2)) > 0.99 * (mine | theirs).sum(axis=(1, 2))).all()
    both = mine & theirs
    # Texels and the shade of what was tilted when it was photographed: a few of 255.
    assert np.abs(views[:, :3].astype(int) - truth[:, :3]).mean(axis=1)[both].mean() < 6
    assert np.abs(depth.astype(float) - true_depth)[both].mean() < 0.002
    own, found = posed.product.body(posed.vertices), loaded.body(again.vertices)
    surface, _ = outer_surface(np.random.default_rng(0), again, found)
    assert np.abs(own.signed_distance(surface)).max() < 5e-3
    places = np.random.default_rng(1).uniform(-1, 1, (2000, 3)).astype(np.float32)
    assert ((own.signed_distance(places) < 0) == (found.signed_distance(places) < 0)).mean() > 0.99


def test_inside_out_is_photographed_as_well_as_outside_in() -> None:
    turned = trimesh.Trimesh(BALL.vertices, BALL.faces[:, ::-1], process=False)

    def made(mesh: trimesh.Trimesh) -> Example:
        posed = pose(read_mesh(glb_of(mesh), size_px=32), np.eye(3))
        return example_of(np.random.default_rng(2), posed, RASTER, size_px=32, has_field=False)

    one, other = made(BALL), made(turned)
    assert np.abs(one.views.astype(int) - other.views).max() <= 3
    assert np.abs(one.photo.astype(int) - other.photo).mean() < 2


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Three objects; of the second, views and maps lie in folders of their own."""
    folder = tmp_path / "published"
    for number in range(3):
        size = (0.5, 0.3 + number / 10, 0.4)
        product = assemble("ball", [Part(ellipsoid(size), Material(solid((1, number / 2, 0))))])
        for name, data in layout_of(product, size_px=32).items():
            root = "" if number != 1 else "maps" if "xyz" in name else "views"
            parent = folder / root / f"object{number}"
            parent.mkdir(parents=True, exist_ok=True)
            (parent / name).write_bytes(data)
    (folder / "caption.csv").write_text("id,caption\nobject0,a ball\n")
    return folder


def test_the_published_layout_is_found_and_drawn_from(layout: Path, tmp_path: Path) -> None:
    split = opened(layout, tmp_path / "data")
    assert split.train.kind == "published layout"
    names = sorted(found.name for part in (split.train, split.held_out) for found in part.objects)
    assert names == ["object0", "object1", "object2"]
    made = example(split.train, 0, has_field=True)
    assert (made.views[:, 3] > 127).any(axis=(1, 2)).all() and not len(made.points)
    width = np.ptp(np.flatnonzero((made.views[FRONT, 3] > 127).any(axis=0))) + 1
    assert width == pytest.approx(EXTENT / 2 * SIZE, abs=1)


def test_an_object_with_a_broken_picture_is_passed_over(
    layout: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (layout / "object2" / "004.png").unlink()
    with caplog.at_level(logging.WARNING):
        split = opened(layout, tmp_path / "data")
    assert len(split.train.objects) + len(split.held_out.objects) == 2
    (record,) = caplog.records
    assert "object2" in record.getMessage() and "004.png" in record.getMessage()


def test_a_folder_of_both_is_refused(layout: Path, tmp_path: Path) -> None:
    (layout / "box.glb").write_bytes(box_of(1))
    with pytest.raises(UsageError, match="both GLB files and"):
        opened(layout, tmp_path / "data")


@pytest.fixture
def course_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_networks: None
) -> Callable[..., Course]:
    """Courses on tiny networks; their examples are rendered in this process."""

    def render(
        folder: Path, count: int, *, first_seed: int, size_px: int, source: Source, write: Writer, **_: object
    ) -> Iterator[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{first_seed:07d}.npz"
        write(file, range(first_seed, first_seed + count), RASTER, size_px, source=source)
        yield file

    monkeypatch.setattr(rendering, "build", render)

    def course(network: str, source: Path, **other: object) -> Course:
        places = {"data": tmp_path / "data", "folder": tmp_path / "run"}
        amounts = {"examples": 4, "held_out": 2, "size_px": SIZE}
        return Course(network=network, source=source, **places | amounts | other)

    return course


CourseFrom = Callable[..., Course]
SETTINGS = TrainSettings(steps=2, batch=2, warmup=1, save_every=1, log_every=1)


@pytest.mark.parametrize("network", ["rgb", "ccm", "reconstruction"])
def test_networks_learn_from_meshes(
    network: str, boxes: Path, course_from: CourseFrom, tmp_path: Path
) -> None:
    course = course_from(network, boxes)
    assert all(np.isfinite(line.loss) for line in run_course(course, SETTINGS))
    scores = ship(course, SETTINGS, tmp_path / "weights.safetensors")
    assert scores and all(np.isfinite(score) for score in scores.values())
    listed = json.loads((tmp_path / "data" / LIST).read_text())
    assert listed["kind"] == "meshes" and len(listed["objects"]) == 20


def test_portraits_are_of_the_folder_s_objects_which_are_looked_for_once(
    boxes: Path, course_from: CourseFrom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = course_from("reconstruction", boxes, surface=EndToEnd(grid=12))
    opened_for: list[Path] = []

    def counted(folder: Path, data: Path, **how: int) -> sources.Split:
        opened_for.append(data)
        return open_folder(folder, data, **how)

    monkeypatch.setattr(rendering, "open_folder", counted)
    portrayed = training_examples(course, SETTINGS)
    assert opened_for == [course.data]
    write_portraits(tmp_path / "0.npz", range(4), RASTER, SIZE, source=opened(boxes, course.data).train)
    wanted = Shards(tmp_path).batch(np.arange(4))
    found = portrayed.batch(np.arange(4))
    for name in (*PORTRAITS.values(), "family", "seed"):
        assert torch.equal(found[name], wanted[name])
    assert all(np.isfinite(line.loss) for line in run_course(course, SETTINGS))


@pytest.mark.parametrize("network", ["rgb", "ccm"])
def test_networks_learn_from_the_published_layout(
    network: str, layout: Path, course_from: CourseFrom
) -> None:
    assert all(np.isfinite(line.loss) for line in run_course(course_from(network, layout), SETTINGS))


def test_reconstruction_does_not_learn_from_pictures(layout: Path, course_from: CourseFrom) -> None:
    with pytest.raises(UsageError, match="pictures alone"):
        list(run_course(course_from("reconstruction", layout), SETTINGS))


def test_pictures_are_as_large_as_asked(boxes: Path, course_from: CourseFrom) -> None:
    course = course_from("rgb", boxes, size_px=24)
    assert training_examples(course, SETTINGS).batch(np.array([0]))["views"].shape == (1, 6, 4, 24, 24)
    assert held_out_examples(replace(course, size_px=None)).batch(np.array([0]))["photo"].shape[-1] == 24
    with pytest.raises(UsageError, match="24 px large, not 32"):
        training_examples(replace(course, size_px=32), SETTINGS)
    with pytest.raises(UsageError, match="E_TRAIN_SIZE"):
        training_examples(replace(course, size_px=20), SETTINGS)


def test_products_are_not_rendered_beside_meshes(boxes: Path, course_from: CourseFrom) -> None:
    course = course_from("rgb", boxes)
    training_examples(course, SETTINGS)
    with pytest.raises(UsageError, match="E_TRAIN_DATA"):
        training_examples(replace(course, source=None), SETTINGS)


def test_the_command_line_hands_folder_and_size_on(
    boxes: Path, tmp_path: Path, crm: Crm, course_from: CourseFrom
) -> None:
    words = ["train", "rgb", "--from", boxes, "--data", tmp_path / "data", "-o", tmp_path / "run"]
    told = crm(*words, "--size", "24", "--steps", "1", "--examples", "4", "--batch", "2")
    assert told.code == 0, told.err
    assert Shards(tmp_path / "data" / "train")[0]["photo"].shape == (4, 24, 24)
    told = crm("train", "rgb", "--from", tmp_path / "nowhere", "-o", tmp_path / "run")
    assert told.code == 2 and "E_TRAIN_SOURCE" in told.err


def test_one_mesh_can_be_learned_but_not_measured_on(tmp_path: Path, course_from: CourseFrom) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "box.glb").write_bytes(box_of(1))
    course = course_from("rgb", tmp_path / "one")
    assert len(list(run_course(course, SETTINGS))) == 2
    with pytest.raises(UsageError, match="none is left to measure on"):
        held_out_examples(course)
    # Not at the end of days of training.
    for wish in ({"is_shipped": True}, {"sample_every": 1}, {"measure_every": 2}):
        looks = replace(course, folder=tmp_path / "other", **wish)
        with pytest.raises(UsageError, match="none is left to measure on"):
            list(run_course(looks, SETTINGS))
    assert not (tmp_path / "other").exists()
