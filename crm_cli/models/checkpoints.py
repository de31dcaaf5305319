"""The published checkpoints: reading them without running them, and their names in our networks.

A checkpoint is a pickle, and a pickle is a program. What is read here has been looked through first: it
may build tensors and name them, and nothing else. Conversion is the only caller; a run reads safetensors.
"""

from __future__ import annotations

import logging
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors
import torch
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem
from crm_cli.models.architectures import ARCHITECTURES, Towers
from crm_cli.models.clip import Contexts, TextTower
from crm_cli.models.loading import form, mismatches, shortened
from crm_cli.models.sampler import published_schedule
from crm_cli.models.weights import PUBLISHED_FILES as PUBLISHED_FILES
from crm_cli.models.weights import SECOND

ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}
"""All that a pickle of named tensors refers to."""

# fmt: off
ALLOWED_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "NEWTRUE", "NEWFALSE", "NONE",
}
# fmt: on
"""All that torch.save writes for them (pickle protocol 2)."""

MAX_PICKLE_BYTES = 1 << 24
"""Of the part that names the tensors: 0.4 MB in the published files."""

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

REMEDY = "use the published files; `crm weights fetch` gets them"

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

Tensors = Mapping[str, Tensor]

log = logging.getLogger(__name__)


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, mapped from disk; EnvironmentProblem for anything else.

    Takes safetensors and torch's zip format; one level `state_dict` around the tensors is looked through.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except FileNotFoundError as error:
        raise _refusal(file, "no such file", "E_WEIGHTS_MISSING") from error
    except OSError as error:
        raise _refusal(file, f"cannot be read: {error.strerror or error}", "E_WEIGHTS_MISSING") from error
    if file.suffix == ".incomplete":
        raise _refusal(file, "only part of a download", "E_WEIGHTS_BROKEN")
    if head.startswith(b"PK\x03\x04"):
        return _read_archive(file)
    if file.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(file)
    if head.startswith(b"version https://git-lfs"):
        raise _refusal(
            file, "stands for the file in a Git repository, and is not the file", "E_WEIGHTS_BROKEN"
        )
    raise _refusal(
        file,
        "neither safetensors nor a checkpoint in torch's zip format (older formats are not read)",
        "E_WEIGHTS_BROKEN",
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _refusal(file, f"not a whole weights file ({error})", "E_WEIGHTS_BROKEN") from error


def _read_archive(file: Path) -> dict[str, Tensor]:
    try:
        pickled = _pickled(file)
    # Encrypted and unknown records, and whatever torch's reader stumbles over, are RuntimeErrors.
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, OverflowError) as error:
        reason = str(error).split("\n")[0][:200]
        raise _refusal(file, f"not a whole file ({reason})", "E_WEIGHTS_BROKEN") from error
    _look_through(file, pickled)
    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # noqa: TID251 looked through
    # A damaged pickle of harmless parts can still fail in any way.
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise _refusal(file, f"damaged ({type(error).__name__}: {reason})", "E_WEIGHTS_BROKEN") from error
    return _tensors_of(loaded, file)


def _pickled(file: Path) -> bytes:
    """The pickle inside an archive in which two readers cannot see different things."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename for member in members}
        stems = {name.split("/")[0] for name in names}
        if len(names) < len(members) or len(stems) != 1 or min(m.header_offset for m in members) != 0:
            raise zipfile.BadZipFile("not laid out as torch does")
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise zipfile.BadZipFile("compressed, as torch never does")
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise zipfile.BadZipFile("its records are larger than itself")
        name = f"{stems.pop()}/data.pkl"
        if name not in names:
            raise zipfile.BadZipFile("no data.pkl")
        if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
            raise zipfile.BadZipFile("its data.pkl is larger than names of tensors are")
        pickled = archive.read(name)
    if pickled != _as_torch_reads_it(file):
        raise zipfile.BadZipFile("not laid out as torch does")
    return pickled


def _as_torch_reads_it(file: Path) -> bytes:
    """The pickle that torch.load finds: it looks for records and compares names in its own way."""
    with file.open("rb") as stream:
        pickled: bytes = torch._C.PyTorchFileReader(stream).get_record("data.pkl")
    return pickled


def _look_through(file: Path, pickled: bytes) -> None:
    """Raise unless a pickle does nothing but build tensors; it is not run."""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL" and argument not in ALLOWED_GLOBALS:
                cause = f"would run {str(argument).replace(' ', '.')!r}, which no tensor needs"
                raise _refusal(file, cause, "E_WEIGHTS_UNSAFE")
            if opcode.name not in ALLOWED_OPCODES or (opcode.name == "PROTO" and argument != 2):
                cause = f"holds {opcode.name}, which torch does not write for tensors"
                raise _refusal(file, cause, "E_WEIGHTS_UNSAFE")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise _refusal(file, f"damaged ({error})", "E_WEIGHTS_BROKEN") from error


def _tensors_of(loaded: object, file: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        cause = f"holds {type(loaded).__name__}, not named tensors"
        raise _refusal(file, cause, "E_WEIGHTS_WRONG")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            cause = f"holds more than named tensors: {str(name)[:80]} is {type(value).__name__}"
            raise _refusal(file, cause, "E_WEIGHTS_WRONG")
    return {name: value.detach() for name, value in loaded.items()}


def _refusal(file: Path, cause: str, code: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{file}: {cause}", code=code, remedy=REMEDY)


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
        raise _misfit(f"its {part} is not the published network: {shortened(wrong)}")


def _forms(tensors: Tensors) -> dict[str, str]:
    return {
        name: form(tensor.shape, is_floating=tensor.is_floating_point()) for name, tensor in tensors.items()
    }


def _misfit(cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(cause, code="E_WEIGHTS_WRONG", remedy=REMEDY)


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
