"""The networks at their published size, with random weights, in memory that a workstation has.

Each runs in a process of its own, which is this file: `python tests/test_published_size.py PART FOLDER`
builds a part without weights, maps them from FOLDER's files and writes there what it answers.
"""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from crm_cli.models import clip, field, loading
from crm_cli.models.architectures import RELEASE
from crm_cli.models.clip import RELEASE_TEXT, TextTower
from crm_cli.models.denoiser import MultiViewUNet
from crm_cli.models.reconstruction import Reconstruction
from crm_cli.models.vae import Vae
from crm_cli.records import SixViews

MEMORY_GB = 16
"""What the whole command promises to need with the published networks on a CPU."""

THREADS = 2
SHARD_BYTES = 1 << 30

# What is written: half precision, as the larger part of the published weights.


def draw(name: str, shape: torch.Size, generator: Generator) -> Tensor:
    """Values of one parameter that keep what passes through it at about its size; none is left out."""
    values = torch.randn(shape, generator=generator)
    kind = name.rpartition(".")[2]
    if kind.endswith("bias"):
        values *= 0.1
    elif kind.endswith("weight"):
        values = values / math.sqrt(values[0].numel()) if values.ndim > 1 else 1 + 0.1 * values
    # The signed distance is that of a ball; a correction of its own size would leave no shape.
    return values * 0.1 if name.startswith("sdfMlp.fc3.") else values


def shards_of(shapes: Mapping[str, torch.Size]) -> Iterator[dict[str, torch.Size]]:
    """The parameters in order, as many at a time as one file takes."""
    shard: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        if shard and 2 * sum(map(math.prod, [*shard.values(), shape])) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def write_shard(file: Path, shapes: Mapping[str, torch.Size], generator: Generator) -> None:
    """A safetensors file, one parameter in memory at a time."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            stream.write(draw(name, shape, generator).half().numpy().tobytes())


# What the child process does.


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def denoise(network: nn.Module) -> dict[str, Tensor]:
    """One step with both branches of the guidance: zeros for the image, latents and text of their own."""
    assert isinstance(network, MultiViewUNet)
    config = network.config

    def guided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, torch.zeros_like(tensor)])

    frames, channels, width = config.frames, config.concat_channels, config.context_width
    assert width is not None
    conditions = network.prepare(
        text=noise(2, clip.LENGTH, width),
        image=guided(noise(clip.TOKENS, config.image_width)),
        concat=guided(noise(frames, channels, 32, 32)) if channels else None,
        reference=guided(noise(config.channels_in, 32, 32)) if config.has_reference else None,
    )
    x = noise(1, frames, config.channels_in, 32, 32, seed=2).repeat(2, 1, 1, 1, 1)
    return {"noise": network(x, torch.tensor([981, 981]), conditions)}


def see(tower: nn.Module) -> dict[str, Tensor]:
    return {"tokens": tower(noise(1, 3, clip.PICTURE_PX, clip.PICTURE_PX))}


def read(tower: nn.Module) -> dict[str, Tensor]:
    assert isinstance(tower, TextTower)
    return {"tokens": clip.Contexts.of(tower).tokens}


def code(vae: nn.Module) -> dict[str, Tensor]:
    assert isinstance(vae, Vae)
    pictures = noise(2, 3, 256, 256).clamp(-1, 1)
    return {
        "latents": vae.encode(pictures, noise(2, 4, 32, 32)),
        "pictures": vae.decode(noise(2, 4, 32, 32, seed=2)),
    }


def reconstruct(network: nn.Module) -> dict[str, Tensor]:
    assert isinstance(network, Reconstruction)
    pictures = noise(2, 6, 3, 256, 256).sigmoid()
    views = SixViews(rgb=pictures[0], ccm=pictures[1], alpha=torch.ones(6, 1, 256, 256))
    shape = network.field(views, generator=torch.Generator().manual_seed(3))
    mesh = field.surface(shape, 80)
    vertices = torch.from_numpy(mesh.vertices)
    return {
        "planes": shape.triplane.planes,
        "vertices": vertices,
        "faces": torch.from_numpy(mesh.faces),
        "colours": shape.colour(vertices),
    }


PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], dict[str, Tensor]]]] = {
    "rgb": (RELEASE.parts["rgb"], denoise),
    "ccm": (RELEASE.parts["ccm"], denoise),
    "vision": (RELEASE.parts["vision"], see),
    "text": (lambda: TextTower(RELEASE_TEXT), read),
    "vae": (RELEASE.parts["vae"], code),
    "reconstruction": (RELEASE.parts["reconstruction"], reconstruct),
}


def peak_bytes() -> int:
    """Most memory this process has held so far, files it has mapped included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(part: str, folder: Path) -> None:
    torch.set_num_threads(THREADS)
    build, answer = PARTS[part]
    with torch.device("meta"):
        network = build()
    loading.load(network, sorted(folder.glob("weights-*.safetensors")), device="cpu", dtype=torch.float32)
    network.eval().requires_grad_(False)
    with torch.inference_mode():
        answers = answer(network)
    save_file({name: tensor.contiguous() for name, tensor in answers.items()}, folder / "answers.safetensors")
    (folder / "peak").write_text(str(peak_bytes()))


# What is asked of its answers.


@pytest.fixture
def answers_of(tmp_path: Path) -> Iterator[Callable[[str], dict[str, Tensor]]]:
    """Runs a part in a process of its own; gives its answers, all of them finite."""

    def run(part: str) -> dict[str, Tensor]:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in PARTS[part][0]().state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        for number, shard in enumerate(shards_of(shapes)):
            write_shard(tmp_path / f"weights-{number}.safetensors", shard, generator)
        subprocess.run([sys.executable, __file__, part, str(tmp_path)], check=True)
        assert int((tmp_path / "peak").read_text()) < MEMORY_GB * 10**9
        answers = load_file(tmp_path / "answers.safetensors")
        assert all(tensor.isfinite().all() for tensor in answers.values())
        return answers

    yield run
    # Gigabytes, which pytest would keep for three more runs.
    for file in tmp_path.iterdir():
        file.unlink()


def varies(tensor: Tensor) -> bool:
    """Whether every map, or every token and every feature, has values that differ by about their size."""
    size = tensor.std()
    return all(bool((tensor.std(dim=axis) > 0.05 * size).all()) for axis in (-2, -1))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "frames"), [("rgb", 7), ("ccm", 6)])
def test_a_step_of_a_published_diffusion_fits(
    part: str, frames: int, answers_of: Callable[[str], dict[str, Tensor]]
) -> None:
    noise = answers_of(part)["noise"]
    assert noise.shape == (2, frames, 4, 32, 32)
    assert varies(noise)
    conditional, unconditional = noise
    assert (conditional - unconditional).std() > 0.05 * noise.std()


@pytest.mark.slow
@pytest.mark.parametrize(("part", "shape"), [("vision", (1, 257, 1280)), ("text", (2, 77, 1024))])
def test_a_published_tower_fits(
    part: str, shape: tuple[int, ...], answers_of: Callable[[str], dict[str, Tensor]]
) -> None:
    tokens = answers_of(part)["tokens"]
    assert tokens.shape == shape
    assert varies(tokens)


@pytest.mark.slow
def test_the_published_autoencoder_fits(answers_of: Callable[[str], dict[str, Tensor]]) -> None:
    answers = answers_of("vae")
    assert answers["latents"].shape == (2, 4, 32, 32)
    assert answers["pictures"].shape == (2, 3, 256, 256)
    assert varies(answers["latents"])
    assert varies(answers["pictures"])


@pytest.mark.slow
def test_the_published_reconstruction_fits(answers_of: Callable[[str], dict[str, Tensor]]) -> None:
    answers = answers_of("reconstruction")
    assert answers["planes"].shape == (3, 32, 256, 256)
    assert varies(answers["planes"])
    vertices, faces, colours = answers["vertices"], answers["faces"], answers["colours"]
    assert vertices.abs().max() < 1.05
    assert vertices.std(dim=0).min() > 0.1
    # Closed: every edge is run through as often one way as the other.
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, count = edges.unique(dim=0, return_counts=True)
    back, count_back = edges.flip(1).unique(dim=0, return_counts=True)
    assert torch.equal(there, back) and torch.equal(count, count_back)
    assert colours.shape == vertices.shape
    assert 0 <= colours.min() < colours.max() <= 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
