"""The published denoisers' loop: what no photo changes is computed once, and all steps are the same work.

A step reads the number of its evaluation from the device, and all that differs between evaluations from
tables there: what the residual blocks add, the solver's shares, the signal levels. So it launches the same
kernels on the same memory every time, and one recording of it (a CUDA graph) serves for all of them.

The result is that of `sampler.sample`, but for rounding.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from crm_cli.models.denoiser import Conditions, MultiViewUNet, camera_vectors
from crm_cli.models.layers import KeysValues, Prompt
from crm_cli.models.sampler import Progress, evaluations, guide, shares_of
from crm_cli.models.steps import planned
from crm_cli.preset import Sampling

Step = Callable[[], None]

AHEAD = 2
"""Evaluations that may wait for an accelerator: with one in hand and one behind it, it is never idle."""

NAP_S = 0.0005
"""A small part of what an evaluation of a published denoiser takes, some milliseconds."""


class Record(Protocol):
    """Makes one launch of all that a step launches."""

    def __call__(self, step: Step) -> Step | None:
        """Return what does the same as the step each time it is called, or None: it must be called itself.

        The step may be run for it, and must not be held by what is returned.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shown:
    """What a denoiser is shown of a batch of objects; see `MultiViewUNet.prepare`."""

    concat: Tensor | None = None
    reference: Tensor | None = None
    image: Tensor | None = None
    text: Tensor | None = None
    """Where objects may have different ones, as in training; an Engine is told its two once."""

    def hidden(self, text: Tensor | None = None) -> Shown:
        """What the unconditional half of a guided batch is shown: nothing, and maybe another text."""
        concat, reference, image = (
            None if tensor is None else torch.zeros_like(tensor)
            for tensor in (self.concat, self.reference, self.image)
        )
        return Shown(concat=concat, reference=reference, image=image, text=text)


class Pace:
    """Keeps the host at most AHEAD evaluations in front of an accelerator.

    Without it all of them would be ordered, and told, at once: whoever listens for signs of life would take
    the long silence behind them for a hang, or a hang for progress. The host sleeps, because waiting as the
    driver does takes a core, which the worker beside may need.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ordered: deque[torch.Event] = deque()

    def keep(self) -> None:
        """Note that an evaluation has been ordered, and wait for the one AHEAD of it before the next."""
        if self._device.type == "cpu":
            return
        event = torch.Event(self._device, enable_timing=False)
        event.record()
        self._ordered.append(event)
        self._wait(AHEAD)

    def finish(self) -> None:
        """Wait for all that has been ordered."""
        self._wait(0)

    def _wait(self, left: int) -> None:
        while len(self._ordered) > left:
            if self._ordered[0].query():
                self._ordered.popleft()
            else:
                time.sleep(NAP_S)


class Engine:
    """One denoiser with one plan of sampling, for batches of one size.

    Nothing here holds the network, so that it can make room for another one; its recordings are of no use
    without it.
    """

    def __init__(
        self,
        network: MultiViewUNet,
        sampling: Sampling,
        *,
        texts: Tensor,
        shown: Shown,
        record: Record | None = None,
    ) -> None:
        """texts: what the network is told [2 L D], the positive prompt first. shown: for its shapes alone."""
        config, place = network.config, next(network.parameters())
        self._record = record
        self._recorded: dict[bool, Step] = {}
        self._guidance = sampling.guidance
        self._steps, self._guided_until = planned(sampling)
        self._wide = torch.promote_types(place.dtype, torch.float32)
        given = shown.concat if shown.concat is not None else shown.reference
        assert given is not None and shown.image is not None
        self._objects = len(given)
        self._views = config.frames - config.has_reference

        asked_at, levels = evaluations(sampling.solver, sampling.steps, config.prediction)
        to = partial(torch.as_tensor, dtype=self._wide, device=place.device)
        self._shares = to(shares_of(sampling.solver, levels))
        self._shares = self._shares.view(*self._shares.shape, 1, 1, 1, 1, 1)
        # x0 = (x - √(1−ᾱ)·noise) / √ᾱ, as shares of x and of the answer.
        to_clean = [[a**-0.5, -(((1 - a) / a) ** 0.5)] for a in levels[:-1]]
        self._to_clean = to([[0.0, 1.0]] * self._steps if config.prediction == "x0" else to_clean)
        self._make_shifts(network, torch.tensor(asked_at, device=place.device))
        self._conditions = self._make_conditions(network, texts.to(place), shown)

        shape = (self._steps + 1, self._objects, self._views, config.channels_in, *given.shape[-2:])
        self._history = torch.zeros(shape, dtype=self._wide, device=place.device)
        """The noise, then x0 by every evaluation so far."""
        self._at = torch.zeros(1, dtype=torch.int64, device=place.device)
        """The evaluation that is next."""

    def _make_shifts(self, network: MultiViewUNet, times: Tensor) -> None:
        cameras = network.camera_embed(camera_vectors(network.config.frames).to(next(network.parameters())))
        shifts = network.shifts(network.embedding(times, cameras))
        self._widths = [shift.shape[1] for shift in shifts]
        self._shifts = torch.cat(shifts, dim=1).view(len(times), -1, sum(self._widths))  # [steps F sum(C)]

    def _make_conditions(self, network: MultiViewUNet, texts: Tensor, shown: Shown) -> Conditions:
        """Those of [unconditional; conditional] objects, or of the latter alone where nothing is guided."""
        halves = 2 if self.is_ever_guided else 1
        assert shown.image is not None
        read = network.read(texts.flip(0)[-halves:])
        unseen = network.see(torch.zeros_like(shown.image[:1]).to(texts))

        def each(seen: KeysValues, copies: int) -> KeysValues:
            return KeysValues(
                seen.keys.repeat_interleave(copies, 0), seen.values.repeat_interleave(copies, 0)
            )

        def room(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else texts.new_zeros(halves * self._objects, *tensor.shape[1:])

        prompts: list[Prompt] = [
            (each(words, self._objects), each(nothing, halves * self._objects))
            for words, nothing in zip(read, unseen, strict=True)
        ]
        return Conditions(
            cameras=texts.new_zeros(0),  # told by the shifts
            prompts=tuple(prompts),
            concat=room(shown.concat),
            reference=room(shown.reference),
        )

    def run(self, network: MultiViewUNet, shown: Shown, noise: Tensor, progress: Progress) -> Tensor:
        """Turn noise [B F C h w] into latents [B 6 C h w], on the CPU.

        The network must be the one that this was made for. progress: told after each evaluation; on an
        accelerator up to AHEAD of those may still be on their way.
        """
        guided, plain = (self._launch(network, is_guided=is_guided) for is_guided in (True, False))
        self._show(network, shown)
        self._at.zero_()
        # What an earlier photo left must not count, be it infinite, by a share of zero.
        self._history.zero_()
        self._history[0].copy_(noise[:, : self._views])
        pace = Pace(self._at.device)
        for done in range(self._steps):
            (guided if done < self._guided_until else plain)()
            pace.keep()
            progress(done + 1, self._steps)
        pace.finish()
        return self._state().cpu()

    def _launch(self, network: MultiViewUNet, *, is_guided: bool) -> Step:
        """What makes one evaluation, recorded where that is possible."""
        step = partial(self.step, network, is_guided=is_guided)
        is_used = self.is_ever_guided if is_guided else self._guided_until < self._steps
        if self._record is None or not is_used:
            return step
        if is_guided not in self._recorded:
            self._at.zero_()
            recorded = self._record(step)
            if recorded is None:
                return step
            self._recorded[is_guided] = recorded
        return self._recorded[is_guided]

    def _show(self, network: MultiViewUNet, shown: Shown) -> None:
        """Write over what the conditional half was shown before."""
        assert shown.image is not None
        conditions = self._conditions.last(self._objects)
        place = next(network.parameters())
        for (_, before), now in zip(conditions.prompts, network.see(shown.image.to(place)), strict=True):
            before.keys.copy_(now.keys)
            before.values.copy_(now.values)
        for kept, given in ((conditions.concat, shown.concat), (conditions.reference, shown.reference)):
            if kept is not None and given is not None:
                kept.copy_(given)

    @property
    def is_ever_guided(self) -> bool:
        """Whether any evaluation is of both halves."""
        return self._guided_until > 0

    def step(self, network: MultiViewUNet, *, is_guided: bool) -> None:
        """One evaluation: nothing here may wait for the device, or decide by what is on it."""
        x = self._state()
        asked = torch.cat([x, x]) if is_guided else x
        shifts = self._shifts.index_select(0, self._at)[0].repeat(len(asked), 1)  # [B·F sum(C)]
        answer = network.steered(
            asked.to(self._shifts.dtype),
            torch.split(shifts, self._widths, dim=1),
            self._conditions if is_guided else self._conditions.last(self._objects),
            kept=self._views,
        ).to(self._wide)
        if is_guided:
            unconditional, conditional = answer.chunk(2)
            answer = guide(conditional, unconditional, self._guidance)
        of_x, of_answer = self._to_clean.index_select(0, self._at)[0].unbind()
        self._history.index_copy_(0, self._at + 1, (of_x * x + of_answer * answer)[None])
        self._at.add_(1)

    def _state(self) -> Tensor:
        """What the next evaluation is asked about, or behind the last one the result: [B 6 C h w]."""
        # No matrix product: its order of summation, and with it the last bit, could depend on the batch.
        return (self._shares.index_select(0, self._at)[0] * self._history).sum(0)


class Engines:
    """The engines of the networks that are loaded, made when they are first needed."""

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        self._made: WeakKeyDictionary[MultiViewUNet, dict[tuple[object, ...], Engine]] = WeakKeyDictionary()

    @torch.inference_mode()
    def run(
        self,
        network: MultiViewUNet,
        sampling: Sampling,
        shown: Shown,
        *,
        texts: Tensor,
        noise: Tensor,
        progress: Progress,
    ) -> Tensor:
        """Run one denoiser from noise [B F C h w] to latents [B 6 C h w], float32 on the CPU; see `Engine`.

        texts: always the same ones for a network.
        """
        made = self._made.setdefault(network, {})
        key = (sampling, len(noise))
        if key not in made:
            made[key] = Engine(network, sampling, texts=texts, shown=shown, record=self._record)
        return made[key].run(network, shown, noise, progress)
