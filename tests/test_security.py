"""What must not happen whatever is in a file, an option or the environment: looked for in real sweeps and files."""

import ast
import base64
import ipaddress
import json
import os
import pickle
import random
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from clar import config, embed, sweep, trainer
from clar.cli import command as run_command
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.result import SweepFolder, TrialFolder
from tests.running import TINY, Command

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------------------------------------------------------------
# A sweep of which one trial fails: who listens meanwhile, and what it leaves
# ---------------------------------------------------------------------------------------------------------------------

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalr-not-a-key-01",
    "AWS_SESSION_TOKEN": "session-not-a-token-02",
    "MLFLOW_TRACKING_PASSWORD": "tracking-not-a-word-03",
    "MLFLOW_TRACKING_TOKEN": "tracking-not-a-token-04",
    "GITHUB_TOKEN": "ghp-not-a-token-05",
    "https_proxy": "http://someone:proxy-not-a-word-06@127.0.0.1:9",
    "RAY_AUTH_TOKEN": "ray-not-a-token-07-of-32-characters-or-more",
}


def secret(name: str) -> str:
    """The part of a variable that nobody may see."""
    return urllib.parse.urlsplit(SECRETS[name]).password or SECRETS[name]


def leaks(text: bytes) -> set[str]:
    """Names of the secrets that a text holds, plainly or as base64."""
    forms = {name: (secret(name).encode(), base64.b64encode(secret(name).encode())[:16]) for name in SECRETS}
    return {name for name, those in forms.items() if any(form in text for form in those)}


def leaking(folder: Path) -> dict[str, set[str]]:
    """The files below a folder that hold secrets, and which."""
    found = {str(path): leaks(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    return {path: names for path, names in found.items() if names}


def family(ancestor: int, mark: str) -> set[int]:
    """A process and all that it has started, also those whose parent has died since: they have its environment."""
    parents, found = {}, set()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if mark.encode() in (path / "environ").read_bytes():
                    found.add(int(path.name))
    for pid in parents:
        above = pid
        while above > 1 and above != ancestor:
            above = parents.get(above, 0)
        if above == ancestor:
            found.add(pid)
    return found


def listening(processes: Iterable[int]) -> set[tuple[str, int]]:
    """Addresses and ports of the TCP sockets on which processes listen."""
    inodes = set()
    for pid in processes:
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[place : place + 8])[::-1] for place in range(0, len(address), 8)]
                found.add((str(ipaddress.ip_address(b"".join(words))), int(port, 16)))
    return found


def beyond_loopback(sockets: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those that somebody on another machine may reach."""
    found = set()
    for address, port in sockets:
        ip = ipaddress.ip_address(address)
        if not (getattr(ip, "ipv4_mapped", None) or ip).is_loopback:
            found.add((address, port))
    return found


@pytest.mark.parametrize(
    ("kind", "address", "beyond"),
    [
        (socket.AF_INET, "0.0.0.0", True),
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET6, "::", True),
        (socket.AF_INET6, "::1", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", False),
    ],
)
def test_a_socket_that_others_reach_is_found(kind: socket.AddressFamily, address: str, beyond: bool) -> None:
    with socket.socket(kind) as own:
        try:
            own.bind((address, 0))
        except OSError as error:
            pytest.skip(f"no {address} here: {error}")
        own.listen()
        here = {one for one in listening([os.getpid()]) if one[1] == own.getsockname()[1]}
        assert len(here) == 1
        assert beyond_loopback(here) == (here if beyond else set())


def test_a_secret_that_is_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "plain").write_text(f"proxy {SECRETS['https_proxy']}")
    (tmp_path / "base64").write_bytes(base64.b64encode(SECRETS["GITHUB_TOKEN"].encode()))
    (tmp_path / "nothing").write_text("https_proxy GITHUB_TOKEN")
    assert leaking(tmp_path) == {
        str(tmp_path / "deep" / "plain"): {"https_proxy"}, str(tmp_path / "base64"): {"GITHUB_TOKEN"}
    }  # fmt: skip


@pytest.mark.slow
def test_nothing_listens_beyond_this_machine_and_no_secret_is_written(command: Command) -> None:
    """One sweep with a trial that fails, watched while it runs and looked through when it is done."""
    source = (command.folder / "study.py").read_text()
    broken = source.replace("(name,))", '(name,), learning_rate=1e30 if name == "fade" else 1e-3)')
    (command.folder / "broken.py").write_text(broken)
    # Unix sockets allow no long path.
    with tempfile.TemporaryDirectory(prefix="clar-", dir="/tmp") as ray:
        command.environment |= {**SECRETS, "RAY_TMPDIR": ray}
        options = ["--retries", "1", "--storage", str(command.storage)]
        process = command.start("clar.sweep", "broken.py", *TINY, *options)
        seen: set[tuple[str, int]] = set()
        known: set[int] = set()
        while process.poll() is None:
            known |= family(process.pid, f"RAY_TMPDIR={ray}")
            seen |= listening(known)
            time.sleep(0.2)
        output = process.communicate()[0]
        assert process.returncode == 1, output
        assert "failed: NonFiniteLoss" in output
        # The control store, the node's server and manager, two agents, and every worker.
        assert len(seen) >= 5
        assert beyond_loopback(seen) == set()

        output += command.run("clar.sweep", "broken", "--status", "--storage", str(command.storage), code=1)
        assert leaks(output.encode()) == set()
        written = {path.suffix for path in command.storage.rglob("*")}
        assert {".db", ".html", ".json", ".txt", ".safetensors"} <= written
        assert leaking(command.folder) == {}
        assert any(path.name.startswith("raylet") and path.stat().st_size for path in Path(ray).rglob("*"))
        assert leaking(Path(ray)) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Nothing that is read is run
# ---------------------------------------------------------------------------------------------------------------------

_RUNS_CODE = {"compile", "exec", "os.exec", "os.posix_spawn", "os.system", "pickle.find_class", "subprocess.Popen"}
_ran: list[str] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _ran is not None and event in _RUNS_CODE:
        _ran.append(f"{event} {arguments!r:.200}")


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fails where Python compiled, executed or unpickled something meanwhile, or started a process."""
    global _ran
    if not any(hook is _listen for hook in _hooks):
        sys.addaudithook(_listen)  # for good: there is no way to remove one
        _hooks.append(_listen)
    _ran = found = []
    try:
        yield
    finally:
        _ran = None
    assert found == []


_hooks: list[Callable[[str, tuple[object, ...]], None]] = []


@pytest.mark.parametrize("way", ["eval", "exec", "pickle"])
def test_code_that_runs_is_noticed(way: str) -> None:
    ways = {
        "eval": lambda: eval("1 + 1"),
        "exec": lambda: exec("1 + 1"),
        "pickle": lambda: pickle.loads(pickle.dumps(Path())),
    }
    with pytest.raises(AssertionError), nothing_runs():
        ways[way]()


class Payload:
    """Pickled, it makes a folder as soon as it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def payloads(mark: Path) -> list[str]:
    """Texts that make a folder where something evaluates them."""
    call = f"__import__('os').mkdir({str(mark)!r})"
    return [
        call, f"({call})", f"[{call}]", f"{{{call}}}", f"f'{{{call}}}'", f"lambda: {call}", f"1 if {call} else 2",
        f"${{{call}}}", f"$(mkdir {mark})", f"`mkdir {mark}`", f"; mkdir {mark}",
        f"!!python/object/apply:os.mkdir [{mark}]", f"!!python/object/new:os.mkdir [{mark}]", f"{{{{ {call} }}}}",
        f"{{% {call} %}}", f"%({call})s", f"eval({call!r})",
        base64.b64encode(pickle.dumps(Payload(mark))).decode(), f"@{mark}", f"file://{mark}", f"0 or {call}",
        f"exec({call!r})", "().__class__.__bases__[0].__subclasses__()", "9**9**9**9", "nan", "1e400", "\x00", "",
    ]  # fmt: skip


def test_a_setting_is_never_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every payload for every field, and 2,000 texts at random; through the command, one line each."""
    mark = tmp_path / "ran"
    chance = random.Random(0)
    pieces = [
        "__import__", "(", ")", "'os'", ".system", "[", "]", "{", "}", "=", ",", "1", "e", "-", "lambda:", "\\",
        "\u202e",
    ]  # fmt: skip
    texts = [(field, text) for field in TrialConfig.model_fields for text in payloads(mark)]
    for _ in range(2000):
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 9)))
        texts.append((chance.choice(list(TrialConfig.model_fields)), text))
    said = []
    with nothing_runs():
        for field, text in texts:
            try:
                TrialConfig(**config.parse_settings([f"{field}={text}"]))
            except UserError as error:
                said.append(str(error))
    assert len(said) > 0.9 * len(texts)
    assert [line for line in said if "\n" in line] == []
    for field, text in (("temperature", payloads(mark)[0]), ("augmentations", payloads(mark)[1])):
        settings = ["--set", f"{field}={text}", "--storage", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["clar.sweep", "augmentations", *settings])
        capsys.readouterr()
        assert run_command(sweep.app) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert said.err.startswith("error: ")
        assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_storage_are_never_evaluated(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = TrialFolder(tmp_path, TrialConfig(), "f" * 64)
    folder.begin("0.1")
    whole = json.loads((folder.path / "config.json").read_text())
    one_sweep = SweepFolder(tmp_path, "study", "0" * 16)
    for text in payloads(mark):
        poisoned = [whole | {name: text} for name in whole]
        poisoned += [whole | {"config": whole["config"] | {name: text}} for name in whole["config"]]
        with nothing_runs():
            for content in poisoned:
                (folder.path / "config.json").write_text(json.dumps(content))
                with suppress(UserError):
                    TrialFolder.open(tmp_path, folder.identity)
            for name, read in (("result", folder.result), ("epochs", folder.epochs), ("failure", folder.failure)):
                for content in (text, json.dumps(text), json.dumps({"epochs": [{"epoch": text}], "reason": text})):
                    (folder.path / f"{name}.json").write_text(content)
                    with suppress(UserError):
                        read()
            one_sweep.write({"trials": [text], "state": text, "recipe": {"space": text}})
            assert one_sweep.read() == {"trials": [text], "state": text, "recipe": {"space": text}}
    assert not mark.exists()


@pytest.mark.parametrize("name", ["labels.npy", "splits.npy"])
def test_an_array_of_a_store_is_never_unpickled(tone_store: ClipStore, tmp_path: Path, name: str) -> None:
    mark, store = tmp_path / "ran", tmp_path / "store"
    store.mkdir()
    for path in tone_store.path.iterdir():
        (store / path.name).write_bytes(path.read_bytes())
    np.save(store / name, np.array([Payload(mark)], object), allow_pickle=True)
    with nothing_runs(), pytest.raises(UserError, match="damaged") as caught:
        ClipStore.open(store)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_checkpoints_and_encoders_are_never_unpickled(
    tone_store: ClipStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    mark, small = tmp_path / "ran", TrialConfig(epochs=1, warmup_epochs=0, batch_size=16, encoder_width=2, bins=16)
    write: Callable[[Path], object] = {
        "pickle": lambda path: path.write_bytes(pickle.dumps(Payload(mark))),
        "torch": lambda path: torch.save({"identity": Payload(mark)}, path),
    }[kind]
    write(tmp_path / trainer.CHECKPOINT)
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged") as caught:
        trainer.train(small, tone_store, checkpoint_dir=tmp_path)
    assert "\n" not in str(caught.value)
    write(tmp_path / trainer.ENCODER)
    monkeypatch.setattr(sys, "argv", ["clar.embed", str(tmp_path), "some.wav"])
    assert run_command(embed.app) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert trainer.ENCODER in said
    assert not mark.exists()


# ---------------------------------------------------------------------------------------------------------------------
# The code itself
# ---------------------------------------------------------------------------------------------------------------------

_NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.load", "marshal.loads",
    "shelve.open", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "runpy.run_path", "runpy.run_module", "torch.jit.load", "torch.hub.load", "subprocess.getoutput",
}  # fmt: skip


def unsafe(source: str) -> list[str]:
    """Calls of a Python text that run what they are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {one.arg: ast.unparse(one.value) for one in node.keywords}
        if (
            name in _NEVER
            or name.endswith(".exec_module")
            or (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
            or given.get("shell", "False") != "False"
        ):
            found.append(ast.unparse(node))
    return found


def test_the_search_space_is_the_only_code_that_is_loaded() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {call}"
        for package in ("clar", "analysis", "benchmarks", "search_spaces")
        for path in (ROOT / package).rglob("*.py")
        for call in unsafe(path.read_text())
    }
    assert found == {"clar/space.py: spec.loader.exec_module(module)"}


@pytest.mark.parametrize(
    "source",
    ["eval('1')", "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
     "subprocess.run(line, shell=True)", "pickle.load(file)", "yaml.load(text, Loader=yaml.Loader)"],
)  # fmt: skip
def test_unsafe_calls_are_found(source: str) -> None:
    assert unsafe(source) == [source]
    assert unsafe("model.eval(); torch.load(path, weights_only=True); np.load(path); yaml.safe_load(text)") == []
