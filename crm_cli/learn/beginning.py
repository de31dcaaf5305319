"""Where a network's first parameters come from: weights that exist, which also say how it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.combine import network_in
from crm_cli.models.loading import load, open_part
from crm_cli.models.reconstruction import Reconstruction, ReconstructionConfig
from crm_cli.models.weights import (
    MANIFEST,
    NAMES,
    SECOND,
    WeightsSet,
    digest_of,
    expanded,
    find,
    require_intact,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Weights that a training begins from."""

    network: str
    """rgb, ccm or reconstruction."""
    architecture: str
    files: tuple[Path, ...]
    """Of the network itself."""
    weights: WeightsSet | None
    """The set it belongs to; None for a file of the small networks, which need no others."""
    is_fresh: bool = False
    """Whether the network's own parameters are drawn anew, and only what stays frozen is taken."""

    @property
    def is_latent(self) -> bool:
        """Whether it is of the published structure, which draws in the latents of a VAE."""
        return ARCHITECTURES[self.architecture].towers is not None

    @property
    def reconstruction(self) -> ReconstructionConfig:
        """How the architecture's reconstruction is built."""
        return cast(Reconstruction, ARCHITECTURES[self.architecture].unfilled("reconstruction")).config

    def fill(self, network: nn.Module) -> None:
        """Give a network built for this architecture its first parameters, in single precision."""
        if not self.is_fresh:
            load(network, self.files)

    def frozen(self, part: str, device: str) -> nn.Module:
        """A part that is read and not trained, on a device; the second diffusion may have its own."""
        assert self.weights is not None
        return open_part(self.weights, SECOND + part if self.network == "ccm" else part, device=device)

    @property
    def digest(self) -> str:
        """Stand for the contents of what the network begins with: of the whole set, or of a file alone."""
        if self.weights is None or self.files[0].parent != self.weights.directory:
            return digest_of(self.files[0])
        return self.weights.digest


def find_start(
    choice: str | None, network: str, *, is_fresh: bool = False, first: Path | None = None
) -> Start | None:
    """Look up what `--start` names, if anything; UsageError where other options do not go with it.

    first: what `--first` names.
    """
    if choice is None:
        if is_fresh:
            raise UsageError(
                "--fresh: nothing says which networks stay frozen beside the fresh one",
                code="E_TRAIN_START",
                remedy="name weights: --start published",
            )
        return None
    start = open_start(choice, network, is_fresh=is_fresh)
    if first is not None and start.is_latent:
        raise UsageError(
            "--first: networks of the published structure learn from true views, as they were published",
            code="E_TRAIN_START",
            remedy="leave --first out",
        )
    return start


def open_start(choice: str, network: str, *, is_fresh: bool = False) -> Start:
    """Find weights to begin with; EnvironmentProblem where they are missing, broken or of another network.

    Args:
        choice: `embedded`, `published`, a folder of weights, or one weights file. What a file of the
            published structure needs beside it is taken from the set in its folder, or from `published`.
        network: rgb, ccm or reconstruction.
        is_fresh: see `Start`.
    """
    if network not in NAMES:
        raise UsageError(
            f"no network named {network}", code="E_TRAIN_NETWORK", remedy=f"known: {', '.join(NAMES)}"
        )
    try:
        return _open(choice, network, is_fresh=is_fresh)
    except EnvironmentProblem as error:
        # Weights are spoken of as to those who convert with them.
        remedy = error.remedy.replace("--weights", "--start")
        raise EnvironmentProblem(error.cause, code=error.code, remedy=remedy) from error


def _open(choice: str, network: str, *, is_fresh: bool) -> Start:
    file = expanded(choice)
    if file.is_file():
        return _from_file(file, network, is_fresh=is_fresh)
    weights = find(choice)
    require_intact(weights)
    return Start(
        network=network,
        architecture=weights.architecture,
        files=tuple(entry.path for entry in weights.files_of(network)),
        weights=weights,
        is_fresh=is_fresh,
    )


def _from_file(file: Path, network: str, *, is_fresh: bool) -> Start:
    architecture = _architecture_of(file, network)
    weights = None
    if ARCHITECTURES[architecture].towers is not None:
        weights = find(str(file.parent) if (file.parent / MANIFEST).exists() else "published")
        require_intact(weights)
        if weights.architecture != architecture:
            raise EnvironmentProblem(
                f"{file}: built like {architecture}, and {weights.directory} like {weights.architecture}",
                code="E_WEIGHTS_WRONG",
                remedy="run `crm weights fetch`, or put the file into a folder of its own weights",
            )
    return Start(
        network=network, architecture=architecture, files=(file,), weights=weights, is_fresh=is_fresh
    )


def _architecture_of(file: Path, network: str) -> str:
    """The architecture whose network of this name a file fills; only its header is read."""
    architecture, part = network_in(file, likely=network)
    if part == network:
        return architecture
    raise EnvironmentProblem(
        f"{file}: the {part} network of {architecture}, not {network}",
        code="E_WEIGHTS_WRONG",
        remedy=f"give weights of {network}: embedded, published, a folder, or a file that `--ship` wrote",
    )
