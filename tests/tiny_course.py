"""Networks and examples so small that a step of training takes milliseconds."""

from pathlib import Path

import pytest


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Courses that begin with nothing train tiny networks."""
    from crm_cli.learn import course
    from crm_cli.models.denoiser import TINY_CCM, TINY_RGB
    from crm_cli.models.reconstruction import TINY

    for name, config in (("SMALL_RGB", TINY_RGB), ("SMALL_CCM", TINY_CCM), ("SMALL", TINY)):
        monkeypatch.setattr(course, name, config)


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard costs more than runs of tests do."""
    from crm_cli.learn import logs

    monkeypatch.setattr(logs, "_board", lambda folder, step: None)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of 16 px; no test writes there."""
    return rendered(tmp_path_factory.mktemp("data"), size_px=16)


def rendered(folder: Path, *, size_px: int) -> Path:
    """Render four examples to learn from, and eight held out, into a folder."""
    from crm_cli.learn.data import HELD_OUT, write_shard
    from crm_cli.mesh.raster import WarpRaster

    for name, seeds in (("train", range(4)), ("held-out", range(HELD_OUT, HELD_OUT + 8))):
        (folder / name).mkdir()
        write_shard(folder / name / f"{seeds[0]:07d}.npz", seeds, WarpRaster(), size_px)
    return folder
