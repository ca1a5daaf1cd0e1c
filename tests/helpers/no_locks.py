"""A file system that lacks something, for real processes: a C library for LD_PRELOAD with failing calls."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define FAIL(number) do { errno = (number); return -1; } while (0)
#define NEXT(name) __typeof__(name) *next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#ifdef FLOCK
int flock(int descriptor, int operation) { (void)descriptor; (void)operation; FAIL(FLOCK); }
#endif

#if defined(FSYNC) || defined(FSYNC_FOLDER)
int fsync(int descriptor) {
    NEXT(fsync);
    struct stat found;
    int is_folder = !fstat(descriptor, &found) && S_ISDIR(found.st_mode);
#ifdef FSYNC_FOLDER
    if (is_folder) FAIL(FSYNC_FOLDER);
#endif
#ifdef FSYNC
    if (!is_folder) FAIL(FSYNC);
#endif
    return next(descriptor);
}
#endif

#ifdef SYMLINK
int symlink(const char *target, const char *path) { (void)target; (void)path; FAIL(SYMLINK); }
#endif

#ifdef RENAME /* over a file that exists */
int rename(const char *old, const char *path) {
    NEXT(rename);
    if (!access(path, F_OK)) FAIL(RENAME);
    return next(old, path);
}
#endif

#ifdef DIRECT /* a write past the page cache */
ssize_t write(int descriptor, const void *content, size_t size) {
    NEXT(write);
    if (fcntl(descriptor, F_GETFL) & O_DIRECT) FAIL(DIRECT);
    return next(descriptor, content, size);
}
#endif
"""


def build_shim(folder: Path, **errnos: int | None) -> Path:
    """Compile a library with failing calls: `flock`, `fsync` (of files), `fsync_folder`, `symlink`, `rename`, `direct`.

    Each is given the errno that it fails with; `rename` fails where the new name exists, `direct` in writes to files
    that are open for O_DIRECT. Set LD_PRELOAD to the path that is returned. Skips where there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, cc")
    given = {name: number for name, number in errnos.items() if number is not None}
    assert set(given) <= {"flock", "fsync", "fsync_folder", "symlink", "rename", "direct"}
    defines = [f"-D{name.upper()}={number}" for name, number in sorted(given.items())]
    path = folder / f"shim-{hashlib.sha256(' '.join(defines).encode()).hexdigest()[:12]}.so"
    if not path.exists():
        source = path.with_suffix(".c")
        source.write_text(SOURCE)
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *defines, "-o", path, source, "-ldl"]
        subprocess.run(list(map(str, command)), check=True)
    return path


def preloading(shim: Path) -> dict[str, str]:
    """Return this process's environment with the library preloaded."""
    return {**os.environ, "LD_PRELOAD": str(shim)}
