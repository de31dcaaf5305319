"""The process that has an accelerator's networks, and serves the workers that have none.

It does one thing at a time: an accelerator does two no faster together than one after the other. What is
short goes first, and between two steps of what is long, so that photos which are nearly done do not wait
for others to be imagined; but not where networks take turns in memory, and each would have to be fetched
again. The parent speaks to it over a socket, in length-prefixed JSON, with descriptors beside it:

    parent → lane   {"open": Launch}, then {"worker": number} for each worker, with the lane's end of the pair
                    of sockets that joins them; end of file means: leave
    lane → parent   {"ready": true} once; {"begun": number} before anything is done for a worker, and again
                    where it goes on after something short; {"done": number, "peak_bytes": the most memory
                    held so far} after; at any time {"refused": …}, its last word

What it says to the parent is how the parent knows whose request a lane died of.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any, BinaryIO, Protocol

from crm_cli.errors import CrmError, told
from crm_cli.lane import SHORT, Message, Session
from crm_cli.preset import Preset
from crm_cli.run.wire import Unframer, frame, from_plain
from crm_cli.run.worker import Launch, Surprise, named, settle
from crm_cli.toolbox import peak_memory

MOST_BYTES = 1 << 16
"""Read of the parent at once."""


class Desk(Protocol):
    """The networks of one accelerator; see `lane.Networks` for what else they do."""

    @property
    def takes_turns(self) -> bool:
        """Whether not all networks are in memory at a time."""

    @classmethod
    def open(cls, preset: Preset, *, device: str, threads: int, precision: str, is_frugal: bool) -> Any:
        """Load them."""


class _Guest:
    """A worker, as the lane sees it."""

    def __init__(self, number: int, connection: Connection, session: Session) -> None:
        self.number = number
        self.connection = connection
        self.session = session
        # One for each: a worker that does not read keeps nobody else waiting, and messages in their order.
        self._post = ThreadPoolExecutor(1)

    def tell(self, message: Message) -> None:
        """Answer, while the lane goes on; one that has gone meanwhile is told nothing."""
        with contextlib.suppress(RuntimeError):
            self._post.submit(self._send, message)

    def forget(self) -> None:
        """Let it go, once nothing is being written to it any more."""
        self._post.submit(self.connection.close)
        self._post.shutdown(wait=False)

    def _send(self, message: Message) -> None:
        # One that has died meanwhile is noticed where it would ask again.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message.packed())


def main() -> None:
    """Serve until the parent closes its end."""
    commands, reports = settle(int(sys.argv[-1]))
    with socket.socket(fileno=os.dup(commands.fileno())) as control:
        Server(control, reports).run()


class Server:
    """Opens a desk, and serves whoever the parent sends.

    Requests are read and answers written by threads beside the one that works: an accelerator does not wait
    for megabytes to be copied.
    """

    def __init__(self, control: socket.socket, reports: BinaryIO) -> None:
        self._control = control
        self._reports = reports
        self._unframer = Unframer()
        self._ends: deque[int] = deque()
        self._guests: dict[Connection, _Guest] = {}
        self._waiting: list[tuple[_Guest, Message]] = []
        self._has_changed = threading.Condition()
        """Guards what waits, and whether anything still may."""
        self._is_over = False
        self._is_spoilt = False
        """Whether a surprise has left the networks in a state that nobody knows."""
        self._may_part = False
        """Whether something short may come between the steps of something long."""
        self._device = "cpu"

    def run(self) -> None:
        """Serve until the parent closes its end."""
        commands = self._hear_parent()
        while not commands:
            if commands is None:
                return
            commands = self._hear_parent()
        launch = from_plain(Launch, commands.pop(0)["open"])
        factory: type[Desk] = named(launch.desk)
        try:
            desk = factory.open(
                launch.preset,
                device=launch.device,
                threads=launch.threads,
                precision=launch.precision,
                is_frugal=launch.is_frugal,
            )
        except CrmError as error:
            self._report(refused=told(error))
            return
        self._device, self._may_part = launch.device, not desk.takes_turns
        self._report(ready=True)
        threading.Thread(target=self._listen, args=(desk, commands), daemon=True).start()
        while not self._is_spoilt and (turn := self._next()) is not None:
            self._serve(*turn)
        # Whoever asks after a surprise is not to get a wrong answer, nor the blame.
        with self._has_changed:
            self._has_changed.wait_for(lambda: self._is_over)

    def _listen(self, desk: Any, commands: list[dict[str, Any]] | None) -> None:
        """Take in workers and what they ask, until the parent has gone."""
        try:
            while commands is not None:
                for command in commands:
                    self._admit(from_plain(int, command["worker"]), Session(desk))
                commands = []
                for source in wait([self._control, *self._guests]):
                    if source is self._control:
                        commands = self._hear_parent()
                    else:
                        self._hear(self._guests[source])  # type: ignore[index]
        finally:
            # Also after a surprise: a lane that hears nobody has to go.
            with self._has_changed:
                self._is_over = True
                self._has_changed.notify_all()

    def _admit(self, number: int, session: Session) -> None:
        """Let a worker ask from now on, whose end of the line has come with its number or before."""
        connection = Connection(self._ends.popleft())
        self._guests[connection] = _Guest(number, connection, session)

    def _hear_parent(self) -> list[dict[str, Any]] | None:
        """Read what commands are whole by now; None where the parent has gone."""
        data, ends, _, _ = socket.recv_fds(self._control, MOST_BYTES, 16)
        self._ends += ends
        return list(self._unframer.feed(data)) if data else None

    def _hear(self, guest: _Guest) -> None:
        """Read a worker's request, or forget a worker that has gone."""
        try:
            request = Message.unpacked(guest.connection.recv_bytes())
        except (EOFError, OSError):
            del self._guests[guest.connection]
            guest.forget()
            with self._has_changed:
                self._waiting = [(other, request) for other, request in self._waiting if other is not guest]
            return
        with self._has_changed:
            self._waiting.append((guest, request))
            self._has_changed.notify_all()

    def _next(self) -> tuple[_Guest, Message] | None:
        """What is served next: the first short request, or else the first; None where the parent has gone."""
        with self._has_changed:
            self._has_changed.wait_for(lambda: self._waiting or self._is_over)
            return None if self._is_over else self._next_short() or self._waiting.pop(0)

    def _next_short(self) -> tuple[_Guest, Message] | None:
        """The first short request that waits, if one does. Asked with what waits guarded."""
        numbers = (number for number, (_, request) in enumerate(self._waiting) if request.kind in SHORT)
        number = next(numbers, None)
        return None if number is None else self._waiting.pop(number)

    def _serve(self, guest: _Guest, request: Message) -> None:
        """Do what one worker asks."""
        self._report(begun=guest.number)
        guest.tell(guest.session.begun())

        def report_step(done: int, of: int) -> None:
            guest.tell(Message(kind="step", note={"done": done, "of": of}))
            self._serve_between(guest)

        try:
            answer = guest.session.answer(request, report_step)
        except CrmError as error:
            answer = Message(kind="refused", note=told(error))
        # As in a worker: no list of what can go wrong in a library is ever complete.
        except Exception as error:
            if self._is_spoilt:
                return
            surprise, self._is_spoilt = Surprise.of(error), True
            note = {
                "words": surprise.words, "kind": surprise.kind, "code": surprise.code, "trace": surprise.trace
            }  # fmt: skip
            answer = Message(kind="failed", note=note)
        else:
            if self._is_spoilt:  # by something short, between two steps
                return
        self._report(done=guest.number, peak_bytes=peak_memory(self._device))
        guest.tell(answer)

    def _serve_between(self, longer: _Guest) -> None:
        """Serve what is short between two steps of what a worker has asked for."""
        while self._may_part and not self._is_spoilt:
            with self._has_changed:
                turn = self._next_short()
            if turn is None:
                return
            self._serve(*turn)
            self._report(begun=longer.number)

    def _report(self, **message: Any) -> None:
        self._reports.write(frame(message))
        self._reports.flush()
