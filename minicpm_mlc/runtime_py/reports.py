"""Several reports of one benchmark, printed one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Printed(Protocol):
    def plain(self) -> str: ...
    def markdown(self) -> str: ...
    def json(self) -> str: ...


@dataclass(frozen=True)
class Reports:
    """All of `reports` as one."""

    reports: Sequence[Printed]

    def plain(self) -> str:
        return "\n\n".join(report.plain() for report in self.reports)

    def markdown(self) -> str:
        return "\n\n".join(report.markdown() for report in self.reports)

    def json(self) -> str:
        return json.dumps([json.loads(report.json()) for report in self.reports], indent=2)
