"""Help of a command with many flags: put together by what they are about, without rich's cost."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Sections(TyperCommand):
    """A command whose flags stand under the titles that their `rich_help_panel` gives."""

    # Typer has a click of its own, or the one that is installed: a question of its version.
    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each title, in the order in which titles first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
