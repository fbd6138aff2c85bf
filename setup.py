"""The packages and the native extension, which ``pyproject.toml`` cannot say; the rest stands there."""

from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

MISSING = "adaptc: native kernels are NOT built, torch is used instead (slower): "

# Without -ffast-math, so that NaN stays NaN; contraction into fused multiply-adds only.
UNIX_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-g0",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]


class BuildNative(build_ext):
    """Builds with OpenMP, else without, else says so and goes on: adaptc works on torch alone."""

    def build_extension(self, ext):
        flags = ["/O2", "/std:c++17", "/EHsc"] if self.compiler.compiler_type == "msvc" else UNIX_FLAGS
        openmp = "/openmp" if self.compiler.compiler_type == "msvc" else "-fopenmp"
        failure = None
        for extra in ([openmp], []):
            ext.extra_compile_args = [*flags, *extra]
            ext.extra_link_args = [e for e in extra if e.startswith("-")]
            try:
                return super().build_extension(ext)
            except Exception as error:  # compilers fail in many ways, and none may stop the install
                failure = error
        self.warn(f"{MISSING}{failure}")
        return None


def extensions():
    """The extension, or none where pybind11 is not installed (a build without isolation)."""
    try:
        from pybind11 import get_include
    except ImportError:
        print(f"{MISSING}pybind11 is not installed")
        return []
    sources = sorted(str(p) for p in Path("csrc").rglob("*.cpp"))
    headers = sorted(str(p) for p in Path("csrc").rglob("*.h"))
    return [
        Extension(
            "adaptc._native",
            sources,
            depends=headers,
            include_dirs=["csrc/include", get_include()],
            language="c++",
            optional=True,
        )
    ]


# The folder ir/ is the package adaptc.ir. The symlink adaptc/ir is for mypy and for imports
# without an install; it is not in an sdist, and followed as well it would list ir/ twice.
setup(
    packages=[
        *find_packages(include=["adaptc", "adaptc.*"], exclude=["adaptc.ir", "adaptc.ir.*"]),
        *(f"adaptc.{package}" for package in find_packages(include=["ir", "ir.*"])),
    ],
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative},
)
