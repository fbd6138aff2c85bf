"""The list of packages, which ``pyproject.toml`` cannot say; the rest stands there."""

from setuptools import find_packages, setup

# The folder ir/ is the package adaptc.ir. The symlink adaptc/ir is for mypy and for imports
# without an install; it is not in an sdist, and followed as well it would list ir/ twice.
setup(
    packages=[
        *find_packages(include=["adaptc", "adaptc.*"], exclude=["adaptc.ir", "adaptc.ir.*"]),
        *(f"adaptc.{package}" for package in find_packages(include=["ir", "ir.*"])),
    ]
)
