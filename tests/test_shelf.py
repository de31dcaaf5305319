import subprocess
import sys
from pathlib import Path

import pytest
import torch
from miniature import networks, write

from crm_cli.errors import EnvironmentProblem
from crm_cli.models.loading import open_part
from crm_cli.models.shelf import Shelf, laid_out
from crm_cli.models.weights import WeightsSet

PARTS = ["rgb", "ccm", "vision", "vae", "contexts", "reconstruction"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsSet:
    return write(tmp_path_factory.mktemp("weights") / "mini")


def shelf(weights: WeightsSet, *, room_bytes: int | None = None, dtype: torch.dtype = torch.float32) -> Shelf:
    return Shelf(weights, device="cpu", dtype=dtype, room_bytes=room_bytes)


def test_a_part_is_read_when_it_is_asked_for_and_then_stays(weights: WeightsSet) -> None:
    networks_here = shelf(weights)
    assert list(networks_here) == PARTS and networks_here.loaded == ()
    first = networks_here["vae"]
    assert networks_here.loaded == ("vae",)
    assert networks_here["vae"] is first
    assert "ccm.vae" not in networks_here
    with pytest.raises(KeyError):
        networks_here["ccm.vae"]


def test_what_is_read_is_what_was_written(weights: WeightsSet) -> None:
    for part, network in networks().items():
        read = shelf(weights)[part].state_dict()
        assert read.keys() == network.state_dict().keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in network.state_dict().items())


def test_cost_is_what_a_part_takes(weights: WeightsSet) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        networks_here = shelf(weights, dtype=dtype)
        for part, network in networks_here.items():
            held = sum(tensor.nbytes for tensor in network.state_dict().values())
            assert networks_here.cost(part) == held > 0


def test_surfaces_and_contexts_stay_single_precision(weights: WeightsSet) -> None:
    networks_here = shelf(weights, dtype=torch.float16)
    kinds = {
        part: {t.dtype for t in network.state_dict().values()} for part, network in networks_here.items()
    }
    wide = {part for part, dtypes in kinds.items() if dtypes == {torch.float32}}
    assert wide == {"reconstruction", "contexts"}
    assert all(dtypes == {torch.float16} for part, dtypes in kinds.items() if part not in wide)


@pytest.mark.parametrize(
    ("device", "dtype", "is_turned"),
    [
        ("cuda:0", torch.bfloat16, True),
        ("cuda:0", torch.float16, True),
        ("cuda:0", torch.float32, False),
        ("cpu", torch.bfloat16, False),
    ],
)
def test_half_precision_on_a_gpu_has_channels_last_and_the_same_numbers(
    weights: WeightsSet, device: str, dtype: torch.dtype, is_turned: bool
) -> None:
    plain, turned = (open_part(weights, "vae", dtype=dtype) for _ in range(2))
    turned = laid_out(turned, device=device, dtype=dtype)
    kernel = turned.get_parameter("encoder.down.0.block.0.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last) is is_turned
    assert kernel.is_contiguous() is not is_turned
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(turned.parameters(), plain.parameters(), strict=True)
    )


def test_the_part_unused_longest_makes_room(weights: WeightsSet) -> None:
    cost = shelf(weights).cost
    networks_here = shelf(weights, room_bytes=cost("rgb") + cost("vae") + cost("vision"))
    for part in ("vision", "vae", "rgb", "vae", "ccm"):
        networks_here[part]
    # vision was unused longest, then rgb; ccm is a little larger than rgb.
    assert networks_here.loaded == ("vae", "ccm")


def test_a_part_larger_than_the_room_is_alone(weights: WeightsSet) -> None:
    networks_here = shelf(weights, room_bytes=1)
    for part in PARTS:
        networks_here[part]
        assert networks_here.loaded == (part,)


def test_everything_is_read_at_once_only_where_it_fits(weights: WeightsSet) -> None:
    total = sum(map(shelf(weights).cost, PARTS))
    for room, loaded in ((None, 6), (total, 6), (total - 1, 0)):
        networks_here = shelf(weights, room_bytes=room)
        assert networks_here.preload() is (loaded > 0)
        assert len(networks_here.loaded) == loaded


def test_a_damaged_part_shows_when_everything_is_read_at_once(tmp_path: Path) -> None:
    weights = write(tmp_path / "mini")
    [file] = weights.files_of("vae")
    file.path.write_bytes(b"\xff" * file.bytes)
    with pytest.raises(EnvironmentProblem, match="vae-00001"):
        shelf(weights).preload()


def test_networks_are_laid_out_without_torch_s_compiler() -> None:
    """A division on the meta device is looked up among the compiler's own, whose import takes a second."""
    code = (
        "import sys, torch; from crm_cli.models.architectures import MINIATURE\n"
        "with torch.device('meta'): [MINIATURE.build(part) for part in MINIATURE.parts]\n"
        "print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
