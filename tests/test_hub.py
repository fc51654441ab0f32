"""Downloads from stand-ins for both hubs on loopback: what is asked for, what is kept, and what
goes wrong.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hub_server import COMMIT, Stand, serve

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.progress import no_progress
from minicpm_mlc.cli import main
from minicpm_mlc.hub import huggingface, pull, records, transfer
from minicpm_mlc.hub.names import parse_name

TENTH = 4096
WEIGHTS = random.Random(0).randbytes(10 * TENTH)
FILES = {
    "config.json": b'{"hidden_size": 64}',
    "tokenizer.json": b"{}" * 1000,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\0" * 3 * TENTH,
    "modeling_minicpm.py": b"raise SystemExit",
    "README.md": b"# tiny",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}
NAMES = {"hf": "openbmb/tiny", "modelscope": "modelscope:openbmb/tiny"}


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A repository on both hubs, which this process finds by the variables that users set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface, "LARGE", TENTH)
    monkeypatch.setattr(transfer, "PAUSES", (0, 0))
    with serve(Stand(dict(FILES))) as served:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.url)
        use_huggingface(monkeypatch, served.url, tmp_path / "hf")
        yield served


def use_huggingface(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do when huggingface_hub is imported."""
    from huggingface_hub import constants, file_download

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The repository's name on each hub whose library is here."""
    if request.param == "modelscope":
        pytest.importorskip("modelscope_hub")
        from modelscope_hub import _download

        monkeypatch.setattr(_download, "DOWNLOAD_RETRY_TIMES", 0)
        monkeypatch.setattr(_download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    return NAMES[request.param]


def run(*args: str) -> Result:
    result = CliRunner().invoke(main, list(args), prog_name="minicpm-mlc")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def pulled(name: str) -> pull.Pulled:
    return pull.pull_source(name, no_progress, lambda note: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_what_is_needed_comes_and_comes_once(stand: Stand, name: str) -> None:
    steps: list[tuple[str, int, int]] = []
    first = pull.pull_source(name, lambda *step: steps.append(step), print)
    size = sum(len(FILES[path]) for path in NEEDED)
    assert contents(first.path) == {path: FILES[path] for path in NEEDED}
    assert first.fetched == size and steps[-1] == ("download", size, size)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert not any("pytorch_model" in each or ".py" in each for each in stand.asked)
    stand.asked.clear()
    again = pulled(name)
    assert (again.path, again.fetched) == (first.path, 0)
    assert not [each for each in stand.asked if "/cdn/" in each or "config.json" in each]


def test_a_record_is_kept_of_what_came(stand: Stand, name: str) -> None:
    path = pulled(name).path
    parsed = parse_name(name)
    assert parsed
    record = records.find(parsed)
    assert record and record.is_whole and record.path == path
    assert (set(record.files), set(record.fetched)) == (NEEDED, NEEDED)
    assert record.revision == (COMMIT if parsed.hub == "hf" else "master")
    (path / "config.json").unlink()
    assert not record.is_whole


def test_a_connection_cut_at_every_tenth(stand: Stand) -> None:
    stand.cut_every = TENTH
    assert (pulled(NAMES["hf"]).path / "model.safetensors").read_bytes() == WEIGHTS
    asked = [each for each in stand.asked if each.endswith("/cdn/model.safetensors")]
    starts = [int(each.split()[1].partition("-")[0]) for each in asked if each.startswith("GET")]
    assert starts == [TENTH * i for i in range(10)]


def test_a_download_goes_on_in_another_run(stand: Stand, name: str) -> None:
    """A run that is killed leaves what it has; so does one whose hub goes away for good."""
    stand.cut_every = TENTH
    for _ in range(10 if name.startswith("modelscope") else 1):
        try:
            path = pulled(name).path
        except HubError as error:
            assert "the same command goes on where this one ended" in str(error)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    asked = [each for each in stand.asked if each.endswith("/cdn/model.safetensors")]
    assert len([each for each in asked if each.startswith("GET")]) == 10


def test_a_killed_download_leaves_its_beginning(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(counter: transfer.Counter, count: int) -> None:
        if count:
            raise KeyboardInterrupt

    stand.cut_every = TENTH
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer.Counter, "__call__", interrupt)
        pulled(NAMES["hf"])
    stand.asked.clear()
    assert (pulled(NAMES["hf"]).path / "model.safetensors").read_bytes() == WEIGHTS
    begun = next(each for each in stand.asked if "/cdn/model" in each).split()[1]
    assert int(begun.partition("-")[0]) > 0


def test_a_server_without_ranges_starts_again(stand: Stand) -> None:
    folder = Path(huggingface.HuggingFace().cache) / "models--openbmb--tiny" / "blobs"
    folder.mkdir(parents=True)
    from hub_server import sha256

    (folder / f"{sha256(WEIGHTS)}.incomplete").write_bytes(b"x" * TENTH)
    stand.ranges = False
    assert (pulled(NAMES["hf"]).path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", sorted(NEEDED))
def test_wrong_bytes_are_refused_and_fetched_again(stand: Stand, name: str, path: str) -> None:
    stand.wrong = {path}
    with pytest.raises(HubError, match=rf"{path}.*(damaged on the way).*fetches it again"):
        pulled(name)
    stand.wrong = set()
    assert contents(pulled(name).path)[path] == FILES[path]


def test_a_file_without_end_does_not_fill_the_disk(stand: Stand) -> None:
    stand.more = 1 << 26
    with pytest.raises(HubError, match=r"model\.safetensors came with .* bytes, expected 40,960"):
        pulled(NAMES["hf"])
    kept = [path for path in huggingface.HuggingFace().cache.rglob("*") if path.is_file()]
    assert not [path for path in kept if path.stat().st_size > 1 << 16]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "log ?in"),
        (403, r"\(403\).*login"),
        (404, "has no openbmb/tiny.*spelling"),
        (429, r"\(429\)"),
        (500, "later"),
    ],
)
def test_refusals_name_the_next_command(stand: Stand, name: str, status: int, said: str) -> None:
    stand.status = status
    stand.retry_after = "0"
    with pytest.raises(HubError, match=said):
        pulled(name)


@pytest.mark.parametrize("page", [b"<html>log in", b"[]", b'{"siblings": 3}', b""])
def test_answers_of_something_else_are_told(stand: Stand, name: str, page: bytes) -> None:
    stand.page = page
    with pytest.raises(HubError, match=r"answers what no hub does|no weights that are read"):
        pulled(name)


def test_a_rate_limit_says_how_long_to_wait(stand: Stand) -> None:
    stand.status, stand.retry_after = 429, "37"
    with pytest.raises(HubError, match="type the same command in 37 seconds"):
        pulled(NAMES["hf"])


def test_a_token_stays_with_the_hub(
    stand: Stand, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.token = "secret"
    with pytest.raises(HubError, match="log"):
        pulled(name)
    variable = "MODELSCOPE_API_TOKEN" if name.startswith("modelscope") else "HF_TOKEN"
    monkeypatch.setenv(variable, "secret")
    assert contents(pulled(name).path)["config.json"] == FILES["config.json"]
    assert stand.tokens_at_files == []


def test_without_the_hub_what_came_before_is_used(stand: Stand, name: str, tmp_path: Path) -> None:
    before = pulled(name).path
    stand.status = 500  # not reached
    notes: list[str] = []
    gone = "http://127.0.0.1:9"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELSCOPE_ENDPOINT", gone)
        patch.setattr("time.sleep", lambda seconds: None)  # between the library's tries
        use_huggingface(patch, gone, before.parents[2])
        again = pull.pull_source(name, no_progress, notes.append)
        assert again.path == before
        assert f"{gone}" in notes[0] and "what was downloaded before is used" in notes[0]
        next((tmp_path / "cache").rglob("pulled/*.json")).unlink()
        again = pull.pull_source(name, no_progress, notes.append)  # by the hub's cache alone
        assert (again.path, len(notes)) == (before, 2)
        with pytest.raises(HubError, match=f"{gone}.* was not downloaded before; see the network"):
            pulled(name.replace("tiny", "other"))


def test_no_file_comes_where_the_disk_is_too_small(
    stand: Stand, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "SPARE", 1 << 60)
    with pytest.raises(HubError, match=r"needs 42.0 KiB and the disk of .* free; .*HF_HUB_CACHE"):
        pulled(name)
    assert not [each for each in stand.asked if "/cdn/" in each]


def test_one_file_of_a_gguf_repository(stand: Stand, name: str) -> None:
    stand.files = {f"m-{q}.gguf": q.encode() * 5000 for q in ("Q4_K_M", "Q8_0")}
    assert pulled(name).path.name == "m-Q4_K_M.gguf"
    assert pulled(f"{name}:Q8_0").path.read_bytes() == b"Q8_0" * 5000


def test_adapters_may_have_a_weight(stand: Stand, tmp_path: Path) -> None:
    stand.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    folder = pulled(NAMES["hf"]).path
    assert set(contents(folder)) == set(stand.files)
    for given, path in {
        NAMES["hf"]: f"{folder}",
        f"{NAMES['hf']}:0.5": f"{folder}:0.5",
        f"{tmp_path}:2": f"{tmp_path}:2",
        f"{tmp_path}": f"{tmp_path}",
    }.items():
        assert pull.local_adapter(given, no_progress, print) == path


def test_pull_tells_where_it_is(stand: Stand) -> None:
    result = run("pull", NAMES["hf"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("openbmb/tiny: 42.0 KiB in ")
    assert "download:" in result.stderr
    refused = run("pull", "no-such-model")
    assert refused.exit_code == 1
    assert "neither here nor a name: give [hf:|modelscope:]ORG/NAME" in refused.stderr


def test_the_variables_that_users_set_are_those_of_the_library(
    stand: Stand, tmp_path: Path
) -> None:
    """HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE as a process reads them when it starts."""
    cache = tmp_path / "other"
    given = {"HF_ENDPOINT": stand.url, "HF_HUB_CACHE": str(cache), "HF_TOKEN": "none"}
    command = [sys.executable, "-m", "minicpm_mlc", "pull", NAMES["hf"]]
    environment = {**os.environ, **given, "HF_HUB_DISABLE_XET": "1"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert str(cache / "models--openbmb--tiny" / "snapshots" / COMMIT) in first.stdout
    stand.asked.clear()
    environment |= {"HF_HUB_OFFLINE": "1"}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "HF_HUB_OFFLINE is set" in second.stderr and stand.asked == []


@pytest.mark.parametrize(
    ("name", "module", "pip"),
    [
        (NAMES["hf"], "huggingface_hub", r"pip install 'minicpm-mlc\[hub\]'"),
        (NAMES["modelscope"], "modelscope_hub", r"pip install 'minicpm-mlc\[modelscope\]'"),
    ],
)
def test_a_missing_library_is_told_with_the_pip_command(
    name: str, module: str, pip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HubError, match=f"not installed: {pip}"):
        pulled(name)


def test_hubs_are_imported_late() -> None:
    assert importlib.util.find_spec("huggingface_hub")
    code = (
        "import sys; from minicpm_mlc.cli import main; main(['pull','--help'], "
        "standalone_mode=False); "
        "sys.exit(any(m.startswith(('huggingface_hub', 'modelscope')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
