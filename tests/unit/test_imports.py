"""The layering rules of docs/design.md, checked by reading every import in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "ringfence"

# What a package (or a single module) may import besides itself.  The longest name that matches a module decides.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "planner": {"core"},
    "ir": {"core"},
    "isa": {"ir", "core"},
    "memory": {"core"},
    "translate": {"isa", "ir", "memory", "core"},
    "bus": {"memory", "core"},
    "devices": {"bus", "memory", "core", "backends.api"},
    "backends.api": {"core"},
    "backends": {"core"},
    "engine": {"translate", "isa", "ir", "memory", "core"},
    "debug": {"engine.api", "core"},
    "machine": {"engine", "debug", "devices", "backends", "bus", "memory", "core"},
    "images": {"machine", "backends", "core"},
    "cli": {"machine", "images", "core"},
    "": {"machine", "cli"},
}


def _modules() -> dict[str, Path]:
    """Module name below `ringfence` ("" for the package itself) to its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def _for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Everything below `if TYPE_CHECKING:`, which never runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {below for block in blocks for statement in block.body for below in ast.walk(statement)}


def _imports(name: str, types_too: bool = True) -> set[str]:
    """Modules of ours that `name` imports, wherever in the file."""
    found: set[str] = set()
    tree = ast.parse(MODULES[name].read_text(), filename=str(MODULES[name]))
    left_out = set() if types_too else _for_types_only(tree)
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide a module's place"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            if full.split(".")[0] != "ringfence":
                continue
            target = full.removeprefix("ringfence").lstrip(".")
            while target and target not in MODULES:
                target = target.rpartition(".")[0]
            found.add(target)
    return found - {name}


def _below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_imports_only_what_its_layer_may(name: str) -> None:
    top = name.split(".")[0]
    layer = max((p for p in ALLOWED if p and _below(name, p)), key=len, default="")
    assert layer or top in ("", "__main__"), f"{name}: its package has no rule; add one to ALLOWED and to docs/design.md"
    for target in sorted(_imports(name)):
        # The package itself offers its version, and the public names that it loads on demand.
        if target == "" or (layer and _below(target, layer)) or any(_below(target, allowed) for allowed in ALLOWED[layer]):
            continue
        if layer == "backends" and target == "backends.api":
            continue
        pytest.fail(f"ringfence.{name} imports ringfence.{target}, which its layer {layer!r} must not know")


def test_only_the_translator_knows_llvm() -> None:
    users = [n for n, path in MODULES.items() if any(_third_party(path, "llvmlite"))]
    assert all(_below(n, "translate") for n in users), users


def _third_party(path: Path, package: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] == package]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            found.append(node.module)
    return found


def test_no_cycles() -> None:
    done: set[str] = set()
    way: list[str] = []

    def visit(name: str) -> None:
        if name in way:
            pytest.fail("imports go in a circle: " + " -> ".join([*way[way.index(name) :], name]))
        if name in done:
            return
        way.append(name)
        for target in sorted(_imports(name, types_too=False)):
            # A package's __init__ may gather its own modules; they import it only as the place where they live.
            if target and not _below(name, target):
                visit(target)
        way.pop()
        done.add(name)

    for name in MODULES:
        if name:
            visit(name)


def test_every_module_says_what_it_is() -> None:
    silent = [n for n, path in MODULES.items() if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent, f"without a docstring: {silent}"
