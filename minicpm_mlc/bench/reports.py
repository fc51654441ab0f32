"""Several reports of one benchmark, printed one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class Printed(Protocol):
    """A report in the forms that a command prints."""

    def plain(self) -> str:
        """For a terminal."""
        ...

    def markdown(self) -> str:
        """As a Markdown table."""
        ...

    def json(self) -> str:
        """One JSON object."""
        ...


@dataclass(frozen=True)
class Reports:
    """All of `reports` as one; their names are the keys of its JSON."""

    reports: Mapping[str, Printed]

    def plain(self) -> str:
        """For a terminal."""
        return "\n\n".join(report.plain() for report in self.reports.values())

    def markdown(self) -> str:
        """As Markdown tables."""
        return "\n\n".join(report.markdown() for report in self.reports.values())

    def json(self) -> str:
        """One JSON object, the reports by their names."""
        return json.dumps(
            {name: json.loads(report.json()) for name, report in self.reports.items()}, indent=2
        )
