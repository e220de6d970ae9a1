"""Packaging: `titn` with its linked sub-packages `titn.kernels` and `titn.pipelines`; metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["titn", "titn.*"]),
    package_data={"titn": ["py.typed", "recipes/*.yaml", "report/template.html"]},
)
