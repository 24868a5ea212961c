"""Packaging reads everything from settings.ini, so that version and requirements stand in one place."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}
extras["all"] = sorted({requirement for name in extras if name != "dev" for requirement in extras[name]})

# README.md's links are relative, which holds on GitHub; PyPI needs whole addresses.
blob = f"{cfg['git_url']}/blob/{cfg['branch']}/"
readme = re.sub(r"(!?\[[^\]]*\]\()(?![a-z][a-z0-9+.-]*:|#)([^)\s]+\))",
                lambda link: link[1] + (blob.replace("/blob/", "/raw/") if link[1][0] == "!" else blob) + link[2],
                (HERE / "README.md").read_text(encoding="utf-8"))

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"]},
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    include_package_data=True,
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: {v}" for v in cfg["py_versions"].split()),
    ],
    zip_safe=False,
)
