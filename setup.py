"""Build of lbd: the Cython extensions and the BPF program.

What pyproject.toml can't say stands here: compiler directives (set in this one place, since those in a
.pyx do not reach the .pxd files that it cimports), a clang step for lbd/xdp/steer.bpf.c whose result
travels inside the package, and two refusals: a Cython "performance hint" and a BPF object without its
section or maps both fail the build.

Environment:
    LBD_MARCH      what -march gets on x86 (default x86-64-v3; "native" for this machine alone)
    LBD_OPT        gcc's level of optimisation (default 3; 1 compiles in half the time, not for measuring)
    LBD_TEST_EXT   1: build the extensions that only tests need, too (`make build` sets it)
    LBD_SANITIZE   1: AddressSanitizer and UBSan (`make build-asan`, into a directory of its own)
    LBD_PARTIAL    1: tolerate, aloud, that a source of the lists below does not exist yet
"""

import fcntl
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext as setuptools_build_ext
from setuptools.command.build_py import build_py as setuptools_build_py

# What is built: module name -> libraries it links.
EXTENSIONS = {
    "lbd._fastpath": ["xdp", "bpf"],
    "lbd.xdp._xsk": ["xdp", "bpf"],
    "lbd.shm._shm": [],
    "lbd.sched._table": [],
}
TEST_EXTENSIONS = {
    "tests.unit._engine": [],
    "tests.unit._sched": [],
    "tests.netns._port": ["xdp", "bpf"],
    "bench._engine": [],
}
LOOPS = ("lbd._fastpath", "bench._engine")  # of these, those that hold the worker's loop
BPF_PROGRAM = "lbd/xdp/steer.bpf.c"
BPF_SECTIONS = ("xdp", "xdp.frags")  # one of them
BPF_MAPS = ("xsks", "vips4", "vips6", "vip_addrs", "lips4", "lips6", "sources4", "sources6", "source_addrs", "passed",
            "tunnels", "macs", "locals", "snat_src", "snat_dst", "counters")

CYTHON_DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "emit_code_comments": False,
}
CYTHON_LOG = "build/cython.log"

OPTIMISE = os.environ.get("LBD_OPT", "3")
SANITIZE = os.environ.get("LBD_SANITIZE") == "1"
PARTIAL = os.environ.get("LBD_PARTIAL") == "1"


def compile_args(optimise: str, loop: bool = False) -> list[str]:
    """loop: of a module that the worker's loop is compiled into."""
    # CYTHON_INLINE stays the hint that it is. Forced (always_inline), it would unfold cold functions too in
    # each of their callers, since a .pxd can hold no others than inline ones. Forced are the fast lane's
    # alone, by lbd_inlined (compiler.pxd): an attribute, which gcc ignores, aloud, where a result has that type.
    # Packet bytes are read through structs of many types: strict aliasing must not see that.
    args = ["-g", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unused-function", "-Wno-attributes"]
    args.append("-Wno-sign-compare")  # in every range() that Cython writes out
    if SANITIZE:
        # -fno-wrapv: Python's own flags make overflow defined, which would blind UBSan to it.
        args += ["-O1", "-fsanitize=address,undefined", "-fno-wrapv", "-fno-omit-frame-pointer"]
        args += ["-U_FORTIFY_SOURCE"]
    else:
        # Beyond gcc's limits of 200 and 40 %, by which parts of the ways off the lane became calls (36 instructions of a
        # new connection)
        args += ["-O" + optimise, "--param=max-inline-insns-single=260"]
        if loop:
            args.append("--param=inline-unit-growth=100")
    if platform.machine() == "x86_64":
        args.append("-march=" + os.environ.get("LBD_MARCH", "x86-64-v3"))
    return args


def sources_exist(names: list[str]) -> bool:
    """True if all are there. A missing one ends the build, or, while LBD_PARTIAL=1, is skipped aloud."""
    missing = [n for n in names if not Path(n).exists()]
    for name in missing:
        skipped = ": not built (LBD_PARTIAL=1)" if PARTIAL else ""
        print(f"setup.py: {name} DOES NOT EXIST{skipped}", file=sys.stderr)
    if missing and not PARTIAL:
        raise SystemExit("setup.py: sources are missing")
    return not missing


def declared_extensions() -> list[Extension]:
    headers = sorted(str(p) for p in Path("lbd").rglob("*.h"))
    # The directory of every header, so that `cdef extern from "ring.h"` finds it from any package.
    include = [".", *sorted({str(Path(h).parent) for h in headers})]
    wanted = dict(EXTENSIONS)
    if os.environ.get("LBD_TEST_EXT") == "1":
        wanted.update(TEST_EXTENSIONS)
    extensions = []
    for name, libraries in wanted.items():
        source = name.replace(".", "/") + ".pyx"
        if sources_exist([source]):
            extensions.append(
                Extension(
                    name,
                    [source],
                    libraries=libraries,
                    include_dirs=include,
                    # any .pxd, .pxi or header may be inlined into any of them
                    depends=headers + sorted(str(p) for p in Path("lbd").rglob("*.px[di]")),
                    # what tests alone call is not measured, and quickly compiled
                    extra_compile_args=compile_args("1" if name.startswith("tests.") else OPTIMISE, name in LOOPS),
                    extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
                )
            )
    return extensions


class Captured:
    """What is written to descriptors 1 and 2, also by child processes, as `text` after the block."""

    def __enter__(self) -> "Captured":
        sys.stdout.flush()
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._saved = os.dup(1), os.dup(2)
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, saved in enumerate(self._saved, 1):
            os.dup2(saved, fd)
            os.close(saved)
        self._file.seek(0)
        self.text = self._file.read().decode(errors="replace")
        self._file.close()
        sys.stderr.write(self.text)
        if self.text:  # nothing was out of date: the last log stands
            Path(CYTHON_LOG).write_text(self.text)


def translate(extensions: list[Extension]) -> None:
    """Cython: .pyx to .c, below build/cython. A performance hint is an error."""
    from Cython.Build import cythonize

    captured = Captured()
    try:
        with captured:
            done = cythonize(
                extensions,
                nthreads=2,
                build_dir="build/cython",
                include_path=["."],
                compiler_directives=CYTHON_DIRECTIVES,
                emit_linenums=True,  # perf, gdb and objdump then name the line of the .pxd
                show_all_warnings=False,
            )
    finally:
        hinted = "performance hint" in captured.text
        if hinted:
            # or the next build would find the .c files up to date and say nothing
            shutil.rmtree("build/cython")
    if hinted:
        raise SystemExit(f"setup.py: Cython gives a performance hint (above, and in {CYTHON_LOG}): refused")
    sources = {e.name: e.sources for e in done}
    for e in extensions:  # NB: cythonize returns copies, without what setuptools noted in the originals
        e.sources = sources[e.name]


class build_ext(setuptools_build_ext):
    """Extensions in parallel; the BPF program with them; one build of a checkout at a time."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or 2

    def run(self) -> None:
        with build_lock():
            self.run_command("build_bpf")
            if self.extensions:
                translate(self.extensions)
                self.force = self.force or self.flags_changed()
            super().run()

    def flags_changed(self) -> bool:
        """Whether what is built already was compiled in another way: setuptools looks at the sources' dates alone."""
        stamp, flags = Path(self.build_lib, ".flags"), " ".join(compile_args(OPTIMISE, loop=True))
        same = stamp.exists() and stamp.read_text() == flags
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(flags)
        return not same


class build_py(setuptools_build_py):
    """The BPF object is package data, so it must be there before the packages are copied."""

    def run(self) -> None:
        with build_lock():
            self.run_command("build_bpf")
        super().run()


class build_bpf(Command):
    """clang: lbd/xdp/steer.bpf.c to lbd/xdp/steer.bpf.o, checked to hold its section and maps."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        if not sources_exist([BPF_PROGRAM]):
            return
        source = Path(BPF_PROGRAM)
        target = source.with_suffix(".o")
        inputs = [source, *source.parent.glob("*.h"), Path(__file__)]
        if target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
            return
        clang = os.environ.get("CLANG") or shutil.which("clang")
        if not clang:
            raise SystemExit("setup.py: clang is needed for the BPF program (make setup installs it)")
        partial = target.with_name(target.name + ".tmp")
        # For -target bpf clang neither searches the multiarch directory, where asm/types.h lives, nor
        # says that this is a 64-bit host: libc would then ask for its 32-bit headers (gnu/stubs-32.h).
        machine = platform.machine()
        multiarch = sysconfig.get_config_var("MULTIARCH") or f"{machine}-linux-gnu"
        command = [clang, "-O2", "-g", "-target", "bpf", "-Wall", "-Werror"]
        command += [f"-I/usr/include/{multiarch}", f"-D__{machine}__"]
        command += ["-c", str(source), "-o", str(partial)]
        print(*command)
        if subprocess.run(command).returncode:
            raise SystemExit(f"setup.py: clang failed on {source}")
        problem = bpf_object_problem(partial.read_bytes())
        if problem:
            raise SystemExit(f"setup.py: {partial} {problem}")
        partial.rename(target)


def bpf_object_problem(elf: bytes) -> str | None:
    """What makes this BPF object useless, if anything: a section or a map that isn't in it."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return "is no little-endian ELF64 file"

    def text(table: bytes, at: int) -> str:
        return table[at : table.index(b"\0", at)].decode()

    shoff, shnum, shstrndx = struct.unpack_from("<Q", elf, 40)[0], *struct.unpack_from("<HH", elf, 60)
    # Elf64_Shdr: name type flags addr offset size link info addralign entsize
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, shoff + 64 * i) for i in range(shnum)]
    content = [elf[h[4] : h[4] + h[5]] for h in headers]
    names = [text(content[shstrndx], h[0]) for h in headers]
    if not any(headers[names.index(s)][5] for s in BPF_SECTIONS if s in names):
        return f"has no code in a section named {' or '.join(BPF_SECTIONS)}"
    if ".maps" not in names:
        return "has no .maps section"
    symtab = names.index(".symtab")
    # Elf64_Sym: name info other shndx value size
    symbols = struct.iter_unpack("<IBBHQQ", content[symtab])
    maps = {text(content[headers[symtab][6]], s[0]) for s in symbols if s[3] == names.index(".maps")}
    missing = [m for m in BPF_MAPS if m not in maps]
    if missing:
        return f"lacks of its maps {', '.join(missing)} (it has {', '.join(sorted(maps - {''}))})"
    return None


_lock_depth = 0


class build_lock:
    """Held while files are written: two builds in one checkout wait for each other."""

    def __enter__(self) -> None:
        global _lock_depth
        if _lock_depth == 0:
            Path("build").mkdir(exist_ok=True)
            type(self).file = open("build/.lock", "w")
            fcntl.flock(type(self).file, fcntl.LOCK_EX)
        _lock_depth += 1

    def __exit__(self, *exc: object) -> None:
        global _lock_depth
        _lock_depth -= 1
        if _lock_depth == 0:
            type(self).file.close()


os.chdir(Path(__file__).resolve().parent)
setup(
    ext_modules=declared_extensions(),
    cmdclass={"build_bpf": build_bpf, "build_ext": build_ext, "build_py": build_py},
)
