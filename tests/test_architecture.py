"""The walls: modules import along the path of the data, the trainer without Ray, the driver without tensors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAIN = [
    ["errors"], ["buckets"], ["files", "config", "progress", "presets"], ["seeds", "clips"], ["building", "local"],
    ["datasets"], ["vocoder"], ["augment"],
    ["features"], ["encoders"], ["heads"], ["losses"], ["optim"], ["probe"], ["result", "meter"], ["trainer"],
    ["baselines"], ["space", "cli", "rounds"], ["search"], ["plan"], ["tracking", "status"], ["train", "embed"],
    ["packing"], ["trial", "cluster", "preemption"], ["pool"], ["sweep"],
]  # fmt: skip


def _imports(path: Path) -> set[str]:
    """The clar modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "clar":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clar."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("clar."))
    return found


def test_modules_import_along_the_chain_and_never_back() -> None:
    place = {name: index for index, names in enumerate(CHAIN) for name in names}
    files = [*(ROOT / "clar").glob("*.py"), *(ROOT / "clar" / "datasets").glob("*.py")]
    modules = {file: file.parent.name if file.parent.name == "datasets" else file.stem for file in files}
    # A package's command stands where the other commands stand.
    del modules[ROOT / "clar" / "datasets" / "__main__.py"]
    assert set(modules.values()) - {"__init__"} == set(place), "a new module needs its place in CHAIN"
    for file, module in modules.items():
        for imported in _imports(file) & set(place) - {module}:
            assert place[imported] < place[module], f"{file.name} imports {imported}, which comes after it"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("clar.trainer", ("ray", "mlflow", "pandas")),
        ("clar.train", ("ray", "mlflow")),
        ("clar.sweep", ("torch", "ray", "mlflow", "optuna", "pandas", "matplotlib")),
        ("clar.status", ("torch", "ray", "mlflow", "pandas", "numpy")),
        ("clar.trial", ("torch", "mlflow")),
        ("clar.pool", ("torch", "mlflow")),
        ("clar.packing", ("torch", "ray")),
        ("clar.datasets", ("torch", "torchaudio", "ray")),
        ("analysis.tables", ("torch", "ray", "mlflow", "matplotlib")),
        ("analysis.outcome", ("torch", "ray", "mlflow", "matplotlib", "optuna")),
        ("analysis.report", ("torch", "ray", "mlflow", "matplotlib", "optuna", "scipy", "statsmodels")),
        ("analysis.portraits", ("torch", "matplotlib", "sklearn")),
    ],
)
def test_what_a_module_does_not_load(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
