"""What the commands share: options, how a trial's configuration comes together, and how mistakes are reported."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import clar
from clar import datasets
from clar.config import RESULTS_VERSION, TrialConfig, parse_settings
from clar.errors import UserError
from clar.files import AWAY, is_folder, place
from clar.presets import preset as preset_fields

Dataset = Annotated[str, typer.Option(help="Data set; see `python -m clar.datasets list`.")]
Preset = Annotated[
    str | None,
    typer.Option(help="demo, small, paper or released; default: demo without a GPU, paper with one.",
                 show_default=False),
]  # fmt: skip
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of TrialConfig; repeatable.", show_default=False),
]
Seeds = Annotated[int, typer.Option(min=1, help="Repeat every trial with this many seeds.")]
Storage = Annotated[
    Path,
    typer.Option(metavar="PATH|URI", parser=place,
                 help="Folder, or s3://BUCKET/PREFIX, of trials and tables, and of the MLflow database."),
]  # fmt: skip
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the data set's files, for a data set that has some.", show_default=False)
]
DataCache = Annotated[
    Path | None,
    typer.Option(help="Folder on each node's own disk: the decoded data set is copied there once, and read from there.",
                 show_default=False),
]  # fmt: skip
MaxLost = Annotated[
    float,
    typer.Option(min=1, metavar="SECONDS", help="Of work, that a trial may lose with the process or node it runs on."),
]
TrackingURI = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow tracking URI; default: an SQLite file in the storage.",
                 show_default=False),
]  # fmt: skip


_INTERRUPTED = 130

_UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS)
"""What is wrong with a path that the user named, or with the rights to it."""


def command(app: typer.Typer) -> int:
    """Run a command line; its exit code: 0 done, 1 trials failed, 2 the command was wrong, 130 interrupted."""
    try:
        outcome = app(standalone_mode=False)
        if outcome == _INTERRUPTED:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        return outcome if isinstance(outcome, int) else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit:
        # typer's own answer to a closed pipe: the reader, `head` for example, has what it wanted. Python would complain
        # once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in _UNREACHABLE and error.filename:
            print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
            return 2
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to it"
        # A connection that failed has no file: that is no storage that is away.
        if advice != "make room" and not (error.errno in AWAY and error.filename):
            raise
        where = error.filename or "a disk"
        print(
            f"error: {where}: {error.strerror}; nothing finished is lost: {advice}, and the same command goes on",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        return _usage_error(error)


def _usage_error(error: Exception) -> int:
    """What typer finds wrong with a command line, in one line; anything else is a fault and keeps its traceback."""
    show = getattr(error, "format_message", None)
    if show is None:
        raise error
    if text := show():  # empty where the command's help was all it had to say
        print(f"error: {text}", file=sys.stderr)
    return 2


def preset_of(given: str | None, gpu: bool) -> str:
    """The preset that is given, else the default: what the machine can bear."""
    return given or ("paper" if gpu else "demo")


def configure(
    dataset: str,
    preset: str | None,
    settings: list[str],
    gpu: bool,
    training_clips: int | None = None,
    **sweep: object,
) -> TrialConfig:
    """The base of a run: the preset for so many training clips, then what the sweep sets, then what the user sets.

    Of a data set with folds it names the one to test on: the last, unless told otherwise. Left open, it would be the
    same trial as the one that names the last, under another identity.

    Raises:
        UserError: an unknown preset, data set or field, a value out of range, or a fold that the data set does not
            have.
    """
    chosen = parse_settings(settings)
    fields = preset_fields(preset_of(preset, gpu), chosen.pop("dataset", dataset), training_clips)
    fields["dataset"] = datasets.canonical(fields["dataset"])
    config = TrialConfig(**{**fields, **sweep, **chosen})
    count = datasets.folds(config.dataset)
    if config.fold is None:
        return config.but(fold=count or None)
    if config.fold > count:
        has = f"has folds 1 to {count}" if count else "has no folds; leave it out"
        raise UserError(f"fold = {config.fold}: {dataset} {has}")
    return config


def storage_path(storage: Path, make: bool = True) -> Path:
    """The storage's absolute folder, made where it is missing unless `make` is off; of a bucket, the place in it.

    Raises:
        UserError: it cannot be written.
    """
    if not is_folder(storage):
        from clar import buckets

        buckets.check(storage, write=make)
        return storage
    path = storage.expanduser().absolute()
    if not make:
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--storage {storage}: cannot make the folder ({error.strerror}); name another") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"--storage {storage}: no permission to write there; name another folder")
    return path


def gpus_here() -> int:
    """NVIDIA GPUs that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = Path("/proc/driver/nvidia/gpus")
    present = len(list(driver.iterdir())) if driver.is_dir() else 0
    if visible is None:
        return present
    return min(present, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


def code_version() -> str:
    """The package's version, the results version, and the commit of a checkout: `0.1.0+r1.g1a2b3c4`."""
    version = f"{clar.__version__}+r{RESULTS_VERSION}"
    root = Path(__file__).parent.parent
    if not (root / ".git").exists() or not shutil.which("git"):
        return version
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    git = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False)
    return f"{version}.g{git.stdout.strip()}" if git.returncode == 0 else version
