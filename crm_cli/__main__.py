"""`crm`, and `python -m crm_cli`: loads the command line, and lets an interrupt end that without a word."""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # what typing says, without the time that importing it takes
if TYPE_CHECKING:
    from crm_cli.run.options import Engine


def main(engine: Engine | None = None) -> None:
    """Run the command line. engine: what converts photos; tests put fakes in its place."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:  # and not ignored, as under nohup
        # Python's own way is a traceback through whatever was just being imported.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from crm_cli.cli.app import main as run

    if heard is signal.default_int_handler:
        signal.signal(signal.SIGINT, heard)
    run(engine)


if __name__ == "__main__":
    main()
