"""The direction of imports, who may import what, file sizes and module docstrings: rules a gate holds."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the top down; a module may import its own level's siblings only where listed as one level below.
LEVELS = [
    ["cli"],
    ["bench", "doctor", "plan", "profile", "simulate", "status"],
    ["cli_world"],
    ["engine"],
    ["planner", "results"],
    ["batcher", "models", "experts", "rows", "sampling"],
    ["layers", "comm", "weights"],
    ["kvcache", "demo", "cli_options", "placement", "routing"],
    ["launch", "log", "kernels", "topology", "config", "models.spec", "watch"],
    ["core", "errors", "janus_hpc"],
]
MAX_LINES = 400


def modules() -> dict[str, Path]:
    """Module name below janus_hpc -> file, tests excluded."""
    found = {}
    for folder, prefix in ((ROOT / "janus_hpc", ""), (ROOT / "kernels", "kernels.")):
        for path in folder.rglob("*.py"):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__") or "janus_hpc"] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(name: str) -> int:
    if name == "models.spec":
        return next(i for i, group in enumerate(LEVELS) if "models.spec" in group)
    head = name.split(".", maxsplit=1)[0]
    return next(i for i, group in enumerate(LEVELS) if head in group)


def test_imports_point_down() -> None:
    known = modules()
    upward = []
    for name, path in known.items():
        for target in imports(path):
            short = target.removeprefix("janus_hpc.")
            if not target.startswith("janus_hpc.") or short not in known:
                continue
            same_package = short.split(".")[0] == name.split(".")[0]
            if not same_package and level(short) <= level(name):
                upward.append(f"{name} -> {short}")
    assert not upward, upward


def test_there_is_no_import_cycle() -> None:
    known = modules()
    edges = {
        name: {
            t.removeprefix("janus_hpc.")
            for t in imports(path)
            if t.removeprefix("janus_hpc.") in known and t.removeprefix("janus_hpc.") != name
        }
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("mpi4py", ("comm.",)),
        ("ucxx", ("comm.",)),
        ("transformers", ("bench.peer",)),
        ("triton", ("kernels.",)),
    ],
)
def test_who_may_import(package: str, allowed: tuple[str, ...]) -> None:
    users = [
        name
        for name, path in modules().items()
        if any(its.split(".")[0] == package for its in imports(path))
    ]
    assert all(name.startswith(allowed) for name in users), users


LIGHT = ["rows", "results", "planner", "placement", "routing", "topology", "launch", "config"]


@pytest.mark.parametrize("package", LIGHT)
def test_light_packages_do_not_need_torch_or_mpi(package: str) -> None:
    heavy = {"torch", "mpi4py", "transformers"}
    for name, path in modules().items():
        if name.split(".")[0] == package:
            assert not heavy & {its.split(".")[0] for its in imports(path)}, name


@pytest.mark.parametrize("module", ["planner.a_max_lookup", "routing.trace_file", "results.verify"])
def test_what_needs_no_torch_does_not_load_it(module: str) -> None:
    code = f"import sys, janus_hpc.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_only_launch_reads_the_environment() -> None:
    reads = re.compile(r"os\.environ|getenv")
    users = [name for name, path in modules().items() if reads.search(path.read_text("utf-8"))]
    assert users == ["launch"], users


def test_kernels_import_only_torch_and_triton_beside_the_standard_library() -> None:
    for name, path in modules().items():
        if name.startswith("kernels."):
            heads = {its.split(".")[0] for its in imports(path)}
            assert heads - set(sys.stdlib_module_names) <= {"torch", "triton", "janus_hpc"}, name


def test_every_module_says_what_it_owns_and_is_small() -> None:
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"
        assert text.count("\n") <= MAX_LINES, f"{name} has more than {MAX_LINES} lines"
