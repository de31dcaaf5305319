"""`--products` and slugs: what a listing says of a product, and how its asset is called there."""

from pathlib import Path, PurePosixPath

import fakes
import pytest
from output import plant, published, put_fakes_on_the_path, run, started, statuses
from typer.testing import CliRunner

from crm_cli.cli.app import app
from crm_cli.errors import UsageError
from crm_cli.preset import load_preset
from crm_cli.records import RealSize
from crm_cli.run.batch import convert
from crm_cli.run.commits import Recipe, Records
from crm_cli.run.events import AssetPlanned, Event, Warned
from crm_cli.run.gc import sweep
from crm_cli.run.products import Product, match, read_products
from crm_cli.run.retry import plan_retry
from crm_cli.run.selection import Selection
from crm_cli.run.verify import verify


def table(folder: Path, text: str | bytes) -> Path:
    file = folder / "products.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read_products(table(folder, text))
    assert caught.value.code == "E_PRODUCTS"
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "sku,width_mm,height_mm,depth_mm\nmug,80,95.5,\nbox,,,120\n",
        "\ufeffsku;width_mm;height_mm;depth_mm\r\nmug;80;95,5;\r\n\r\nbox;;;120",
        "sku\twidth_mm\theight_mm\tdepth_mm\nmug\t80\t95,5\t\nbox\t\t\t120\n",
        'Depth_mm , SKU,price,"height_mm",width_mm\n,mug,"1,99",95.5,80\n120,box\n',
        "sku,file,width_mm,height_mm,depth_mm\n4711,mug,80,95.5\n,,,,\nbox,,,,120\n",
    ],
    ids=[
        "commas",
        "semicolons as spreadsheets write them",
        "tabs as they are copied",
        "columns of others",
        "file before sku",
    ],
)
def test_a_table_is_read_as_shops_write_it(tmp_path: Path, text: str) -> None:
    assert read_products(table(tmp_path, text)) == (
        Product(name="mug", size=RealSize(width_mm=80, height_mm=95.5)),
        Product(name="box", size=RealSize(depth_mm=120)),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: no column says a photo: expected file or sku"),
        ("name,width_mm\n", "line 1: no column says a photo"),
        ("sku,width\n", "line 1: no column says a length: expected width_mm or height_mm or depth_mm"),
        ("sku,sku,width_mm\n", "line 1: two columns are called sku"),
        (
            "sku,width_mm\nmug,\n\nmug2,x\n",
            "line 4: width_mm: expected millimetres up to 100000, without a unit",
        ),
        ("sku,width_mm\nmug,0\n", "or marks between thousands; got 0"),
        ("sku,width_mm\n\n", "line 1: no row below the heading"),
        ("sku;width_mm\nmug;1.234,5\n", "marks between thousands; got 1.234,5"),
        ("sku,width_mm\nmug,-3\n", "line 2: width_mm"),
        ("sku,width_mm\nmug,nan\n", "line 2: width_mm"),
        ("sku,width_mm\nmug,1e9\n", "line 2: width_mm"),
        ('sku,width_mm\nmug,"12,5"\n', "line 2: width_mm"),
        ("sku,width_mm\nmug,1,2\n", "line 2: 3 cells under 2 headings"),
        ("sku,width_mm\n,12\n", "line 2: sku empty"),
        ("sku,width_mm\nmug,1\nbox,2\nMUG,3\n", "line 4: MUG stands already in line 2"),
        ('sku,width_mm\n"mug,1\n', "unexpected end of data"),
        (b"sku,width_mm\nmug,1\nt\xe4sse,2\n", "line 3: not UTF-8"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    message = refusal(tmp_path, text)
    assert told in message
    assert "products.csv, line" in message


def test_a_table_that_is_not_there_is_a_mistake_in_the_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: cannot be read: No such file"):
        read_products(tmp_path / "none.csv")


def sizes_of(names: list[str], photos: list[str]) -> dict[str, float]:
    products = [Product(name=name, size=RealSize(width_mm=1 + at)) for at, name in enumerate(names)]
    sized = match(products, list(map(PurePosixPath, photos)))
    return {str(photo): size.width_mm for photo, size in sized.sizes.items()}


@pytest.mark.parametrize("name", ["kitchen/mug.jpg", "kitchen/mug", "mug.jpg", "mug", "MUG"])
def test_a_photo_is_found_by_path_name_or_stem(name: str) -> None:
    assert sizes_of([name], ["kitchen/mug.jpg"]) == {"kitchen/mug.jpg": 1}


def test_an_accent_is_the_same_however_a_system_stores_it() -> None:
    assert sizes_of(["cafe\u0301"], ["caf\u00e9.jpg"]) == {"caf\u00e9.jpg": 1}


def test_the_row_that_says_most_wins() -> None:
    assert sizes_of(["mug", "kitchen/mug"], ["kitchen/mug.jpg", "bath/mug.jpg"]) == {
        "kitchen/mug.jpg": 2,
        "bath/mug.jpg": 1,
    }


def test_what_has_no_counterpart_is_told_once_with_its_number() -> None:
    products = [Product(name=name, size=RealSize()) for name in ("a", "w", "x", "y", "z")]
    sized = match(products, [PurePosixPath("a.jpg"), PurePosixPath("b.jpg")])
    assert sized.sizes == {}, "a row without a length is a product all the same, of unknown size"
    assert (
        sized.warning()
        == "--products: 4 rows without a photo (w, x, y, 1 more), 1 photo without a row (b.jpg)"
    )
    assert match(products[:1], [PurePosixPath("a.jpg")]).warning() == ""


SIZES = {"mug": RealSize(height_mm=95), "chair": RealSize(width_mm=450, depth_mm=520)}


def products(**sizes: RealSize) -> tuple[Product, ...]:
    return tuple(Product(name=name, size=size) for name, size in {**SIZES, **sizes}.items())


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put_fakes_on_the_path(monkeypatch)
    return plant(tmp_path / "in", "mug.jpg", "sub/chair.png", "raise_lamp.jpg")


def recorded(out: Path) -> dict[str, RealSize | None]:
    return {str(record.asset): record.size for record in Records.scan(out).newest()}


def planned(events: list[Event]) -> dict[str, tuple[str, str, str]]:
    return {
        event.path.name: (event.action, event.reason, event.stage)
        for event in events
        if isinstance(event, AssetPlanned)
    }


def test_another_size_of_one_product_redoes_its_tail_and_leaves_the_others(
    photos: Path, tmp_path: Path
) -> None:
    keeping = fakes.engine("KeepingLine")
    out = tmp_path / "out"
    run(photos, out, engine=keeping, products=products())
    assert recorded(out)["mug.jpg"] == SIZES["mug"]
    other = products(mug=RealSize(height_mm=105))
    told = planned(run(photos, out, engine=keeping, products=other, dry_run=True))
    assert told["mug.jpg"] == ("convert", "real size - 95 - → - 105 - mm", "reconstruct")
    assert told["chair.png"][0] == "cached"
    assert started(run(photos, out, engine=keeping, products=other)) == {"mug.jpg"}
    assert recorded(out)["mug.jpg"] == RealSize(height_mm=105)
    assert started(run(photos, out, engine=keeping, products=other)) == set()
    without = planned(run(photos, out, engine=keeping, dry_run=True))
    assert without["chair.png"] == ("convert", "real size 450 - 520 → unknown mm", "reconstruct")
    assert without["raise_lamp.jpg"][0] == "cached", "of no known size then and now"


def test_a_photo_of_unknown_size_has_the_key_it_always_had(photos: Path) -> None:
    recipe = Recipe.of(load_preset("tiny").preset, {})
    plain, sized = recipe.keys("ab"), recipe.keys("ab", {"out": "size 1 2 3"})
    assert (plain.prep, plain.views, plain.mesh) == (sized.prep, sized.views, sized.mesh)
    assert len({plain.out, sized.out, recipe.keys("ab", {"out": "size 1 2 4"}).out}) == 3
    assert recipe.keys("ab", {}) == plain


def test_a_retry_knows_the_sizes_that_the_run_was_given(photos: Path, tmp_path: Path) -> None:
    size = RealSize(height_mm=300)
    out = tmp_path / "out"
    run(photos, out, products=products(raise_lamp=size))
    assert "raise_lamp.jpg" not in recorded(out)
    [again] = plan_retry(out)
    list(convert(again.preset, again.options, engine=fakes.engine("KindLine"), only=again.photos))
    assert recorded(out)["raise_lamp.jpg"] == size


def test_a_run_tells_of_rows_and_photos_without_a_counterpart_once(photos: Path, tmp_path: Path) -> None:
    rows = products(table=RealSize(width_mm=1))
    events = run(photos, tmp_path / "out", products=rows, select=Selection(limit=1))
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert warned == ["--products: 1 row without a photo (table), 1 photo without a row (raise_lamp.jpg)"], (
        "photos beyond the limit are photos all the same"
    )


def test_the_command_reads_the_table_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    bad = table(tmp_path, "sku,width_mm\nmug,wide\n")
    done = CliRunner().invoke(
        app, ["convert", str(photos), "-o", str(tmp_path / "out"), "--products", str(bad)], obj=fakes.engine()
    )
    assert isinstance(done.exception, UsageError) and "line 2" in str(done.exception)
    assert not (tmp_path / "out").exists()


def glbs(out: Path) -> set[str]:
    return {name for name in published(out) if name.endswith(".glb")}


def test_names_become_slugs_where_the_preset_asks_and_both_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_fakes_on_the_path(monkeypatch)
    photos, out = plant(tmp_path / "in", "Küche/皮鞋.webp", "b.jpg"), tmp_path / "out"
    run(photos, out, "limits.slugs=true", "export.formats=glb")
    assert glbs(out) == {"kuche/pi-xie.glb", "b.glb"}
    names = {(str(record.asset), str(record.stem)) for record in Records.scan(out).newest()}
    assert names == {("Küche/皮鞋.webp", "kuche/pi-xie"), ("b.jpg", "b")}
    assert set(statuses(run(photos, out, "limits.slugs=true", "export.formats=glb")).values()) == {"cached"}


def test_two_slugs_that_would_meet_are_told_apart_before_the_first_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_fakes_on_the_path(monkeypatch)
    photos = plant(tmp_path / "in", "Red Shoe.jpg", "red shoe.png", "red-shoe.webp")
    run(photos, tmp_path / "all", "limits.slugs=true", "export.formats=glb")
    run(photos, tmp_path / "one", "limits.slugs=true", "export.formats=glb", select=Selection(limit=1))
    every, first = glbs(tmp_path / "all"), glbs(tmp_path / "one")
    assert len(every) == 3 and "red-shoe.glb" in every
    assert first < every, "a part of the photos is named as all of them are"


CHAIN = ("export.lods=1,0.5", "export.formats=glb")


def test_every_level_of_a_chain_belongs_to_its_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)
    photos, out = plant(tmp_path / "in", "foo.jpg", "foo_lod1.jpg"), tmp_path / "out"
    run(photos, out, *CHAIN)
    chain = {"foo_lod0.glb", "foo_lod1.glb", "foo_lod1_lod0.glb", "foo_lod1_lod1.glb"}
    assert glbs(out) == chain
    assert verify(out, deep=True).problems == ()
    sweep(out, cache_bytes=0, keep_runs=1, dry_run=False)
    assert glbs(out) == chain
    assert started(run(photos, out, *CHAIN)) == set()
    (out / "foo_lod1.glb").write_text("edited")
    assert [problem.path.name for problem in verify(out, deep=True).problems] == ["foo_lod1.glb"]
    assert statuses(run(photos, out, *CHAIN)) == {"foo.jpg": "conflict", "foo_lod1.jpg": "cached"}
    run(photos, out, *CHAIN, overwrite=True)
    before = published(out)
    told = statuses(run(photos, out, "export.formats=glb"))
    assert told == {"foo.jpg": "converted", "foo_lod1.jpg": "conflict"}, "its name is a level of the other"
    assert {name: published(out)[name] for name in chain} == {name: before[name] for name in chain}


def test_a_file_in_the_way_of_any_level_is_seen_before_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_fakes_on_the_path(monkeypatch)
    photos, out = plant(tmp_path / "in", "sub/foo.jpg"), tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "foo_lod1.glb").write_text("somebody's")
    told = planned(run(photos, out, *CHAIN, dry_run=True))
    assert told["foo.jpg"][0] == "conflict" and "sub/foo_lod1.glb is in the way" in told["foo.jpg"][1]
    assert started(run(photos, out, *CHAIN)) == set()


@pytest.mark.parametrize("size", [*SIZES.values(), RealSize(width_mm=0.125, height_mm=1e5, depth_mm=100 / 3)])
def test_a_size_is_read_back_from_the_words_in_a_file(size: RealSize) -> None:
    assert RealSize.from_text(str(size)) == size
