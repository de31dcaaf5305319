"""An accelerator's lane: what workers ask the one process that has its networks, and what it answers.

The lane serves one request at a time; the workers hold no network. They read, cut out, unwrap, project and
write photos on the cores, and ask the lane for what networks do:

    imagine   a cut-out                        its six views
    draw      six views (or the last ones)     the surface of the networks' field
    dress     six views                        nothing: from now on these colour it
    colour    points of the finished surface   the field's colours there

So the accelerator has the next photo at hand when it is done with one, it holds one set of weights however
many photos are on their way, and what crashes on the cores takes no networks along.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from crm_cli.errors import ErrorClass, retold
from crm_cli.records import Crop, Cutout, Mesh, SixViews
from crm_cli.toolbox import Place

if TYPE_CHECKING:
    from torch import Tensor

    from crm_cli.models.reconstruction import PlaneField
    from crm_cli.models.sampler import Progress

FOR_EVER_S = 1e6

Whereabouts = Literal["asked", "begun", "answered"]
"""Of a request: it waits for the lane, is at work there, or is back."""

SHORT = frozenset({"draw", "dress", "colour"})
"""What is served before a photo is imagined, and between the steps of one that is: beside those it takes no
time, and its own photo is nearly done."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Message:
    """A request, or one of the messages that answer it: `begun`, then `step`s, then what came of it."""

    kind: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    note: Mapping[str, Any] = field(default_factory=dict)

    def packed(self) -> bytes:
        """Pack it for the other end."""
        from crm_cli.bundle import bundled

        return bundled(self.tensors, {"kind": self.kind, "note": self.note})

    @classmethod
    def unpacked(cls, data: bytes) -> Message:
        """Read what the other end has packed."""
        from crm_cli.bundle import unbundled

        tensors, about = unbundled(data)
        return cls(kind=about["kind"], tensors=tensors, note=about["note"])


class LaneFailure(Exception):
    """A surprise in the lane, whose state is unknown from then on."""

    def __init__(self, words: str, *, kind: ErrorClass, code: str, trace: str) -> None:
        super().__init__(words)
        self.kind: ErrorClass = kind
        self.code = code
        self.trace = trace


class Networks(Protocol):
    """What a lane has on its accelerator."""

    @property
    def place(self) -> Place:
        """Where and in what they calculate."""
        ...

    @property
    def takes_turns(self) -> bool:
        """Whether not all of them are in memory at a time, so that going to and fro between them costs."""
        ...

    def imagine(self, seed: int, cutout: Cutout, report_step: Progress) -> SixViews:
        """Draw what a photo does not show."""
        ...

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, PlaneField]:
        """The surface of the networks' field. digest: of the photo. Raises PhotoError where it has none."""
        ...


class Lane:
    """A worker's end of the line to an accelerator."""

    def __init__(self, connection: Connection, tell: Callable[[Whereabouts], None]) -> None:
        """tell: called with where a request is, so that deadlines need not count the wait for others."""
        self._connection = connection
        self._tell = tell
        self._place: Place | None = None
        self._imagined: SixViews | None = None
        self.waited_s = 0.0
        """How long requests have waited for others, in all."""

    @property
    def place(self) -> Place:
        """Where the networks calculate, once they have been asked for something."""
        assert self._place is not None
        return self._place

    def imagine(self, seed: int, cutout: Cutout, report_step: Progress) -> SixViews:
        """Draw what a photo does not show."""
        note = {"seed": seed, "digest": cutout.digest, "crop": asdict(cutout.crop)}
        answer = self._ask("imagine", {"rgb": cutout.rgb, "alpha": cutout.alpha}, note, report_step)
        self._imagined = SixViews(**answer.tensors)
        return self._imagined

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, LaneField]:
        """The surface of the networks' field; PhotoError where it has none."""
        # What it has imagined a moment ago it still has.
        planes = {} if views is self._imagined else _planes(views)
        answer = self._ask("draw", planes, {"seed": seed, "digest": digest})
        mesh = Mesh(**{name: tensor.numpy() for name, tensor in answer.tensors.items()})
        return mesh, LaneField(self, has_hull=answer.note["has_hull"])

    def dress(self, views: SixViews, trust: Tensor) -> None:
        """Let other views colour what was drawn last; see `PlaneField.seen_as`."""
        self._ask("dress", {**_planes(views), "trust": trust})

    def colour(self, points: Tensor) -> Tensor:
        """Colours [N 3] of what was drawn last, at points [N 3]."""
        return self._ask("colour", {"points": points}).tensors["colours"]

    def _ask(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        note: Mapping[str, Any] | None = None,
        report_step: Progress = lambda done, of: None,
    ) -> Message:
        asked = time.perf_counter()
        self._tell("asked")
        self._send(Message(kind=kind, tensors=tensors, note=note or {}))
        while True:
            answer = self._receive()
            match answer.kind:
                case "begun":
                    self.waited_s += time.perf_counter() - asked
                    self._place = Place(**answer.note["place"])
                    self._tell("begun")
                case "step":
                    report_step(answer.note["done"], answer.note["of"])
                case "refused":
                    self._tell("answered")
                    raise retold(answer.note)
                case "failed":
                    raise LaneFailure(**answer.note)
                case _:
                    self._tell("answered")
                    return answer

    def _send(self, request: Message) -> None:
        try:
            self._connection.send_bytes(request.packed())
        except OSError:
            _await_the_end()

    def _receive(self) -> Message:
        try:
            return Message.unpacked(self._connection.recv_bytes())
        except (EOFError, OSError):
            _await_the_end()


def _await_the_end() -> NoReturn:
    """Wait to be ended, as all workers are whose lane is gone: who is to blame, their parent knows alone."""
    while True:
        time.sleep(FOR_EVER_S)


class LaneField:
    """The colours of what a lane has drawn last."""

    def __init__(self, lane: Lane, *, has_hull: bool) -> None:
        self.has_hull = has_hull
        self._lane = lane

    def seen_as(self, views: SixViews, *, trust: Tensor) -> LaneField:
        """The same shape, painted by these views; see `PlaneField.seen_as`."""
        if self.has_hull:
            self._lane.dress(views, trust)
        return self

    def colour(self, points: Tensor) -> Tensor:
        """Colours [N 3] in [0, 1] at points [N 3]."""
        return self._lane.colour(points)


class Session:
    """What a lane does for one worker."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._imagined: SixViews | None = None
        self._field: PlaneField | None = None

    def begun(self) -> Message:
        """Word that a request has its turn, and where: a photo of which nothing can be drawn tells it too."""
        return Message(kind="begun", note={"place": asdict(self._networks.place)})

    def answer(self, request: Message, report_step: Progress) -> Message:
        """Do what is asked. Raises CrmError where it cannot be done; what else is raised is a surprise."""
        import torch

        tensors, note = dict(request.tensors), request.note
        match request.kind:
            case "imagine":
                cutout = Cutout(
                    rgb=tensors["rgb"],
                    alpha=tensors["alpha"],
                    crop=Crop(**note["crop"]),
                    photo=PurePosixPath(),
                    digest=note["digest"],
                    matting="",
                )
                self._imagined = self._networks.imagine(note["seed"], cutout, report_step)
                return Message(kind="views", tensors=_planes(self._imagined))
            case "draw":
                self._field = None  # a failed one has none
                views = SixViews(**tensors) if tensors else self._imagined
                assert views is not None
                mesh, self._field = self._networks.draw(note["seed"], views, note["digest"])
                arrays = {"vertices": torch.from_numpy(mesh.vertices), "faces": torch.from_numpy(mesh.faces)}
                return Message(kind="surface", tensors=arrays, note={"has_hull": self._field.has_hull})
            case "dress":
                assert self._field is not None
                trust = tensors.pop("trust")
                self._field = self._field.seen_as(SixViews(**tensors), trust=trust)
                return Message(kind="dressed")
            case "colour":
                assert self._field is not None
                with torch.inference_mode():
                    colours = self._field.colour(tensors["points"].to(self._field.device))
                return Message(kind="colours", tensors={"colours": colours.cpu()})
        raise ValueError(f"nobody asks a lane to {request.kind}")


def _planes(views: SixViews) -> dict[str, Tensor]:
    return {"rgb": views.rgb, "ccm": views.ccm, "alpha": views.alpha}


__all__ = ["SHORT", "Lane", "LaneFailure", "LaneField", "Message", "Networks", "Session", "Whereabouts"]
