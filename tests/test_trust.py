"""A bundle is a program: whose runs here, who is asked, and what runs nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from odd_bundles import copy_of, rewrite
from test_bundle import HOST, write

from minicpm_mlc import Engine, cli
from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle import trust as trust_module
from minicpm_mlc.bundle.host import this_host
from minicpm_mlc.bundle.manifest import manifest_sha256, read_bundle
from minicpm_mlc.bundle.trust import is_trusted, trust, trusted_folder
from minicpm_mlc.cli import trust as cli_trust
from minicpm_mlc.runtime_py.admission import admit
from minicpm_mlc.targets.link import PLATFORMS, link

CONSTRUCTOR = """
int creat(const char *path, unsigned mode);
__attribute__((constructor)) static void run(void) {{ creat("{marker}", 0600); }}
"""


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has trusted nothing yet, in a process that was told nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust_module, "_allowed", set())


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", no_home)


@pytest.fixture
def bundle(tiny_bundle, tmp_path: Path) -> Path:
    """A bundle that runs on this machine and was compiled by somebody else."""
    folder = copy_of(tiny_bundle("MiniCPM4-0.5B").path, tmp_path / "odd")
    rewrite(folder)
    return folder


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli.main, list(arguments), **options)


def forget_this_process() -> None:
    trust_module._allowed.clear()


# ---- the engine


def test_rob_20_a_bundle_from_elsewhere_is_refused_with_the_ways_to_run_it(bundle: Path) -> None:
    with pytest.raises(BundleError, match="was not compiled here, and a bundle is a program") as no:
        Engine(bundle, context=64)
    for way in ("--trust", "--sha256", manifest_sha256(bundle), "trust=True", "sha256=..."):
        assert way in str(no.value)
    assert not trusted_folder().exists()


def test_rob_20_what_was_compiled_here_just_runs(tmp_path: Path) -> None:
    folder = write(tmp_path / "b")
    assert read_bundle(folder, host=HOST, tvm="1.2.3").manifest.name == "tiny"
    forget_this_process()
    assert read_bundle(folder, host=HOST, tvm="1.2.3").manifest.name == "tiny"
    rewrite(folder, lambda manifest: manifest.update(name="another"))
    with pytest.raises(BundleError, match="was not compiled here"):
        read_bundle(folder, host=HOST, tvm="1.2.3")


def test_rob_20_an_engine_runs_what_its_caller_pins_or_trusts(bundle: Path) -> None:
    right = manifest_sha256(bundle)
    with pytest.raises(BundleError, match=f"SHA-256 {right}, expected {'0' * 64}"):
        Engine(bundle, context=64, sha256="0" * 64)
    assert Engine(bundle, context=64, sha256=right.upper()).vocab_size
    forget_this_process()
    assert not is_trusted(right)  # a pin holds for its process
    assert Engine(bundle, context=64, sha256=["0" * 64, right]).vocab_size
    forget_this_process()
    assert Engine(bundle, context=64, trust=True).vocab_size
    forget_this_process()
    assert Engine(bundle, context=64).vocab_size


@pytest.mark.parametrize("pin", ["", [], ["not a hash"]])
def test_rob_20_a_pin_that_is_no_hash_lets_nothing_run(bundle: Path, pin: Any) -> None:
    admit(bundle, trusted=True)
    with pytest.raises(BundleError, match="it is another bundle, or was changed"):
        Engine(bundle, context=64, sha256=pin)


def test_rob_20_a_pinned_bundle_that_is_trusted_must_still_be_the_one(bundle: Path) -> None:
    admit(bundle, trusted=True)
    with pytest.raises(BundleError, match="expected 0000"):
        Engine(bundle, context=64, sha256="0" * 64)


def test_rob_20_a_draft_bundle_is_a_program_too(bundle: Path, tmp_path: Path) -> None:
    other = copy_of(bundle, tmp_path / "draft")
    (other / "manifest.json").write_text(f" {(bundle / 'manifest.json').read_text()}")
    trust(manifest_sha256(bundle))
    with pytest.raises(BundleError, match="draft was not compiled here"):
        Engine(bundle, context=64, draft=other)


def test_rob_20_without_a_home_only_trust_and_a_pin_are_left(bundle: Path, homeless: None) -> None:
    with pytest.raises(BundleError, match="was not compiled here"):
        Engine(bundle, context=64)
    assert Engine(bundle, context=64, trust=True).vocab_size
    forget_this_process()
    with pytest.raises(BundleError, match="was not compiled here"):
        Engine(bundle, context=64)


def test_rob_20_processes_that_trust_at_once_do_not_meet() -> None:
    hashes = [f"{number:064x}" for number in range(64)]
    threads = [threading.Thread(target=trust, args=(each,)) for each in [*hashes, *hashes]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    forget_this_process()
    assert all(map(is_trusted, hashes)) and not is_trusted("f" * 64)
    assert len(list(trusted_folder().iterdir())) == len(hashes)
    (trusted_folder() / hashes[0]).unlink()
    assert not is_trusted(hashes[0])


def test_rob_20_a_state_folder_that_is_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    trust("a" * 64)
    assert is_trusted("a" * 64)
    forget_this_process()
    assert not is_trusted("a" * 64)


# ---- the command line


def test_rob_20_a_command_asks_once_in_a_terminal(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_trust, "_at_a_terminal", lambda: True)
    no = run("verify", str(bundle), input="n\n")
    assert no.exit_code == 1 and "Do you trust its maker? [y/N]" in no.stderr
    assert "was not compiled here" in no.stderr.splitlines()[-1]
    yes = run("verify", str(bundle), input="y\n")
    assert (yes.exit_code, "trust its maker" in yes.stderr) == (0, True)
    forget_this_process()
    again = run("verify", str(bundle), input="")
    assert (again.exit_code, "trust its maker" in again.stderr) == (0, False)


@pytest.mark.parametrize(
    "command", ["chat --prompt Hi", "bench", "verify", "trace --prompt-file -"]
)
def test_rob_20_a_command_without_a_terminal_refuses_and_takes_a_pin(
    bundle: Path, command: str
) -> None:
    verb, *options = command.split()
    refused = run(verb, str(bundle), *options, input="Hi")
    assert refused.exit_code == 1 and "was not compiled here" in refused.stderr
    wrong = run(verb, str(bundle), *options, "--sha256", "0" * 64, input="Hi")
    assert wrong.exit_code == 1 and "it is another bundle, or was changed" in wrong.stderr


def test_rob_20_a_pin_and_trust_let_a_command_run(bundle: Path) -> None:
    right = manifest_sha256(bundle)
    assert run("verify", str(bundle), "--sha256", right).exit_code == 0
    forget_this_process()
    assert run("verify", str(bundle)).exit_code == 1
    assert run("verify", str(bundle), "--trust").exit_code == 0
    forget_this_process()
    assert run("verify", str(bundle)).exit_code == 0


def test_rob_20_inspect_says_that_a_bundle_is_a_program(bundle: Path) -> None:
    shown = run("inspect", str(bundle)).stdout
    assert "it runs with your rights" in shown
    assert f"manifest SHA-256         {manifest_sha256(bundle)}" in shown


@pytest.fixture
def trap(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle whose library leaves a file when it is loaded, and that file."""
    marker, source = tmp_path / "ran", tmp_path / "trap.c"
    source.write_text(CONSTRUCTOR.format(marker=marker))
    link(PLATFORMS[this_host().machine], str(bundle / "model.so"), [str(source)])
    rewrite(bundle)
    return bundle, marker


def test_rob_20_inspect_and_files_only_run_nothing(trap: tuple[Path, Path]) -> None:
    bundle, marker = trap
    shown = run("inspect", str(bundle))
    assert (shown.exit_code, "a program" in shown.stdout) == (0, True)
    files = run("verify", str(bundle), "--files-only")
    assert files.exit_code == 0 and "nothing was run" in files.stdout
    assert manifest_sha256(bundle) in files.stdout
    there = run("verify", str(bundle), "--files-only", "--rpc", "there:9090")
    assert there.exit_code == 2 and "--files-only runs nothing" in there.stderr
    for command in (["verify", str(bundle)], ["chat", str(bundle), "--prompt", "Hi"]):
        assert run(*command).exit_code == 1
    assert not marker.exists()
    trusted = run("verify", str(bundle), "--trust")
    assert trusted.exit_code == 1 and "model.so does not load" in trusted.stderr
    assert marker.exists()  # the trap works


def test_rob_20_files_only_finds_a_changed_file(bundle: Path) -> None:
    shard = bundle / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    result = run("verify", str(bundle), "--files-only")
    assert result.exit_code == 1 and "params_shard_0.bin is damaged" in result.stderr
    assert not trusted_folder().exists()
