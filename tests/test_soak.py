"""The soak and the kill campaign (bench/), bounded; and what makes them fail."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import kills
import pytest
import soak
from checkpoints import tiny_config, write_checkpoint

from minicpm_mlc import Engine

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
@pytest.mark.parametrize("seconds", [8, pytest.param(600, marks=pytest.mark.campaign)])
def test_calls_of_every_kind_leave_files_and_threads_as_they_were(
    demo_bundle: Path, seconds: int
) -> None:
    with Engine(demo_bundle, context=1024, threads=1) as engine:
        running = soak.Soak(engine, random.Random(0))
        for call in dict.fromkeys(soak.CALLS):
            call(running)
        seen = list(soak.soak(engine, seconds, seed=1, every=0.2))
    found = soak.drift(seen)
    assert found["files"] <= 0 and found["threads"] <= 0
    # results are kept until there are some MB of them: memory goes up and down
    assert seen[-1].resident - seen[0].resident <= 48 << 20
    assert found["resident"] <= soak.ALLOWED_DRIFT or seconds < 60, found


def samples(resident: list[int], **other: int) -> list[soak.Sample]:
    fields = {"seconds": 0, "calls": 0, "files": 5, "threads": 2} | other
    return [soak.Sample(**fields, resident=value) for value in resident]


def test_drift_is_of_the_last_tenth_against_the_second() -> None:
    flat = samples([50] * 10 + [100] * 90)
    assert soak.drift(flat) == {"resident": 0, "files": 0, "threads": 0}
    assert soak.steady(soak.drift(flat))
    assert soak.steady(soak.drift(samples([100, 150] * 50)))
    grown = soak.drift(samples(list(range(1000, 1100))))
    assert grown["resident"] == pytest.approx(80 / 1010) and not soak.steady(grown)
    for name in ("files", "threads"):
        more = samples([50] * 20) + samples([50] * 10, **{name: 9})
        assert not soak.steady(soak.drift(more))


def test_another_answer_to_the_same_question_ends_the_soak() -> None:
    texts = iter("abcdefghijklmnop")
    engine = SimpleNamespace(
        gears=SimpleNamespace(attention="auto"),
        drafters={},
        manifest=SimpleNamespace(activations="int8"),
        chat=lambda *_, **__: next(texts),
    )
    running = soak.Soak(engine, random.Random(0))
    with pytest.raises(soak.SoakError, match=r"seed [012], auto, \w+: "):
        for _ in range(16):
            running.chat()


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> dict[str, object]:
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(checkpoint, tiny_config("MiniCPM5-1B"))
    options = ["--attention", "dense", "--context", "256"]
    return {one.name: one for one in kills.operations(checkpoint, demo_bundle, options)}


NAMES = ["compile", "package", "save", "upload"]


@linux
@pytest.mark.parametrize("points", [1, pytest.param(20, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", NAMES)
def test_a_kill_leaves_the_old_the_new_or_nothing(operations, name: str, points: int) -> None:
    assert kills.campaign(operations[name], points, random.Random(name))["points"] == points


@linux
@pytest.mark.parametrize("points", [1, pytest.param(20, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_leaves_nothing(operations, name: str, points: int) -> None:
    if why := kills.no_small_disks():
        pytest.skip(why)
    assert kills.full_disk(operations[name], points, random.Random(name))["full disks"] > 0


def test_a_damaged_result_ends_the_campaign(tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        script = f"from time import sleep; p = open({str(folder / 'a')!r}, 'w'); p.write('x'); "
        return [sys.executable, "-c", script + "p.flush(); sleep(0.4); p.write('y'); p.close()"]

    def whole(folder: Path) -> str | None:
        return (folder / "a").read_text() if (folder / "a").exists() else None

    halves = kills.Operation("halves", command, whole, ("a",))
    with pytest.raises(kills.KillError, match="halves left another result"):
        kills.campaign(halves, 4, random.Random(1))
