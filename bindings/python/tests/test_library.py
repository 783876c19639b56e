"""Tests which library is loaded, and that the functions, structs and constants equal those of ka.h."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

import ka
from ka import _library

PACKAGE = Path(ka.__file__).parent


def header():
    return re.sub(r"/\*.*?\*/", "", (ROOT / "include/ka.h").read_text(), flags=re.DOTALL)


def declarations():
    """Yields the functions of ka.h with their results and arguments."""
    for result, name, arguments in re.findall(r"^(\w[\w *]*?)\b(ka_\w+)\(([^)]*)\);", header(), re.MULTILINE | re.DOTALL):
        yield name, result.strip(), [] if arguments == "void" else [part.strip() for part in arguments.split(",")]


def kind(declared):
    """Returns the type of ctypes for a type of C."""
    kinds = {
        "int": ctypes.c_int,
        "size_t": ctypes.c_size_t,
        "uint32_t": ctypes.c_uint32,
        "uint64_t": ctypes.c_uint64,
        "void": None,
    }
    pointers = {"struct ka_config": _library.Config, "struct ka_status": _library.Status, "struct ka_beat": _library.Beat}
    declared = declared.replace("const ", "")
    if "[" in declared or declared.startswith(("uint8_t *", "char *")):
        return ctypes.c_char_p
    if declared.startswith("struct ka_reaper *"):
        return ctypes.c_void_p
    base, star, _ = declared.partition("*")
    base = base.strip() if star or " " not in declared else declared.rsplit(" ", 1)[0]
    return ctypes.POINTER(pointers.get(base) or kinds[base]) if star else kinds[base]


def test_functions_equal_those_of_the_header():
    declared = {name: (kind(result), [kind(part) for part in parts]) for name, result, parts in declarations()}
    assert declared == _library.PROTOTYPES


def test_the_module_has_each_function_without_the_prefix():
    for name in _library.PROTOTYPES:
        short = name[3:]
        if short.startswith("reaper_"):
            method = {"new": "__init__", "free": "close", "len": "__len__"}.get(short[7:], short[7:])
            assert hasattr(ka.Reaper, method), name
        else:
            assert short in ka.__all__ and callable(getattr(ka, short)), name


def test_structs_equal_those_of_the_header():
    for name, struct in [("config", _library.Config), ("status", _library.Status), ("beat", _library.Beat)]:
        body = re.search(rf"struct ka_{name} \{{(.*?)\}};", header(), re.DOTALL).group(1)
        fields = [tuple(line.strip(" ;").split()) for line in body.splitlines() if line.strip()]
        types = {"uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32, "uint64_t": ctypes.c_uint64}
        assert [(field, types[kind]) for kind, field in fields] == list(struct._fields_)


def test_constants_equal_those_of_the_header():
    constants = dict(re.findall(r"^#define KA_(\w+) \(?(-?\d+)\)?$", header(), re.MULTILINE))
    for name in ("IDLE_MAX", "INTVL_MAX", "CNT_MAX", "BEAT_NONCE_SIZE", "BEAT_SIZE"):
        assert getattr(ka, name) == int(constants[name])
    for name in ("KEEP", "AUTO", "NONE", "ON", "OFF"):
        assert getattr(_library, name) == int(constants[name])
    missed = {name: int(value) for name, value in constants.items() if name.startswith("MISSED_")}
    assert missed == {f"MISSED_{bit.name}": bit.value for bit in ka.Missed}


def test_versions_equal_cargo_toml():
    text = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    major, minor, patch = map(int, text.split("."))
    assert ka.version() == text
    assert ka.version_number() == 1_000_000 * major + 1000 * minor + patch
    assert _library.SONAME == f"libka.so.{major}"


def run(folder, code, **env):
    environment = {**os.environ, "PYTHONPATH": str(folder), **env}
    environment.pop("LD_PRELOAD", None)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_library_of_the_package_is_loaded():
    assert _library.LIBRARY._name == str(PACKAGE / "libka.so")


def test_a_package_without_a_library_loads_the_library_of_the_system(tmp_path):
    copy = tmp_path / "ka"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("libka.so", "__pycache__"))
    # The loader searches this folder first, so a libka that is installed on the machine has no effect.
    system = tmp_path / "system"
    system.mkdir()
    (system / _library.SONAME).write_text("no library")
    failed = run(tmp_path, "import ka", LD_LIBRARY_PATH=str(system))
    assert failed.returncode == 1
    assert "ImportError: no libka: " in failed.stderr and f"{copy}/libka.so does not exist" in failed.stderr
    assert f"{system}/{_library.SONAME}: " in failed.stderr

    shutil.copy(PACKAGE / "libka.so", system / _library.SONAME)
    code = "import ka; print(ka.version(), ka._library.LIBRARY._name, open('/proc/self/maps').read())"
    found = run(tmp_path, code, LD_LIBRARY_PATH=str(system))
    assert found.stdout.startswith(f"{ka.version()} {_library.SONAME} "), found.stderr
    assert f" {system}/{_library.SONAME}\n" in found.stdout


def test_the_import_error_names_a_broken_library(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "ka", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ka/libka.so").write_text("no library")
    failed = run(tmp_path, "import ka")
    assert failed.returncode == 1 and f"ImportError: {tmp_path}/ka/libka.so: " in failed.stderr
