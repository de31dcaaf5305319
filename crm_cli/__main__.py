"""`crm`, and `python -m crm_cli`: loads the command line, and lets an interrupt end that without a word."""

import signal


def main() -> None:
    """Run the command line."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:  # and not ignored, as under nohup
        # Python's own way is a traceback through whatever was just being imported.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from crm_cli.cli.app import main as run

    if heard is signal.default_int_handler:
        signal.signal(signal.SIGINT, heard)
    run()


if __name__ == "__main__":
    main()
