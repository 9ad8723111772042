"""The rules of the layout, read off the syntax trees and the packaging files."""

import ast
import configparser
import tomllib

import pytest

from .support import ROOT

LAYERS = [
    {"units", "geometry", "basis", "layers", "scatter", "lkm"},
    {"neighbours", "skin", "atomic", "precision", "device", "recording", "threads", "stopping"},
    {"program_files"},
    {"disagreement", "latent", "collection"},
    {"graph"},
    {"energy", "triplets", "angular"},
    {"multiplex"},
    {"models"},
    {"forces", "calibration", "checkpoint", "hessian", "dispersion", "zbl"},
    {"padding", "kernels"},
    {"compiled", "kernel_forces", "guards"},
    {"committee"},
    {"calculator"},
    {"torchsim"},
    {"constant_pressure", "ensembles", "md_record", "plots"},
    {"md"},
    {"commands"},
    {"__main__"},
]
"""Modules of lkm_calc; each may import from the layers before its own, and from its own."""

SOURCES = [p for folder in ("lkm_calc", "train") for p in sorted((ROOT / folder).rglob("*.py"))]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Yield (level, module) of every import, those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def layer_of(module):
    return next(k for k, names in enumerate(LAYERS) if module in names)


def test_imports_of_lkm_calc_point_one_way():
    for path in sorted((ROOT / "lkm_calc").glob("*.py")):
        if path.stem == "__init__":
            continue
        own = layer_of(path.stem)
        for level, module in imported(path):
            if level == 1:
                assert layer_of(module.split(".")[0]) <= own, f"{path.name} imports {module}"


def test_architectures_do_not_import_each_other():
    for path in sorted((ROOT / "lkm_calc" / "models").glob("*.py")):
        if path.stem != "__init__":
            assert all(level != 1 for level, _ in imported(path)), path.name


def test_the_library_never_names_the_training_module():
    for path in sorted((ROOT / "lkm_calc").rglob("*.py")):
        for _, module in imported(path):
            assert module.split(".")[0] not in ("train", "lkm_train"), path.name


def test_the_training_module_imports_its_siblings_relatively():
    for path in sorted((ROOT / "train").rglob("*.py")):
        for _, module in imported(path):
            assert module.split(".")[0] not in ("train", "lkm_train"), path.name


def test_lkm_imports_nothing_but_torch():
    roots = {module.split(".")[0] for _, module in imported(ROOT / "lkm_calc" / "lkm.py")}
    assert roots <= {"torch", "collections", "typing", "jaxtyping"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_imports_in_functions_no_print_no_bare_except(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{path.name}: {node.name} imports"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", path.name
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, path.name
            assert not all(isinstance(n, ast.Pass) for n in node.body), path.name


def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_packages_listed_are_the_packages_on_disk():
    listed = set(setup()["options"]["packages"].split())
    on_disk = set()
    for folder, name in (("lkm_calc", "lkm_calc"), ("train", "lkm_train")):
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            on_disk.add(".".join((name, *parts)))
    assert listed == on_disk


def test_every_import_is_a_declared_dependency():
    extras = " ".join(setup()["options.extras_require"].values())
    requirements = setup()["options"]["install_requires"].split() + extras.split()
    declared = {r.split(">")[0].replace("-", "_") for r in requirements}
    distributions = {"torch_sim": "torch_sim_atomistic"}
    standard = __import__("sys").stdlib_module_names
    for path in SOURCES:
        for level, module in imported(path):
            root = module.split(".")[0]
            if level == 0 and root not in standard and root != "lkm_calc":
                assert distributions.get(root, root) in declared, f"{path.name} imports {root}"


def test_torch_is_pinned_in_the_constraints_only():
    assert "torch==" in (ROOT / "constraints.txt").read_text()
    assert "torch==" not in (ROOT / "setup.cfg").read_text()


def test_version_is_the_same_everywhere():
    version = setup()["metadata"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_pyproject_holds_no_metadata_of_its_own():
    assert "project" not in tomllib.loads((ROOT / "pyproject.toml").read_text())
