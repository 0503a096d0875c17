"""Packs: a view with all modules that it imports as one file, so that a browser needs one request for them.

The shell is a pack too. A pack runs each module in a function, in the order of the imports, and keeps its exports under
its path. A module that several packs have runs once. Modules import each other without circles, by static imports of
names or of a whole module, and export functions, classes and constants where they declare them.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["SHELL_PACK", "SUFFIX", "pack", "packs"]

SUFFIX = ".pack.js"
SHELL, SHELL_PACK = "app.js", f"app{SUFFIX}"
VIEWS = "views/index.js"

IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "(\.[^"]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
VIEW = re.compile(r'path: "([^"]+)"[^{}]*?import\("\./(\w+)\.js"\)')


def packs(static: Path) -> dict[str, str]:
    """Return the names of the packs of views, each with a regular expression of the paths in the page's address."""
    views = VIEW.findall((static / VIEWS).read_text())
    return {f"{name}{SUFFIX}": re.sub(r":\w+", "[^/]+", path) for path, name in views}


def pack(static: Path, name: str) -> bytes:
    """Return the pack of a view or of the shell."""
    shell = _imported(static, SHELL)
    if name == SHELL_PACK:
        return f"export const modules = {{}};\n{_functions(static, shell)}".encode()
    view = f"views/{name.replace(SUFFIX, '.js')}"
    start = f'import {{ modules }} from "./{SHELL_PACK}";\n'
    modules_of_view = _functions(static, [module for module in _imported(static, view) if module not in shell])
    return f'{start}{modules_of_view}export const {{ render }} = modules["{view}"];\n'.encode()


def _imported(static: Path, module: str) -> list[str]:
    """Return the paths of a module and of all that it imports, each after its imports."""
    found: dict[str, None] = {}
    for *_, name in IMPORT.findall((static / module).read_text()):
        found |= dict.fromkeys(_imported(static, _path(static, module, name)))
    return [*found, module]


def _path(static: Path, module: str, name: str) -> str:
    """Return the path of a module that another one imports by a relative name."""
    return (static / module).parent.joinpath(name).resolve().relative_to(static.resolve()).as_posix()


def _functions(static: Path, modules: list[str]) -> str:
    return "".join(_function(static, module) for module in modules)


def _function(static: Path, module: str) -> str:
    """Return a module as a function that runs once, and returns what the module exports."""

    def bound(found: re.Match[str]) -> str:
        whole, names, name = found.groups()
        target = whole or f"{{{names.replace(' as ', ': ')}}}"
        return f'const {target} = modules["{_path(static, module, name)}"];\n'

    text = (static / module).read_text()
    exported = ", ".join(EXPORT.findall(text))
    text = EXPORT.sub("", IMPORT.sub(bound, text))
    if module == VIEWS:
        text = re.sub(r'import\("\./(\w+)\.js"\)', rf'import("./\1{SUFFIX}")', text)
    return f'modules["{module}"] ??= (() => {{\n{text}return {{ {exported} }};\n}})();\n'
