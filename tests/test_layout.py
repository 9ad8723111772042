"""The rules of the layout, read off the syntax trees and the packaging files."""

import ast
import configparser
import importlib
import importlib.util
import re
import tomllib

import pytest

from lkm_calc import MODELS

from .support import ROOT

SOURCES = [p for folder in ("lkm_calc", "train") for p in sorted((ROOT / folder).rglob("*.py"))]

ROOMS = {
    "lkm_calc": [
        *("units", "files", "runtime", "page", "embeddings", "graph", "nn", "models"),
        *("uncertainty", "potential", "compile.kernels", "compile", "committee"),
        *("calculator", "dispersion"),
        *("torchsim", "testing", "md", "pretrained", "commands", "__main__"),
    ],
    "train": [
        *("config", "configs", "data", "formats", "download", "doctor.checks"),
        *("doctor.consistency", "doctor", "report", "gradients", "sampling", "state", "fit"),
        *("learn", "commands", "__main__"),
    ],
}
"""Rooms (folders) and the modules beside them; each may import from those before it."""

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DATA = {"pretrained", "configs"}
"""Folders of data, of any number of files."""
LARGEST_ROOM = 10
"""Files of a room, its __init__.py among them."""
MIRRORS = {("compile.kernels", "models")}
"""Rooms of which the first may reach past the door of the second: a kernel mirrors the classes of
its architecture, and architectures have classes of the same name."""


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Yield (level, module) of every import, those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def room_of(package, parts):
    """Return the room of a path below a package, or the module beside the rooms."""
    names = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
    return next((name for name in names if name in ROOMS[package]), None)


def crossings(package):
    """Yield (path, its room, other room, what is named within it) of imports between rooms."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        own = room_of(package, parts)
        if own is None:
            assert parts == ("__init__",), f"{'/'.join(parts)} is in no room of ROOMS"
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = parts[: len(parts) - node.level]
                full = [*above, *(node.module.split(".") if node.module else ())]
                for alias in node.names:
                    other = room_of(package, [*full, alias.name])
                    if other is not None and other != own:
                        yield path, own, other, full[len(other.split(".")) :]


@pytest.mark.parametrize("package", ROOMS)
def test_imports_between_rooms_point_one_way(package):
    order = ROOMS[package]
    for path, own, other, _ in crossings(package):
        assert order.index(other) < order.index(own), f"{own}/{path.name} imports from {other}"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_are_entered_by_their_door(package):
    for path, own, other, within in crossings(package):
        allowed = not within or (own, other) in MIRRORS
        assert allowed, f"{own}/{path.name} imports from {other}.{'.'.join(within)}"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_import_what_there_is(path):
    """Without importing the benchmarks themselves, which may need other packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.split(".")[0] in ("lkm_calc", "train"):
            found = importlib.import_module(module)
            missing = [one.name for one in node.names if not hasattr(found, one.name)]
            missing = [n for n in missing if importlib.util.find_spec(f"{module}.{n}") is None]
            assert not missing, f"{path.name} imports {missing} from {module}"


@pytest.mark.parametrize("folder", ["train", "studies", "benchmarks", "md_examples"])
def test_the_library_is_used_through_one_room_at_most(folder):
    roots = ("lkm_calc", "lkm_train") if folder == "train" else ("lkm_calc", "lkm_train", "train")
    for path in sorted((ROOT / folder).rglob("*.py")):
        for level, module in imported(path):
            if level == 0 and module.split(".")[0] in roots:
                assert module.count(".") <= 1, f"{path.name} imports {module}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_name_nothing_deeper_than_a_room(page):
    """But for docstrings of modules, which pages show without their names."""
    text = re.sub(r"^::: .*\n.*\n.*\n +show_root_heading: false", "", page.read_text(), flags=re.M)
    for name in re.findall(r"(?<![\w./-])((?:lkm_calc|lkm_train|train)(?:\.[A-Za-z_]\w*)+)", text):
        root, *parts = name.split(".")
        folder = ROOT / ("train" if root == "lkm_train" else root)
        for k in range(2, len(parts) + 1):
            place = folder.joinpath(*parts[:k])
            assert not place.with_suffix(".py").exists(), f"{name} is deeper than a room"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_are_small(package):
    for folder in (ROOT / package, *(ROOT / package).rglob("*/")):
        names = [p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".pyc"]
        if folder.name not in DATA:
            assert len(names) <= LARGEST_ROOM, f"{folder.name} has {len(names)} files"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_say_what_they_are_for_and_export_names_of_their_own(package):
    for door in sorted((ROOT / package).rglob("*/__init__.py")):
        found = tree(door)
        assert ast.get_docstring(found), f"{door.parent.name} does not say what it is for"
        modules = {path.stem for path in door.parent.iterdir()}
        exported = {
            alias.asname
            for node in found.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        shadowed = modules & exported
        assert not shadowed, f"{door.parent.name} exports what has the name of a module: {shadowed}"


def test_architectures_do_not_import_each_other():
    package = "lkm_calc.models."
    modules = {cls.__module__ for cls in MODELS.values()}
    architectures = {name.removeprefix(package) for name in modules if name.startswith(package)}
    assert architectures >= {"dimenetpp", "mxmnet", "pamnet"}
    for name in architectures:
        path = ROOT / "lkm_calc" / "models" / f"{name}.py"
        siblings = {module for level, module in imported(path) if level == 1}
        assert not siblings & architectures, f"{name} imports {siblings & architectures}"


def test_the_sources_of_kernels_are_packaged():
    patterns = setup()["options.package_data"]["lkm_calc.compile.kernels"].split(", ")
    folder = ROOT / "lkm_calc" / "compile" / "kernels"
    packaged = {path for pattern in patterns for path in folder.glob(pattern)}
    sources = {path for path in folder.rglob("*") if path.suffix in (".cpp", ".hpp")}
    assert len(sources) >= 4
    assert packaged == sources


def test_the_library_never_names_the_training_module():
    for path in sorted((ROOT / "lkm_calc").rglob("*.py")):
        for _, module in imported(path):
            assert module.split(".")[0] not in ("train", "lkm_train"), path.name


def test_the_training_module_imports_its_siblings_relatively():
    for path in sorted((ROOT / "train").rglob("*.py")):
        for _, module in imported(path):
            assert module.split(".")[0] not in ("train", "lkm_train"), path.name


def test_lkm_imports_nothing_but_torch():
    roots = {
        module.split(".")[0] for _, module in imported(ROOT / "lkm_calc" / "embeddings" / "lkm.py")
    }
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
