"""The networks of one set of weights on one device, as many at a time as fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from crm_cli.models.architectures import ARCHITECTURES
from crm_cli.models.loading import open_part
from crm_cli.models.shards import bytes_of
from crm_cli.models.weights import WeightsSet

STAY_WIDE = {"reconstruction", "contexts"}
"""Parts that are always single precision: a surface lies where small differences change their sign, and text
contexts take no room."""


def dtype_of(part: str, dtype: torch.dtype) -> torch.dtype:
    """What a part calculates in where those of its set that may calculate in dtype."""
    return torch.float32 if part.rpartition(".")[2] in STAY_WIDE else dtype


def laid_out(network: nn.Module, *, device: str, dtype: torch.dtype) -> nn.Module:
    """A network with its weights in the order in which the device's convolutions use them.

    A GPU's units for half precision take channels last; weights in another order are turned anew in every
    step, which for a published denoiser is a gigabyte read and written. On a CPU a step was measured to take
    as long either way.
    """
    if device == "cpu" or dtype == torch.float32:
        return network
    turned: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return turned


class Shelf(Mapping[str, nn.Module]):
    """Parts by name, read when they are first needed; the one unused longest makes room for another.

    Nothing is kept of a part that had to go: its files are mapped, so that fetching it again costs one copy
    from the page cache to the device.
    """

    def __init__(
        self, weights: WeightsSet, *, device: str, dtype: torch.dtype, room_bytes: int | None = None
    ) -> None:
        """room_bytes: what all parts together may take; None: there is no need to count."""
        self._weights = weights
        self._device = device
        self._dtype = dtype
        self._room = room_bytes
        self._here: OrderedDict[str, nn.Module] = OrderedDict()
        self._bytes: dict[str, int] = {}

    def __getitem__(self, part: str) -> nn.Module:
        if part not in self._weights.parts:
            raise KeyError(part)
        if part not in self._here:
            self._make_room(for_bytes=self.cost(part))
            dtype = dtype_of(part, self._dtype)
            network = open_part(self._weights, part, device=self._device, dtype=dtype)
            self._here[part] = laid_out(network, device=self._device, dtype=dtype)
        self._here.move_to_end(part)
        return self._here[part]

    def preload(self) -> bool:
        """Read everything now, where it all fits, and say whether it does.

        So what is wrong with a file shows before the first photo.
        """
        has_room = self._room is None or sum(map(self.cost, self)) <= self._room
        for part in self if has_room else ():
            self.__getitem__(part)
        return has_room

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.parts)

    def __len__(self) -> int:
        return len(self._weights.parts)

    def cost(self, part: str) -> int:
        """Bytes that a part takes on the device."""
        if part not in self._bytes:
            network = ARCHITECTURES[self._weights.architecture].unfilled(part)
            self._bytes[part] = bytes_of(network.to(dtype_of(part, self._dtype)).state_dict())
        return self._bytes[part]

    @property
    def loaded(self) -> tuple[str, ...]:
        """What is on the device, the part unused longest first."""
        return tuple(self._here)

    def _make_room(self, *, for_bytes: int) -> None:
        if self._room is None:
            return
        taken = sum(self.cost(part) for part in self._here)
        while self._here and taken + for_bytes > self._room:
            part, _ = self._here.popitem(last=False)
            taken -= self.cost(part)
