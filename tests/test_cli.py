from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_config, write_checkpoint
from click.testing import CliRunner, Result
from fake_engine import FakeEngine

import minicpm_mlc.bench.decode
import minicpm_mlc.compile
import minicpm_mlc.runtime_py.device_check
import minicpm_mlc.runtime_py.engine
from minicpm_mlc.base import choices
from minicpm_mlc.base.errors import BundleError, CompileError, ContextError
from minicpm_mlc.base.progress import Bars
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.cli import main
from minicpm_mlc.inspect import machine_limits
from minicpm_mlc.runtime_py import memory

VERBS = [
    "run",
    "demo",
    "pull",
    "compile",
    "chat",
    "serve",
    "inspect",
    "bench",
    "quality",
    "verify",
    "tune",
    "rpc-server",
    "package",
    "trace",
    "list",
    "rm",
    "frspec",
    "devices",
]


def run(*args: str, **options: Any) -> Result:
    result = CliRunner().invoke(main, list(args), prog_name="minicpm-mlc", **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that needn't be measured."""
    limits = Limits(2, 40e9, 500e9, 2000e9)
    monkeypatch.setattr(machine_limits, "machine_limits", lambda again: limits)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()

    def open_engine(bundle: str, **options: Any) -> FakeEngine:
        fake.opened = {"bundle": bundle, **options}
        return fake

    monkeypatch.setattr(minicpm_mlc.runtime_py.engine, "Engine", open_engine)
    monkeypatch.setattr(minicpm_mlc.runtime_py.device_check, "check_device", lambda engine: None)
    return fake


def test_help_imports_nothing_heavy() -> None:
    heavy = (
        "{'numpy', 'tvm', 'tvm_ffi', 'tokenizers', 'jinja2', 'rich', 'prompt_toolkit', "
        "'torch', 'safetensors'}"
    )
    code = (
        "import sys\nfrom minicpm_mlc.cli import main\n"
        f"for args in {[['--help'], *([verb, '--help'] for verb in VERBS)]}:\n"
        "    main(args, standalone_mode=False)\n"
        f"sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Example: minicpm-mlc") == len(VERBS)


def test_the_formats_that_kv_offers_are_those_that_exist() -> None:
    from minicpm_mlc.ops.formats.kv import KV_FORMATS

    assert choices.KV_NAMES == tuple(KV_FORMATS)


def test_the_devices_that_the_shell_completes_are_those_that_exist() -> None:
    from minicpm_mlc.targets import DEVICE_OPTIONS

    assert choices.DEVICES == tuple(DEVICE_OPTIONS)


def test_the_shell_completes_commands_devices_and_paths() -> None:
    def completed(typed: str, words: str) -> list[str]:
        env = {
            "_MINICPM_MLC_COMPLETE": "bash_complete",
            "COMP_WORDS": f"minicpm-mlc {words}{typed}",
        }
        return run(env=env | {"COMP_CWORD": str(len(words.split()) + 1)}).output.split()

    assert completed("de", "") == ["plain,demo", "plain,devices"]
    assert completed("ma", "compile X --device ") == ["plain,macos-arm64"]
    for verb in ("compile", "run", "chat", "bench", "inspect"):
        assert completed("", f"{verb} ")[0].startswith("file,")


def test_the_demo_is_compiled_and_chatted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from minicpm_mlc.cli import demo

    seen: list[Any] = []
    monkeypatch.setattr(demo, "compile_and_chat", lambda source, **options: seen.append(source))
    assert run("demo", "--prompt", "Hi").exit_code == 0
    assert (Path(seen[0]) / "model.safetensors").is_file()
    monkeypatch.setattr(demo, "PLACES", (Path("/no/such/folder"),))
    assert "the demo model is not installed" in run("demo").stderr


def test_a_compiled_bundle_names_the_next_command(tmp_path: Path) -> None:
    from minicpm_mlc.bundle.host import this_host
    from minicpm_mlc.compile.result import CompileResult

    def told(triple: str, written: bool = True, device: str = "cpu") -> str:
        target = MANIFEST.target | {"triple": triple, "device": device}
        made = replace(MANIFEST, target=target)
        return CompileResult.of(Path("a b"), written, made, [], None).plain().splitlines()[-1]

    assert told(f"{this_host().machine}-unknown-linux-gnu") == "next: minicpm-mlc chat 'a b'"
    assert told("x86_64-pc-windows-gnu") == "next: minicpm-mlc package 'a b' --for windows"
    phone = told("aarch64-linux-android24", device="opencl")
    assert phone == "next: minicpm-mlc package 'a b' --for android"
    assert told("arm64-apple-macos13.0", device="metal").endswith("--for macos")
    assert "next" not in told("x86_64-pc-windows-gnu", written=False)


def test_verbs_are_listed_in_the_order_of_use() -> None:
    commands = run("--help").output.partition("Commands:\n")[2]
    assert [line.split()[0] for line in commands.splitlines()] == VERBS
    assert "..." not in commands  # each says all of it in one row


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "minicpm_mlc", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("minicpm-mlc ")


def test_chat_answers_one_prompt(engine: FakeEngine) -> None:
    result = run(
        "chat",
        "B",
        "--prompt",
        "Hi",
        "--temperature",
        "0",
        "--stop",
        "x",
        "--no-think",
        "--context",
        "128",
    )
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello\n", "hm\n", 0)
    given = {"bundle": "B", "context": 128, "threads": None, "attention": "auto", "draft": None}
    assert engine.opened == given | {"remote": None, "device": None}
    assert engine.calls == [
        ([{"role": "user", "content": "Hi"}], {"temperature": 0.0, "stop": ["x"], "think": False})
    ]


def test_chat_reads_texts_from_files(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "role").write_text("Be brief.")
    (tmp_path / "question").write_text("Why?")
    files = ["--system-file", str(tmp_path / "role"), "--prompt-file", str(tmp_path / "question")]
    assert run("chat", "B", *files, input="a document\n").exit_code == 0
    assert [m["content"] for m in engine.calls[0][0]] == ["Be brief.", "a document\n\nWhy?"]
    result = run("chat", "B", "--prompt-file", str(tmp_path / "none"))
    assert "none can't be read (No such file or directory)" in result.stderr


def test_chat_answers_a_pipe(engine: FakeEngine) -> None:
    assert run("chat", "B", "--hide-thinking", input="piped\n").output == "Hello\n"
    assert engine.calls[0][0][-1]["content"] == "piped\n"


def test_chat_json_and_stats(engine: FakeEngine) -> None:
    result = run("chat", "B", "--prompt", "Hi", "--json", "--stats")
    assert json.loads(result.stdout)["answer"] == "Hello"
    assert "context 15/64" in result.stderr


def test_bad_sampling_value_is_refused_before_the_bundle_is_opened(engine: FakeEngine) -> None:
    result = run("chat", "B", "--prompt", "Hi", "--top-p", "7")
    assert result.exit_code == 1 and result.stderr.startswith("error: top_p is 7.0")
    assert engine.opened is None


def test_empty_prompt_is_refused(engine: FakeEngine) -> None:
    result = run("chat", "B", input="")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: the prompt is empty; give --prompt TEXT or pipe text in\n",
    )


def test_engine_errors_are_one_line(engine: FakeEngine) -> None:
    engine.events = [ContextError("the prompt has 99 tokens, the context holds 64")]
    result = run("chat", "B", "--prompt", "Hi")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: the prompt has 99 tokens, the context holds 64\n",
    )


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    result = run("chat", str(tmp_path), "--prompt", "Hi")
    assert result.exit_code == 1 and f"error: {tmp_path}" in result.stderr


def test_ctrl_c_is_status_130_without_a_traceback(engine: FakeEngine) -> None:
    engine.events = [("answer", "He"), KeyboardInterrupt()]
    result = run("chat", "B", "--prompt", "Hi")
    assert (result.exit_code, result.output) == (130, "He\n")
    assert engine.closed == 1


def test_a_closed_pipe_is_quiet() -> None:
    code = "from minicpm_mlc.cli import main; main(['inspect', 'MiniCPM4-0.5B'])"
    command = f'{sys.executable} -c "{code}" | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@dataclass
class Written:
    path: str = "B"

    def plain(self) -> str:
        return f"wrote {self.path}"

    def json(self) -> str:
        return json.dumps({"path": self.path})


def test_compile_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compile_model(source: str, out: str | None, *, progress: Any, **options: Any) -> Written:
        options.pop("say")("no tokenizer.json")
        seen.update(source=source, out=out, **options)
        progress("quantising", 0, 2)
        progress("quantising", 2, 2)
        return Written()

    monkeypatch.setattr(minicpm_mlc.compile, "compile_model", compile_model, raising=False)
    result = run("compile", "S", "-o", "B", "--quant", "w8", "--context", "512", "--force")
    assert result.stdout == "wrote B\n" and result.stderr.startswith(
        "note: no tokenizer.json\nquantising...\nquantising: "
    )
    assert seen == {
        "source": "S",
        "out": "B",
        "device": "cpu",
        "cpu": None,
        "gpu": None,
        "with_cpu": False,
        "arch": None,
        "scheme": "w8",
        "embedding_scheme": None,
        "activations": "auto",
        "context": 512,
        "attention": "auto",
        "prefill_chunk": None,
        "tuning": None,
        "overwrite": True,
        "random_weights": False,
        "dry_run": False,
        "kv": None,
        "draft": None,
        "draft_scheme": None,
        "frspec": None,
        "calibrate": None,
        "bits": None,
        "adapters": (),
        "ternary": None,
        "sparse_config": None,
        "origin": None,
    }
    assert json.loads(run("compile", "S", "--json").stdout) == {"path": "B"}
    for given, texts in ([], []), (["notes.txt"], ["notes.txt"]):
        run("compile", "S", "--calibrate", *given, "--force")
        assert seen["calibrate"] == texts


def test_progress_on_a_terminal_is_a_bar_per_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as report:
        for done in (0, 1, 2):
            report("weights", done, 2)
        report("library", 0, 1)
    shown = capsys.readouterr().err
    assert "weights" in shown and "100%" in shown and "library" in shown


def test_compile_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CompileError("--device toaster: not a device; there is cpu")

    monkeypatch.setattr(minicpm_mlc.compile, "compile_model", refuse, raising=False)
    result = run("compile", "S", "--device", "toaster")
    assert (result.exit_code, result.output) == (
        1,
        "error: --device toaster: not a device; there is cpu\n",
    )


def test_bench_prints_the_form_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Report:
        plain, json, markdown = (
            staticmethod(lambda form=form: form) for form in ("plain", "json", "markdown")
        )

    def bench_bundle(path: str, depths: list[int], **options: Any) -> Report:
        assert (path, depths) == ("B", [0, 64])
        counts = {"prompt_tokens": [8, 16], "new_tokens": 4, "repeats": 1, "threads": 2}
        assert options == counts | {"attention": "auto", "random_cache": False, "remote": None}
        return Report()

    monkeypatch.setattr(minicpm_mlc.bench.decode, "bench_bundle", bench_bundle, raising=False)
    command = "bench B --depth 0,64 --prompt-tokens 8,16 --new-tokens 4 --repeats 1 --threads 2"
    for form, printed in {"": "plain", "--json": "json", "--markdown": "markdown"}.items():
        assert run(*f"{command} {form}".split()).output == printed + "\n"
    assert run("bench", "B", "--depth", "deep").exit_code == 2


def test_inspect_of_a_published_model() -> None:
    report = json.loads(run("inspect", "MiniCPM4-8B", "--json").stdout)
    assert (report["kind"], report["parameters"]) == ("published model", 8_185_253_888)
    short, *_, long = report["memory"]
    assert (short["context"], long["context"]) == (1024, 32768)
    keys_and_values = 2 * 32 * 2 * 128 * 2
    assert (
        long["w4a"] - short["w4a"] == (32768 - 1024) * keys_and_values * 17 // 16
    )  # segment means are a sixteenth
    assert short["w4a"] < short["w8"] < short["f16"]
    assert "8,185,253,888" in run("inspect", "MiniCPM4-8B").stdout


def test_inspect_of_a_checkpoint_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config("MiniCPM4-0.5B"))
    report = json.loads(run("inspect", str(tmp_path), "--json").stdout)
    assert report["kind"] == "checkpoint" and report["weights"] == 2 * report["parameters"]
    (tmp_path / "model.safetensors").unlink()
    assert (
        "model.safetensors" in json.loads(run("inspect", str(tmp_path), "--json").stdout)["weights"]
    )


MANIFEST = Manifest(
    name="tiny",
    scheme="w4",
    embedding_scheme="w4",
    target={
        "device": "cpu",
        "triple": "riscv64-unknown-linux-gnu",
        "cpu": "generic",
        "features": [],
    },
    model=tiny_config("MiniCPM4-0.5B").to_dict(),
    kv_dtype="float16",
    state=[],
    max_context=3000,
    prefill_chunk=512,
    params=[],
    memory={"weights": 1000, "kv_per_token": 10, "activations": 1},
    tvm="0",
    files={"model.so": {"bytes": 7, "sha256": "0" * 64}},
)


def test_inspect_of_a_bundle_for_another_machine(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST.to_bytes())
    report = json.loads(run("inspect", str(tmp_path), "--json").stdout)
    assert [row["context"] for row in report["memory"]] == [1024, 2048, 3000]
    assert report["memory"][-1]["memory"] == 1000 + 10 * 3008 + 1  # whole pages of 64
    assert "riscv64" in report["runs here"]


def test_inspect_of_a_bundle_says_what_a_chat_would_say_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_attribute", lambda *_: 0)
    for device, says in (
        ("cpu", "yes"),
        ("vulkan", "no vulkan device was found|the runtime for vulkan is missing"),
    ):
        target = MANIFEST.target | {
            "device": device,
            "triple": f"{platform.machine()}-unknown-linux-gnu",
        }
        (tmp_path / "manifest.json").write_bytes(replace(MANIFEST, target=target).to_bytes())
        assert re.match(
            says, json.loads(run("inspect", str(tmp_path), "--json").stdout)["runs here"]
        )


def test_inspect_of_something_else_says_what_it_takes(tmp_path: Path) -> None:
    nowhere, empty = run("inspect", "nowhere"), run("inspect", str(tmp_path))
    assert (nowhere.exit_code, empty.exit_code) == (1, 1)
    assert "one of MiniCPM4-0.5B" in nowhere.stderr and "config.json" in empty.stderr


def test_devices_tells_machine_and_missing_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from minicpm_mlc.base import installed
    from minicpm_mlc.targets import DEVICE_OPTIONS, cuda

    found = json.loads(run("devices", "--json").stdout)
    assert found["machine"]["cores"] >= 1 and found["devices"][0]["device"] == "cpu"
    assert [device["device"] for device in found["devices"]] == list(DEVICE_OPTIONS)
    shown = run("devices").stdout
    assert found["devices"][0]["native"] in shown and "sm_87       Jetson Orin" in shown
    for device in found["devices"]:
        parts = [
            device["name"] or device["why"],
            device["system"],
            device["needs"],
            *device["libraries"],
        ]
        assert all(part in shown for part in parts), device["device"]
    assert (
        "one tensor         up to what the device reaches, 128.0 MiB or more" in shown
        and "; no subgroups" in shown
    )
    monkeypatch.setattr(installed, "_is_installed", lambda name: name != "ziglang")
    monkeypatch.setattr(cuda, "has_compiler", lambda archs: False)
    found = {
        device["device"]: device
        for device in json.loads(run("devices", "--json").stdout)["devices"]
    }
    assert found["cpu"]["missing"] == ["pip install ziglang"] and not found["cpu"]["compile"]
    assert "nvidia-cuda-nvrtc" in found["cuda"]["missing"][1]
    assert "can't compile yet; first: pip install ziglang" in run("devices").stdout


def test_an_error_of_the_system_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, says in [
        (
            PermissionError(13, "Permission denied", "/B"),
            "/B: Permission denied; choose a place that you may read and write",
        ),
        (
            FileNotFoundError(2, "No such file", "/d/.x.json.partial-18406"),
            "/d/x.json: No such file; check the path",
        ),
        (OSError(28, "No space left", b"/a", None, "/b"), "/a -> /b: No space left; free some"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (OSError("told by a library"), "told by a library"),
    ]:
        monkeypatch.setattr(minicpm_mlc.runtime_py.engine, "Engine", refusing(error))
        shown = run("chat", "/B", "--prompt", "Hi").stderr
        assert shown.startswith(f"error: {says}") and shown.count("\n") == 1


def refusing(error: BaseException) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    return refuse


def test_a_bug_is_one_line_and_with_debug_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = minicpm_mlc.runtime_py.engine
    monkeypatch.setattr(engine, "Engine", refusing(BundleError("B has ABI 9")))
    assert run("chat", "B", "--prompt", "Hi", "--debug").stderr == "error: B has ABI 9\n"
    monkeypatch.setattr(engine, "Engine", lambda *_, **__: 1 / 0)
    result = run("chat", "B", "--prompt", "Hi")
    assert result.exit_code == 1 and re.fullmatch(
        r"error: ZeroDivisionError: division by zero \(chat\.py:\d+\); this is a bug in "
        "minicpm-mlc: please report it with what the same command prints with --debug\n",
        result.stderr,
    )
    with pytest.raises(AssertionError, match="division by zero"):
        run("chat", "B", "--prompt", "Hi", "--debug")


def test_every_command_has_debug() -> None:
    for verb in (*VERBS, "frspec build"):
        assert verb == "frspec" or "--debug" in run(*verb.split(), "--help").stdout


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "memory is used up; close other programs"),
        (RecursionError("maximum recursion depth"), "nested too deeply"),
        (ModuleNotFoundError("No module named 'tvm'", name="tvm"), "pip install minicpm-mlc"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "convert it"),
        (type("PanicException", (BaseException,), {})("from Rust"), "this is a bug"),
    ],
)
def test_what_a_user_can_cause_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    monkeypatch.setattr(minicpm_mlc.runtime_py.engine, "Engine", refusing(error))
    result = run("chat", "B", "--prompt", "Hi")
    assert result.exit_code == 1 and says in result.stderr and result.stderr.count("\n") == 1


ESCAPES = "x\x1b]0;owned\x07\x1b[2J\x9b2J"


def test_rob_15_an_error_drives_no_terminal_and_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    error = BundleError(f"{ESCAPES * 100_000}; compile it again")
    monkeypatch.setattr(minicpm_mlc.runtime_py.engine, "Engine", refusing(error))
    shown = run("chat", "B", "--prompt", "Hi").stderr
    assert shown.endswith("; compile it again\n") and len(shown) < 2100
    assert all(char.isprintable() for char in shown.rstrip("\n"))


def test_rob_15_inspect_shows_marks_and_cuts_names(tmp_path: Path) -> None:
    for name in (ESCAPES, "x\nruns here yes", "n" * 100_000, "half \ud83d"):
        odd = json.loads(MANIFEST.to_bytes()) | {"name": name, "scheme": name}
        (tmp_path / "manifest.json").write_text(json.dumps(odd))
        result = run("inspect", str(tmp_path))
        shown = result.stdout + result.stderr
        assert all(char.isprintable() for char in shown.replace("\n", "")) and len(shown) < 9000
        assert "\nruns here yes" not in shown
        assert ("damaged at 'name'" in shown) == (result.exit_code == 1) == (name[0] != "n")


def test_piped_text_and_prompt_are_one_message(engine: FakeEngine) -> None:
    assert run("chat", "B", "--prompt", "What is it?", input="a document\n").exit_code == 0
    assert engine.calls[0][0][-1]["content"] == "a document\n\nWhat is it?"
