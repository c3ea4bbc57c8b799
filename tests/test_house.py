"""Check how the code is laid out: sizes of functions, signatures and files everywhere, import cycles in the package.

Its layers are checked by import-linter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "tests", "benchmarks", "examples", "docs", "scripts")
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {file: ast.parse(text) for file, text in TEXTS.items()}
PACKAGE = {file.removeprefix("src/"): tree for file, tree in TREES.items() if file.startswith("src/")}

FUNCTION_LINES, FILE_LINES, PARAMETERS = 60, 400, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, Function]]:
    """Yield the functions of a file with their dotted names, nested ones included."""
    for node in ast.iter_child_nodes(tree):
        inner = f"{name}.{node.name}".lstrip(".") if isinstance(node, ast.ClassDef | Function) else name
        if isinstance(node, Function):
            yield inner, node
        yield from functions(node, inner)


def code_lines(function: Function) -> int:
    """Count the lines of a function without its decorators and docstring, and without the options of a command."""
    first = function.body[0].lineno if is_command(function) else function.lineno
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = (function.body[0].end_lineno or 0) - function.body[0].lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - first + 1 - docstring


def parameters(function: Function) -> int:
    """Count the parameters of a function without ``self`` and ``cls``; ``*args`` and ``**kwargs`` count as one each."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    variadic = sum(argument is not None for argument in (arguments.vararg, arguments.kwarg))
    return len(names) - (names[:1] in (["self"], ["cls"])) + variadic


def is_command(function: Function) -> bool:
    """Whether a function is a Typer command: its parameters are options of the command line, help texts included."""
    return "typer." in ast.unparse(function.args)


def imports(file: str, modules: dict[str, str]) -> set[str]:
    """Return the files that a file imports, anywhere in it: within functions and for type checkers as well."""
    imported = set()
    for node in ast.walk(PACKAGE[file]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in submodules]
        else:
            continue
        imported |= {modules[name] for name in names if name in modules}
    return imported - {file}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of files of which each imports, perhaps through others, all the rest."""
    reached: dict[str, set[str]] = {}
    for file in graph:
        seen: set[str] = set()
        waiting = [*graph[file]]
        while waiting:
            reachable = waiting.pop()
            if reachable not in seen:
                seen.add(reachable)
                waiting += graph[reachable]
        reached[file] = seen
    groups = {
        frozenset(other for other in graph if file in reached[other] and other in reached[file]) for file in graph
    }
    return sorted(sorted(group) for group in groups if group)


def offenders() -> Iterator[str]:
    """Yield what breaks a rule, and how."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in PACKAGE}
    for group in cycles({file: imports(file, modules) for file in PACKAGE}):
        yield f"{' '.join(group)}: these files import each other in a circle"
    for file, tree in TREES.items():
        length = len(TEXTS[file].splitlines())
        if length > FILE_LINES:
            yield f"{file}: {length} lines, more than {FILE_LINES}"
        for name, function in functions(tree):
            if (lines := code_lines(function)) > FUNCTION_LINES:
                yield f"{file}: {name}: {lines} lines of code, more than {FUNCTION_LINES}"
            if not is_command(function) and (count := parameters(function)) > PARAMETERS:
                yield f"{file}: {name}: {count} parameters, more than {PARAMETERS}"


def test_no_import_cycles_and_no_oversized_code() -> None:
    broken = sorted(offenders())
    assert not broken, "\n" + "\n".join(broken)


def test_a_cycle_through_three_files_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]
