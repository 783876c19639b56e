"""Builds the package with libka.so in it.

The library is that of the sources around it, built by cargo. KA_LIBRARY=/path/to/libka.so takes another;
KA_LIBRARY=system takes none: the package then loads the system's at run time.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHOSEN = os.environ.get("KA_LIBRARY", "")
SYSTEM = CHOSEN == "system"


def in_the_sources():
    return (ROOT / "crates" / "ka-core").is_dir()


def version():
    """The version of Cargo.toml; of a source package, the one that it was made with."""
    if in_the_sources():
        text = (ROOT / "Cargo.toml").read_text()
        return re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1)
    text = (HERE / "PKG-INFO").read_text()
    return re.search(r"^Version: (.+)$", text, re.MULTILINE).group(1)


def library():
    """The libka.so that goes into the package."""
    if CHOSEN:
        path = Path(CHOSEN)
        if not path.is_file():
            raise SystemExit(f"KA_LIBRARY is {CHOSEN}: there is no such file")
        return path
    if not in_the_sources():
        raise SystemExit(
            "libka.so is needed: KA_LIBRARY=/path/to/libka.so puts it into the package, "
            "KA_LIBRARY=system uses the system's at run time"
        )
    if shutil.which("cargo") is None:
        raise SystemExit("cargo is needed to build libka.so, or KA_LIBRARY=/path/to/libka.so")
    subprocess.run(["cargo", "build", "--locked", "--release", "--quiet", "--package", "ka"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / os.environ.get("CARGO_BUILD_TARGET", "") / "release" / "libka.so"


def machine(path):
    """The processor that a library is for, as a wheel's name has it: e_machine of the ELF header."""
    with open(path, "rb") as file:
        header = file.read(20)
    number = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF" or number not in (62, 183):
        raise SystemExit(f"{path} is no library for x86_64 or aarch64")
    return {62: "x86_64", 183: "aarch64"}[number]


class BuildPy(build_py):
    def run(self):
        super().run()
        if not SYSTEM:
            self.copy_file(str(library()), os.path.join(self.build_lib, "ka", "libka.so"))
            if in_the_sources():
                # Whose code is in the library.
                copyright = ROOT / "pkg" / "debian" / "copyright"
                self.copy_file(str(copyright), os.path.join(self.build_lib, "ka", "copyright"))


class Wheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = SYSTEM

    def get_tag(self):
        if SYSTEM:
            return ("py3", "none", f"linux_{platform.machine()}")
        # It is called through ctypes: any Python does. Its newest glibc symbols are of 2.17 or older, and musl's
        # loader takes the same file; tests of the library prove both.
        processor = machine(library())
        return ("py3", "none", ".".join(f"{tag}_{processor}" for tag in ("manylinux_2_17", "manylinux2014", "musllinux_1_2")))


class WithLibrary(Distribution):
    def has_ext_modules(self):
        return not SYSTEM


scratch = tempfile.mkdtemp(prefix="libka-")
try:
    setup(
        version=version(),
        cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel},
        distclass=WithLibrary,
        # The source tree stays as it is, and nothing of an older build gets into this one.
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
    )
finally:
    shutil.rmtree(scratch, ignore_errors=True)
