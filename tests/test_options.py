from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
from safetensors.numpy import save_file

from crm_cli.errors import UsageError
from crm_cli.models import weights as weights_module
from crm_cli.models.weights import DIRECTORY, LATENT_NAMES, WeightsFile, WeightsSet
from crm_cli.preset import Override, load_preset
from crm_cli.run.options import PRECISIONS, UsedWeights, check_precision, load_suited, used_weights

PRESET = load_preset("tiny", [Override("weights", "embedded", "test")]).preset


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_embedded_weights_have_the_digests_that_the_first_version_gave_them() -> None:
    rgb, ccm, shape = (
        sha256((DIRECTORY / f"{name}.safetensors").read_bytes()) for name in ("rgb", "ccm", "reconstruction")
    )
    used = used_weights(PRESET)
    assert used.stages == {"views": sha256((rgb + ccm).encode()), "mesh": shape}
    listed = f"rgb {rgb}\nccm {ccm}\nreconstruction {shape}\n"
    assert (used.name, used.architecture, used.digest) == ("embedded", "small", sha256(listed.encode()))
    assert used.is_small


def latent(changed: str = "", *extra: str) -> WeightsSet:
    """A set of the published structure with one part changed."""
    parts = {
        part: (
            WeightsFile(path=Path(part), bytes=len(part), sha256=sha256(f"{part}{part == changed}".encode())),
        )
        for part in (*LATENT_NAMES, *extra)
    }
    return WeightsSet(name="published", architecture="release", directory=Path(), parts=parts)


def used(weights: WeightsSet, monkeypatch: pytest.MonkeyPatch) -> UsedWeights:
    monkeypatch.setattr(weights_module, "find", lambda choice: weights)
    return used_weights(PRESET)


@pytest.mark.parametrize("part", [*LATENT_NAMES, "ccm.vae"])
def test_a_part_of_large_networks_counts_for_the_stage_that_reads_it(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = used(latent("", "ccm.vae"), monkeypatch)
    after = used(latent(part, "ccm.vae"), monkeypatch)
    changed = {stage for stage in before.stages if before.stages[stage] != after.stages[stage]}
    assert changed == {"mesh" if part == "reconstruction" else "views"}
    assert before.digest != after.digest and not before.is_small


def test_the_largest_part_is_measured_in_single_precision_over_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored(name: str, numbers: int, dtype: np.typing.DTypeLike) -> WeightsFile:
        save_file({"a": np.zeros((2, numbers), dtype)}, tmp_path / name, metadata={"crm": "{}"})
        return WeightsFile(path=tmp_path / name, bytes=0, sha256="")

    torn = WeightsFile(path=tmp_path / "torn", bytes=0, sha256="")
    torn.path.write_bytes(b"\xff" * 20)
    whole = latent()
    halves = (stored("r1", 30, np.float16), stored("r2", 20, np.float16))
    parts = {**whole.parts, "rgb": halves, "vae": (stored("v", 45, np.float32),), "ccm": (torn,)}
    assert used(replace(whole, parts=parts), monkeypatch).largest_bytes == 4 * 2 * 50


def test_a_preset_is_read_with_what_suits_the_weights_that_were_found() -> None:
    for architecture in ("small", "release"):
        engine = fakes.engine(architecture=architecture)
        resolved = load_suited("default", [Override("seed", "5", "--set")], engine)
        assert resolved == load_preset("default", [Override("seed", "5", "--set")], architecture=architecture)
    assert resolved.preset.rgb.steps > 1


def test_only_known_precisions_are_taken() -> None:
    for precision in PRECISIONS:
        check_precision(precision)
    with pytest.raises(UsageError, match="one of auto, float32, bfloat16, float16"):
        check_precision("float64")
