"""Builds the package with libka.so in it.

By default cargo builds the library from the sources in this repository. KA_LIBRARY=/path/to/libka.so puts another
library into the package. KA_LIBRARY=system makes a package without a library. It loads the system's libka at run time.
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
    """Returns the version in Cargo.toml. In a source package, returns the version in its PKG-INFO."""
    if in_the_sources():
        text = (ROOT / "Cargo.toml").read_text()
        return re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1)
    text = (HERE / "PKG-INFO").read_text()
    return re.search(r"^Version: (.+)$", text, re.MULTILINE).group(1)


def library():
    """Returns the path of the libka.so for the package. Builds it if necessary."""
    if CHOSEN:
        path = Path(CHOSEN)
        if not path.is_file():
            raise SystemExit(f"KA_LIBRARY is {CHOSEN}: there is no such file")
        return path
    if not in_the_sources():
        raise SystemExit(
            "libka.so is needed: set KA_LIBRARY=/path/to/libka.so to put it into the package, "
            "or KA_LIBRARY=system to use the system's at run time"
        )
    if shutil.which("cargo") is None:
        raise SystemExit("cargo is needed to build libka.so; to use an existing one, set KA_LIBRARY=/path/to/libka.so")
    subprocess.run(["cargo", "build", "--locked", "--release", "--quiet", "--package", "ka"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / os.environ.get("CARGO_BUILD_TARGET", "") / "release" / "libka.so"


def machine(path):
    """Returns the processor of a library, from e_machine in the ELF header, as in the name of a wheel."""
    with open(path, "rb") as file:
        header = file.read(20)
    number = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF" or number not in (62, 183):
        raise SystemExit(f"{path} is not a library for x86_64 or aarch64")
    return {62: "x86_64", 183: "aarch64"}[number]


class BuildPy(build_py):
    def run(self):
        super().run()
        if not SYSTEM:
            self.copy_file(str(library()), os.path.join(self.build_lib, "ka", "libka.so"))
            if in_the_sources():
                # The licences of the code in the library.
                copyright = ROOT / "pkg" / "debian" / "copyright"
                self.copy_file(str(copyright), os.path.join(self.build_lib, "ka", "copyright"))


class Wheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = SYSTEM

    def get_tag(self):
        if SYSTEM:
            return ("py3", "none", f"linux_{platform.machine()}")
        # The package calls the library through ctypes, so one wheel works with every Python. The library needs glibc
        # 2.17 or newer, and musl can load the same file. The tests of the library check both.
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
        # Build outside the source tree, so that it stays unchanged and no file of an older build is used.
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
    )
finally:
    shutil.rmtree(scratch, ignore_errors=True)
