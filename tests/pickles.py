"""Checkpoints as they were published, in miniature, and everything that people may have instead of them.

The structure is that of the real files: a denoiser's tensors are views into one half-precision storage, CLIP
and the VAE beside it are single precision and bring what inference never reads, CRM.pth is single precision
with a state dict's metadata. Nothing is zero, and activations stay moderate.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from crm_cli.models.architectures import MINIATURE
from crm_cli.models.checkpoints import CLIP, OLDER_ATTENTION, SCHEDULE, VAE
from crm_cli.models.clip import LENGTH, TextTower, TowerConfig, VisionTower
from crm_cli.models.sampler import published_schedule

CRM, RGB, CCM = "CRM.pth", "pixel-diffusion.pth", "ccm-diffusion.pth"

KEYS = Path(__file__).parent / "published_keys"

Published = dict[str, "OrderedDict[str, Tensor]"]
"""Tensors by name, of each file by its name."""


def write_published(
    folder: Path, *, change: Callable[[Published], None] = lambda files: None, **variant: object
) -> list[Path]:
    """Write the three files into a folder; their paths in the order CRM, pixel, ccm.

    change: Gets the tensors of all files, to do with them what it likes before they are written.
    variant: See `published`.
    """
    files = published(**variant)  # type: ignore[arg-type]
    change(files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        torch.save(tensors, folder / name)
    return [folder / name for name in files]


def published(
    *,
    seed: int = 0,
    towers: Collection[str] = (RGB, CCM),
    differing: Collection[str] = (),
    prefix: str = "",
    lowered: bool = False,
    dtype: torch.dtype | None = None,
    extras: bool = False,
    older_attention: bool = False,
) -> Published:
    """The tensors of the three files.

    Args:
        seed: Other weights.
        towers: The files that bring CLIP and the VAE.
        differing: Beginnings of names that have other values in the second diffusion than in the first.
        prefix: Before every name, `module.` for one.
        lowered: Denoisers as the training scripts save them, without towers.
        dtype: Of everything, instead of half and single precision.
        extras: With what may be there and means nothing: schedule, causal mask, the VAE's loss.
        older_attention: Layers of CRM.pth's attention by their older names.
    """
    files: Published = {CRM: _reconstruction(seed, older_attention=older_attention)}
    for place, (name, part) in enumerate(((RGB, "rgb"), (CCM, "ccm"))):
        unet = drawn(_shapes(part), seed + 1 + place)
        tensors = OrderedDict(_sharing_one_storage(unet, dtype or torch.float16))
        above = "" if lowered else "model."
        tensors = OrderedDict((f"{above}diffusion_model.{key}", value) for key, value in tensors.items())
        if name in towers and not lowered:
            tensors |= _towers(seed + 3)
            if place:
                _alter(tensors, differing)
        if extras:
            tensors |= _extras()
        files[name] = tensors
    for tensors in files.values():
        for key in list(tensors):
            value = tensors.pop(key)
            tensors[prefix + key] = (
                value if dtype is None or not value.is_floating_point() else value.to(dtype)
            )
    return files


def published_keys(name: str) -> dict[str, Tensor]:
    """Everything that is in the real file of this name, by name, shape and type; the values are not there."""
    tensors = {}
    for line in (KEYS / name).with_suffix(".txt").read_text("ascii").splitlines():
        key, shape, dtype = line.split()
        sizes = () if shape == "-" else tuple(map(int, shape.split("x")))
        tensors[key] = torch.zeros(sizes, dtype=getattr(torch, dtype), device="meta")
    return tensors


def clip_of(files: Published, prefix: str = "") -> dict[str, Tensor]:
    """CLIP alone, as open_clip names it, behind a prefix."""
    return {
        prefix + key.removeprefix(CLIP): value for key, value in files[RGB].items() if key.startswith(CLIP)
    }


def vae_of(files: Published, prefix: str = "") -> dict[str, Tensor]:
    """The VAE alone behind a prefix."""
    return {prefix + key.removeprefix(VAE): value for key, value in files[RGB].items() if key.startswith(VAE)}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Tensors of these shapes with which a network keeps activations at about their size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[name] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            # A norm's scale is about one; so is no other vector of a network.
            is_scale = name.endswith("weight") or name == "logit_scale"
            tensors[name] = 0.05 * noise + (1.0 if is_scale else 0.0)
    return tensors


@cache
def _shapes(part: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        module = MINIATURE.build(part)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _sharing_one_storage(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    storage = torch.cat([tensor.flatten() for tensor in tensors.values()]).to(dtype)
    pieces = storage.split([tensor.numel() for tensor in tensors.values()])
    return {
        name: piece.view(tensor.shape) for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


def _reconstruction(seed: int, *, older_attention: bool) -> OrderedDict[str, Tensor]:
    tensors = OrderedDict(drawn(_shapes("reconstruction"), seed))
    # Where the planes are flat, nothing of the photo decides on the shape: a sphere that is bent a little.
    tensors["sdfMlp.fc3.weight"] *= 0.3
    if older_attention:
        for key in [key for key in tensors if ".attentions." in key]:
            older = key
            for old, new in OLDER_ATTENTION.items():
                older = older.replace(f".{new}.", f".{old}.")
            tensors[older] = tensors.pop(key)
    tensors._metadata = OrderedDict(  # type: ignore[attr-defined]
        (name.rpartition(".")[0], {"version": 1}) for name in tensors
    )
    return tensors


def _towers(seed: int) -> dict[str, Tensor]:
    towers = {CLIP + name: tensor for name, tensor in drawn(_clip_shapes(), seed).items()}
    return towers | {VAE + name: tensor for name, tensor in drawn(_shapes("vae"), seed + 1).items()}


@cache
def _clip_shapes() -> dict[str, tuple[int, ...]]:
    """Of both towers, each with a block more than is used and all that follows it."""
    assert MINIATURE.towers is not None
    vision, text = (
        TowerConfig(width=config.width, blocks=config.blocks + 1, head_dim=config.head_dim)
        for config in (MINIATURE.towers.vision, MINIATURE.towers.text)
    )
    with torch.device("meta"):
        modules = {"visual.": VisionTower(vision), "": TextTower(text)}
    shapes = {
        prefix + name: tuple(tensor.shape)
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    return shapes | {
        "visual.ln_post.weight": (vision.width,),
        "visual.ln_post.bias": (vision.width,),
        "visual.proj": (vision.width, text.width),
        "text_projection": (text.width, text.width),
        "logit_scale": (),
    }


def _alter(tensors: dict[str, Tensor], beginnings: Collection[str]) -> None:
    for beginning in beginnings:
        names = [name for name in tensors if name.startswith(beginning)]
        assert names, beginning
        tensors[names[0]] = tensors[names[0]] + 0.01


def _extras() -> dict[str, Tensor]:
    schedule = {name: torch.zeros(1000) for name in SCHEDULE}
    schedule["alphas_cumprod"] = published_schedule().alpha_bar.float()
    mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
    return schedule | {f"{CLIP}attn_mask": mask, f"{VAE}loss.logvar": torch.zeros(())}
