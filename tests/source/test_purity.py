"""What the sources and the compiled poll loop must not contain."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LBD = ROOT / "lbd"

# The poll loop: functions of lbd/_fastpath whose symbol contains one of these, and all that they call. Each
# must be there: were it inlined into its Python wrapper, nothing would be looked at. `cdef public` keeps it.
HOT = ("worker_loop",)
TARGET = re.compile(r"\b(?:call|j[a-z]+)\b.*<([^>+@]+)")
# Python's C API, and Cython's wrappers of it. A call means a hidden GIL, a reference or an exception.
PYTHON = re.compile(r"_?Py[A-Z]|__Pyx_")


def sources(*suffixes: str, under: Path = LBD) -> list[Path]:
    return sorted(p for p in under.rglob("*") if p.suffix in suffixes and "__pycache__" not in p.parts)


def disassembly(library: Path) -> dict[str, list[str]]:
    """Symbol -> instructions."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    functions: dict[str, list[str]] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            body = functions.setdefault(head[1], [])
        elif line.startswith(" "):
            body.append(line)
    return functions


@pytest.fixture(scope="module")
def fastpath() -> dict[str, list[str]]:
    if not shutil.which("objdump"):
        pytest.skip("needs objdump (Debian package binutils)")
    libraries = list(LBD.glob("_fastpath.*.so"))
    assert libraries, "lbd/_fastpath is not built (make build)"
    return disassembly(libraries[0])


@pytest.mark.parametrize("hot", HOT)
def test_poll_loop_calls_no_python(fastpath: dict[str, list[str]], hot: str) -> None:
    # __pyx_pw_, __pyx_pf_: the wrappers through which Python calls a function
    found = [n for n in fastpath if hot in n and not re.search("__pyx_p[wf]_", n)]
    assert found, f"no symbol of lbd/_fastpath contains {hot!r}: declare it cdef public"
    wrong, todo, seen = [], found, set(found)
    while todo:
        name = todo.pop()
        for line in fastpath[name]:
            target = m[1] if (m := TARGET.search(line)) else ""
            if PYTHON.match(target):
                wrong.append(f"{name}: {line.strip()}")
            elif target in fastpath and target not in seen:
                seen.add(target)
                todo.append(target)
    assert not wrong, "\n".join(wrong)


def test_cython_gave_no_performance_hint() -> None:
    log = ROOT / "build/cython.log"
    assert log.exists(), "nothing was translated in this checkout (make build)"
    assert "performance hint" not in log.read_text()


def functions_of(path: Path) -> Iterator[tuple[int, str]]:
    """Heads of the cdef functions of a .pxd, with their line numbers; continued lines are joined."""
    for m in re.finditer(r"^[ ]*cdef inline\b(?:[^:#\"']|\n)*?\)[^:\n]*:", path.read_text(), re.MULTILINE):
        yield path.read_text().count("\n", 0, m.start()) + 1, " ".join(m[0].split())


@pytest.mark.parametrize("path", sources(".pxd", under=LBD / "datapath"), ids=lambda p: p.name)
def test_datapath_functions_never_take_the_gil(path: Path) -> None:
    # A value-returning function without noexcept gets no performance hint, but its callers still ask
    # PyErr_Occurred, with the GIL, whenever it returns -1.
    wrong = [f"{path.name}:{n}: {f}" for n, f in functions_of(path) if not f.endswith("noexcept nogil:")]
    assert not wrong, "not `noexcept nogil`:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", sources(".pxd", under=LBD / "datapath"), ids=lambda p: p.name)
def test_datapath_cimports_itself_alone(path: Path) -> None:
    allowed = ("libc.", "posix.", "lbd.datapath", ".", "cython")
    text = path.read_text()
    wanted = re.findall(r"^\s*from\s+(\S+)\s+cimport", text, re.MULTILINE)
    wanted += re.findall(r"^\s*c?import\s+(\S+)", text, re.MULTILINE)
    wanted += re.findall(r"^\s*from\s+(\S+)\s+import", text, re.MULTILINE)
    wrong = [w for w in wanted if not w.startswith(allowed)]
    assert not wrong, f"{path.name} reaches outside the datapath: {wrong}"


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a Python or Cython file imports, anywhere in it."""
    package = path.relative_to(ROOT).with_suffix("").parts
    names = set()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: -node.level] if node.level else ()
                origin = ".".join([*base, *([node.module] if node.module else [])])
                names |= {origin} | {f"{origin}.{a.name}" for a in node.names}
    else:
        names |= set(re.findall(r"^\s*(?:from|c?import)\s+([\w.]+)", path.read_text(), re.MULTILINE))
    return names


def importers(module: str) -> list[str]:
    """Files of lbd/ that import the module or a part of it."""
    return [
        str(p.relative_to(ROOT))
        for p in sources(".py", ".pyx", ".pxd")
        if any(n == module or n.startswith(module + ".") for n in imports(p))
    ]


def test_pyroute2_is_imported_in_one_module() -> None:
    assert len(importers("pyroute2")) <= 1, importers("pyroute2")


def test_nothing_imports_the_cli() -> None:
    outside = [p for p in importers("lbd.cli") if not p.startswith("lbd/cli/")]
    assert not outside, outside


def test_shipped_code_imports_no_test_library() -> None:
    for name in ("scapy", "pytest", "hypothesis"):  # scapy is GPL besides
        assert not importers(name), importers(name)


@pytest.mark.parametrize(
    "path", sources(".py", ".pyx", ".pxd", ".pxi", ".c", ".h"), ids=lambda p: str(p.relative_to(LBD))
)
def test_file_opens_with_its_scope(path: Path) -> None:
    text = path.read_text()
    licence = r"(//|#) SPDX-.*\n|/\* SPDX-.*\*/\n"
    text = re.sub(rf"\A(#!.*\n|# (cython|distutils):.*\n|{licence})+", "", text).lstrip()
    if path.stem == "__init__" and not text:
        return
    assert re.match(r'("""|#\s*\S|//\s*\S|/\*)', text), f"{path.name} says nowhere what it is"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / n for n in listed.stdout.decode().split("\0") if n and (ROOT / n).is_file()]


def test_the_tree_stands_alone() -> None:
    # What lies outside the checkout is not there for whoever clones it.
    outside = re.compile(rb"\.\./sha" + rb"red\b|/wo" + rb"rk/")  # in two pieces, or it would find itself
    wrong = [str(p.relative_to(ROOT)) for p in tracked() if outside.search(p.read_bytes())]
    assert not wrong, wrong


def test_dealloc_is_spelt_right() -> None:
    # `__dealloc` compiles, is never called, and leaks
    for path in sources(".pyx", ".pxd"):
        names = re.findall(r"\bdef\s+(_*(?:de?alloc|c?init)_*)\(", path.read_text())
        wrong = set(names) - {"__dealloc__", "__cinit__", "__init__", "dealloc", "alloc", "init"}
        assert not wrong, f"{path}: {wrong}"


LINES = 65  # of a function: about 60
HEAD = re.compile(r"( *)(?:async def|def|cdef|cpdef) (?!class\b|extern\b|struct\b|enum\b|union\b).*\(")


def functions(path: Path) -> Iterator[tuple[int, int]]:
    """Of a Python or Cython file: line, number of lines."""
    lines = path.read_text().splitlines()
    for first, line in enumerate(lines):
        if not (head := HEAD.match(line)):
            continue
        body = depth = 0
        for n in range(first, len(lines)):
            depth += lines[n].count("(") - lines[n].count(")")
            if depth <= 0:
                body = n + 1
                break
        if not lines[body - 1].split("  #")[0].rstrip().endswith(":"):
            continue  # a declaration, or all of it in one line
        last = body - 1
        for n in range(body, len(lines)):
            text = lines[n].strip()
            if text and not text.startswith("#") and len(lines[n]) - len(lines[n].lstrip()) <= len(head[1]):
                break
            last = n if text else last
        yield first + 1, last - first + 1


def test_functions_are_short() -> None:
    found = [(path, *f) for path in sources(".py", ".pyx", ".pxd", ".pxi") for f in functions(path)]
    assert len(found) > 2000 and max(lines for *_, lines in found) > 50, "they are seen"
    assert not [f"{path}:{line}: {lines} lines" for path, line, lines in found if lines > LINES]
