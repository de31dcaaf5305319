"""The published checkpoints, and the names of their tensors in our networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem
from crm_cli.models.architectures import ARCHITECTURES, Towers
from crm_cli.models.archives import REMEDY
from crm_cli.models.archives import read_checkpoint as read_checkpoint
from crm_cli.models.clip import Contexts, TextTower
from crm_cli.models.loading import form, mismatches, shortened
from crm_cli.models.sampler import published_schedule
from crm_cli.models.weights import PUBLISHED_FILES as PUBLISHED_FILES
from crm_cli.models.weights import SECOND

WRAPPERS = ("_forward_module.", "module.")
"""What training in parallel puts before every name."""

UNET = ("model.diffusion_model.", "diffusion_model.")
"""Before the names of a denoiser: as published, and as the training scripts save it."""
CLIP = "clip_model.model."
VAE = "vae_model."
VAE_UNUSED = ("loss.",)
"""What training has of a VAE beyond it."""

ALONE = {
    "time_embed.0.weight": UNET[0],
    "visual.conv1.weight": CLIP,
    "class_embedding": f"{CLIP}visual.",
    "encoder.conv_in.weight": VAE,
}
"""A name that tells the state dict of one module alone, and its place in a published checkpoint."""

RECONSTRUCTION = ("unet2.", "sdfMlp.", "rgbMlp.", "weightMlp.")

Tower = Literal["clip", "vae"]

TOWER_FILES: dict[Tower, tuple[str, tuple[str, ...]]] = {
    "clip": ("visual.conv1.weight", (CLIP, "model.", "")),
    "vae": ("encoder.conv_in.weight", (VAE, "first_stage_model.", "")),
}
"""A name that tells a file of it, and what may stand before all its names: first what the published
checkpoints have there."""

OLDER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of an attention as diffusers called them before version 0.15, and since."""

SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}
"""What a diffusion may carry of its noise schedule; ours is computed."""

SCHEDULE_TOLERANCE = 1e-3
"""Four times how half precision rounds ᾱ; without zero terminal signal, ᾱ is off by five times as much."""

MANY = 20
"""Mismatches that are no slip in one layer: the whole network is of another size."""

Tensors = Mapping[str, Tensor]

log = logging.getLogger(__name__)


def from_published(part: str, tensors: Tensors, *, architecture: str = "release") -> dict[str, Tensor]:
    """The tensors of one of our parts, by our names, from a whole published checkpoint.

    What belongs to other parts and what inference never reads is left out; a name that is neither is an
    EnvironmentProblem. The contexts are computed: the text tower reads the prompts.

    Args:
        part: Of a latent architecture, see `weights.LATENT_NAMES`.
        tensors: By their published names, with or without what training puts before them.
        architecture: Whose towers.
    """
    tensors = unwrapped(tensors)
    part = part.removeprefix(SECOND)
    if part == "reconstruction":
        return _reconstruction(tensors)
    _check_diffusion_names(tensors)
    if part == "vision":
        return _below("visual.", _clip(tensors, architecture))
    if part == "contexts":
        return {"tokens": _contexts(text_tower(tensors, architecture=architecture), architecture)}
    if part == "vae":
        return _without(VAE_UNUSED, _below(VAE, tensors))
    return {name: tensor for prefix in UNET for name, tensor in _below(prefix, tensors).items()}


def load_published(module: nn.Module, part: str, tensors: Tensors, *, architecture: str = "release") -> None:
    """Fill a network from a published checkpoint, strictly; see `from_published`."""
    given = from_published(part, tensors, architecture=architecture)
    check_fit(part, module, given)
    wanted = module.state_dict()
    is_meta = any(tensor.is_meta for tensor in wanted.values())
    module.load_state_dict({name: given[name].to(wanted[name].dtype) for name in wanted}, assign=is_meta)


def check_fit(part: str, module: nn.Module, tensors: Tensors) -> None:
    """Raise EnvironmentProblem unless the tensors are those of the network; it may be on the meta device."""
    wrong = mismatches(_forms(module.state_dict()), _forms(tensors))
    if wrong:
        remedy = REMEDY if len(wrong) < MANY else f"{REMEDY}, or name their --architecture"
        raise _misfit(f"its {part} is not the published network: {shortened(wrong)}", remedy)


def _forms(tensors: Tensors) -> dict[str, str]:
    return {
        name: form(tensor.shape, is_floating=tensor.is_floating_point()) for name, tensor in tensors.items()
    }


def _misfit(cause: str, remedy: str = REMEDY) -> EnvironmentProblem:
    return EnvironmentProblem(cause, code="E_WEIGHTS_WRONG", remedy=remedy)


def unwrapped(tensors: Tensors) -> Tensors:
    """The same without what training in parallel puts before every name; a module alone in its place."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return unwrapped(_below(wrapper, tensors))
    place = next((place for probe, place in ALONE.items() if probe in tensors), "")
    return {place + name: tensor for name, tensor in tensors.items()}


def from_tower_file(tower: Tower, tensors: Tensors) -> dict[str, Tensor]:
    """A file of CLIP or of a VAE alone by the names that it has in a published checkpoint.

    Takes open_clip's ViT-H-14 and Stable Diffusion's autoencoder, by themselves or in a larger file.
    """
    tensors = unwrapped(tensors)
    probe, prefixes = TOWER_FILES[tower]
    for prefix in prefixes:
        if prefix + probe in tensors:
            return {prefixes[0] + name: tensor for name, tensor in _below(prefix, tensors).items()}
    raise _misfit(f"no {tower} in it: {prefixes[-1]}{probe} is missing")


def has_tower(tower: Tower, tensors: Tensors) -> bool:
    """Whether a published checkpoint brings its own CLIP or VAE."""
    prefix = TOWER_FILES[tower][1][0]
    return any(name.startswith(prefix) for name in unwrapped(tensors))


def text_tower(tensors: Tensors, *, architecture: str = "release") -> dict[str, Tensor]:
    """What the contexts are computed from."""
    clip = _clip(unwrapped(tensors), architecture)
    return {name: tensor for name, tensor in clip.items() if not name.startswith("visual.")}


def _clip(tensors: Tensors, architecture: str) -> dict[str, Tensor]:
    return _without(_towers(architecture).unused, _below(CLIP, tensors))


def _towers(architecture: str) -> Towers:
    towers = ARCHITECTURES[architecture].towers
    if towers is None:
        raise ValueError(f"{architecture} reads no CLIP")
    return towers


def _contexts(tensors: Tensors, architecture: str) -> Tensor:
    """Contexts [2 77 D] in single precision, computed on the CPU."""
    with torch.device("meta"):
        tower = TextTower(_towers(architecture).text)
    check_fit("text tower", tower, tensors)
    tower.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return Contexts.of(tower.eval()).tokens


def _reconstruction(tensors: Tensors) -> dict[str, Tensor]:
    others = [name for name in tensors if not name.startswith(RECONSTRUCTION)]
    if others:
        # The published file's size leaves room for a few small ones, and everything of ours is checked.
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        log.warning("%s%s: not part of the reconstruction, left out", others[0], more)
    return {_modern(name): tensor for name, tensor in tensors.items() if name not in others}


def _modern(name: str) -> str:
    """An attention layer's name as diffusers writes it today."""
    place, _, layer = name.partition(".attentions.")
    number, _, layer = layer.partition(".")
    older, _, kind = layer.partition(".")
    return (
        f"{place}.attentions.{number}.{OLDER_ATTENTION[older]}.{kind}" if older in OLDER_ATTENTION else name
    )


def _check_diffusion_names(tensors: Tensors) -> None:
    known = (*UNET, CLIP, VAE)
    unknown = {
        name: f"{name} is unknown" for name in tensors if not name.startswith(known) and name not in SCHEDULE
    }
    if unknown:
        raise _misfit(f"not a published diffusion checkpoint: {shortened(unknown)}")


def check_schedule(file: Path, tensors: Tensors) -> None:
    """Warn where a diffusion was saved with another noise schedule than the published one, which is used."""
    stored = unwrapped(tensors).get("alphas_cumprod")
    if stored is None:
        return
    published = published_schedule().alpha_bar
    if stored.shape != published.shape or (stored - published).abs().max() > SCHEDULE_TOLERANCE:
        log.warning("%s: its noise schedule is not the published one, which is used all the same", file)


def _below(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _without(prefixes: tuple[str, ...], tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
