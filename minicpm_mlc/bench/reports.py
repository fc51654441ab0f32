"""Several reports of one benchmark, printed one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class Printed(Protocol):
    """A report, in the forms that it is printed in."""

    def plain(self) -> str: ...
    def markdown(self) -> str: ...
    def json(self) -> str: ...


@dataclass(frozen=True)
class Reports:
    """All of `reports` as one; their names are the keys of its JSON."""

    reports: Mapping[str, Printed]

    def plain(self) -> str:
        """The reports for a terminal, an empty line between them."""
        return "\n\n".join(report.plain() for report in self.reports.values())

    def markdown(self) -> str:
        """The reports as Markdown."""
        return "\n\n".join(report.markdown() for report in self.reports.values())

    def json(self) -> str:
        """One JSON object with the reports by name."""
        return json.dumps(
            {name: json.loads(report.json()) for name, report in self.reports.items()}, indent=2
        )
