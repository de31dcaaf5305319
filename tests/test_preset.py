import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_for_tests
from hypothesis import strategies as st

from crm_cli.errors import ExitCode, UsageError
from crm_cli.preset import (
    STAGE_SECTIONS,
    Override,
    Preset,
    ResolvedPreset,
    list_presets,
    load_preset,
    presets_folder,
    settings,
    value_of,
)

FACES_MOST = {"banner": 30_000, "web": 100_000, "fine": 200_000}


def resolve(folder: Path, text: str, *overrides: str) -> ResolvedPreset:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return load_preset(str(path), [Override.from_assignment(each) for each in overrides])


def refuse(folder: Path, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        resolve(folder, text)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)
    return caught.value


def refuse_set(assignment: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_preset(overrides=[Override.from_assignment(assignment)])
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", list_presets())
def test_every_shipped_preset_loads(name: str) -> None:
    resolved = load_preset(name)
    assert resolved.name == name
    assert list(resolved.origins) == list(settings())


def test_auto_becomes_what_suits_the_weights() -> None:
    embedded = load_preset()
    published = load_preset(architecture="release")
    assert "rgb.steps" in embedded.autos
    assert embedded.autos == published.autos
    assert (embedded.preset.rgb.steps, embedded.preset.rgb.guidance) == (1, 1.0)
    assert (published.preset.rgb.steps, published.preset.rgb.guidance) == (20, 5.0)
    assert embedded.preset.reconstruction.grid == 96
    assert published.preset.reconstruction.grid == 80
    assert embedded.preset.fingerprint() != published.preset.fingerprint()
    assert load_preset(architecture="miniature").preset == published.preset


def test_a_value_of_ones_own_is_no_auto() -> None:
    resolved = load_preset(overrides=[Override.from_assignment("rgb.steps=7")], architecture="release")
    assert resolved.preset.rgb.steps == 7
    assert "rgb.steps" not in resolved.autos
    assert "ccm.steps" in resolved.autos


def test_only_settings_that_depend_on_the_weights_have_an_auto() -> None:
    assert "rgb.solver: expected one of unipc, ddim, got 'auto'" in str(refuse_set("rgb.solver=auto"))
    assert "seed: expected a whole number" in str(refuse_set("seed=auto"))
    assert "weights" not in load_preset().autos, "its own word auto is for the search, not for the preset"


@pytest.mark.parametrize(("name", "steps"), [("exact", 50), ("fast", 20), ("turbo", 10)])
def test_the_presets_of_the_published_weights_leave_no_sampling_open(name: str, steps: int) -> None:
    resolved = load_preset(name)
    assert resolved.preset.weights == "published"
    assert not [key for key in resolved.autos if key.startswith(("rgb.", "ccm."))]
    assert (resolved.preset.rgb.steps, resolved.preset.ccm.steps) == (steps, steps)


def test_the_exact_preset_is_the_published_system() -> None:
    preset = load_preset("exact").preset
    for sampling in (preset.rgb, preset.ccm):
        assert (sampling.solver, sampling.guidance, sampling.guided) == ("ddim", 5.0, 1.0)
    assert preset.cutout.framing == "canvas"
    assert preset.views.truncate and not preset.views.use_photo
    assert (preset.mesh.faces, preset.mesh.smooth) == (1_000_000, 0)
    assert (preset.reconstruction.grid, preset.reconstruction.dense) == (80, True)


def test_the_default_preset_sets_everything_itself() -> None:
    assert set(load_preset().origins.values()) == {str(presets_folder() / "default.yaml")}
    assert list_presets()[0] == "default"


@pytest.mark.parametrize(("name", "most"), FACES_MOST.items())
def test_publish_presets_keep_their_triangle_budget(name: str, most: int) -> None:
    assert load_preset(name).preset.mesh.faces <= most


def test_a_value_comes_from_the_last_one_who_set_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: banner\nrgb: {steps: 7}\nseed: 3\n", encoding="utf-8")
    resolved = resolve(tmp_path, "extends: mine.yaml\nrgb: {steps: 9}\n", "rgb.guidance=5.5", "seed=4")
    assert {
        key: Path(resolved.origins[key]).name for key in ("mesh.faces", "rgb.steps", "seed", "ccm.steps")
    } == {
        "mesh.faces": "banner.yaml",
        "rgb.steps": "own.yaml",
        "seed": "--set",
        "ccm.steps": "default.yaml",
    }
    preset = resolved.preset
    assert (preset.rgb.steps, preset.rgb.guidance, preset.seed) == (9, 5.5, 4)
    assert preset.mesh.faces == load_preset("banner").preset.mesh.faces


def test_a_later_override_wins() -> None:
    resolved = load_preset(overrides=[Override("seed", "1", "--set"), Override("seed", "2", "CRM_SEED")])
    assert (resolved.preset.seed, resolved.origins["seed"]) == (2, "CRM_SEED")


def test_a_file_without_extends_and_an_empty_one_extend_the_default(tmp_path: Path) -> None:
    assert resolve(tmp_path, "# nothing\nmesh:\n").preset == load_preset().preset
    assert resolve(tmp_path, "").preset == load_preset().preset


def test_a_whole_number_stands_for_a_float_and_a_comma_list_for_a_list() -> None:
    resolved = load_preset(
        overrides=[Override.from_assignment(a) for a in ("rgb.guidance=5", "export.formats=usd, glb")]
    )
    assert resolved.preset.rgb.guidance == 5.0 and isinstance(resolved.preset.rgb.guidance, float)
    assert resolved.preset.export.formats == ("usd", "glb")


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("rgb.stpes=1", "rgb.stpes: no such setting (did you mean 'steps'?) [E_PRESET_KEY]; set by --set"),
        ("rbg.steps=1", "rbg.steps: no such setting (did you mean 'rgb.steps'?)"),
        ("faces=1", "faces: no such setting (did you mean 'mesh.faces'?)"),
        ("zzz=1", "zzz: no such setting [E_PRESET_KEY]"),
        ("rgb=1", "rgb: a section, not a setting (it has rgb.solver, rgb.steps, rgb.guidance, rgb.guided)"),
        ("rgb.steps=0", "rgb.steps: expected a whole number from 1 to 1000, or auto, got 0 [E_PRESET_VALUE]"),
        ("rgb.steps=1.5", "rgb.steps: expected a whole number from 1 to 1000, or auto, got 1.5"),
        ("rgb.steps=true", "rgb.steps: expected a whole number from 1 to 1000, or auto, got True"),
        ("seed=4294967296", "seed: expected a whole number from 0 to 4294967295, got 4294967296"),
        ("rgb.guidance=.nan", "rgb.guidance: expected a number from 0 to 30, or auto, got nan"),
        ("views.use_photo=1", "views.use_photo: expected true or false, got 1"),
        ("texture.size_px=1000", "expected one of 128, 256, 512, 1024, 2048, 4096, got 1000"),
        ("matting.method=rmbg", "got 'rmbg' (did you mean 'rembg'?)"),
        ("export.formats=[]", "export.formats: expected a list of glb, obj, usd, usdz, got []"),
        ("export.formats=glb,fbx", "export.formats: expected a list of glb, obj, usd, usdz, got 'fbx'"),
        ("seed", "--set seed: no '=' in it [E_PRESET_SET]"),
        ("seed=[", "--set seed: line 1 not valid YAML"),
        ("seed=2020-13-45", "--set seed:"),
    ],
)
def test_a_wrong_override_is_one_line_that_helps(assignment: str, says: str) -> None:
    assert says in str(refuse_set(assignment))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rgb: {stpes: 1}", "rgb.stpes: no such setting (did you mean 'steps'?)"),
        ("rgb: 3", "rgb: expected settings, got 3"),
        ("- rgb", "expected settings, got ['rgb']"),
        ("seed: 1\nmesh: {faces: 500}\nseed: 2", "line 1 not valid YAML ('seed' is set twice)"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("seed: " + "[" * 5000, "not valid YAML"),
        ("seed: " + "1" * 5000, "not valid YAML"),
        ("extends: defualt", "defualt: no such preset (did you mean 'default'?)"),
        ("extends: own.yaml", "extends runs in a circle: own → own"),
        ("extends: gone.yaml", "gone.yaml: no such preset file"),
        ("extends: [a]", "extends: expected the name of a preset, got ['a']"),
        ('"a\\nb": 1', "'a\\nb': no such setting"),
    ],
)
def test_a_wrong_file_is_one_line_that_helps(tmp_path: Path, text: str, says: str) -> None:
    assert says in str(refuse(tmp_path, text))


def test_a_wrong_value_names_its_file(tmp_path: Path) -> None:
    assert str(refuse(tmp_path, "seed: x")).endswith(f"set by {tmp_path.resolve() / 'own.yaml'}")


def test_aliases_that_grow_without_end_are_refused_briefly(tmp_path: Path) -> None:
    layers = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 20))
    assert len(str(refuse(tmp_path, f"seed: &x0 [1]\n{layers}"))) < 300


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    for content in (b"\xff\xfe\x00", b"seed: 1 #" + b"x" * 1_000_000, b"\x00"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"own\.yaml"):
            load_preset(str(path))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=4
)


@settings_for_tests(max_examples=60, deadline=None)
@given(TREES)
def test_any_value_is_taken_or_refused_in_one_line(value: object) -> None:
    text = json.dumps(value)
    for key in ("seed", "rgb.guidance", "export.formats", "texture.size_px", "weights"):
        try:
            preset = load_preset(overrides=[Override(key, text, "--set")]).preset
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert preset.fingerprint()


def test_the_fingerprint_depends_on_values_alone(tmp_path: Path) -> None:
    default = load_preset().preset
    assert resolve(tmp_path, "rgb: {guidance: 1}\nseed: 0x0\n").preset.fingerprint() == default.fingerprint()
    assert load_preset(overrides=[Override("seed", "1", "a")]).preset.fingerprint() != default.fingerprint()


def test_every_setting_changes_the_key_of_exactly_one_stage() -> None:
    default = load_preset().preset
    for key, setting in settings().items():
        section, _, inner = key.partition(".")
        other = "other" if setting.kind is str else -1
        part = replace(getattr(default, section), **{inner: other}) if inner else other
        changed = replace(default, **{section: part})
        moved = [
            s
            for s, parts in STAGE_SECTIONS.items()
            if changed.fingerprint(*parts) != default.fingerprint(*parts)
        ]
        # Of the weights the digest counts, wherever they are read, and not what they were called.
        assert len(moved) == (0 if key == "weights" else 1), key


def test_every_setting_says_what_it_means() -> None:
    for setting in settings().values():
        assert setting.about and setting.allowed
        value_of(load_preset().preset, setting.key)


def test_the_settings_are_the_whole_tree() -> None:
    preset = load_preset().preset
    keys = set()
    for each in fields(Preset):
        part = getattr(preset, each.name)
        keys |= {f"{each.name}.{inner.name}" for inner in fields(part)} if is_dataclass(part) else {each.name}
    assert keys == set(settings())


def test_importing_presets_stays_light() -> None:
    heavy = "{'yaml', 'numpy', 'torch'}"
    code = f"import sys, crm_cli.preset; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
