"""Architectures of one's own: registered, offered by an installed package, or given by --import."""

import logging
import multiprocessing
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from lkm_calc import (
    MODELS,
    EnergyModel,
    LKMCalculator,
    build_model,
    load_model,
    register_model,
    save_model,
)
from lkm_calc.__main__ import main as lkm_calc_main
from lkm_calc.compile.aot import _fingerprint
from lkm_calc.models import ArchitectureError, PAMNet, import_architectures
from lkm_calc.models.registry import check_class
from lkm_calc.potential.checkpoint import ModelFileError, read_header
from train.__main__ import main as lkm_train_main

from ..support import ROOT, SMALL, graph_of, rattled, rmd17_arrays, small_model, write_npz
from ..train.fit.test_parallel import TIMEOUT, environment

BUNDLED = tuple(SMALL)
"""The architectures of lkm-calc."""

MODULE = """
import torch

from lkm_calc import EnergyModel, register_model
from lkm_calc.models import AtomOutput


{decorator}
class Springs(EnergyModel):
    name = "springs"

    def __init__(self, hidden: int = 8, cutoff: float = 5.0):
        super().__init__(cutoff, dict(hidden=hidden, cutoff=cutoff))
        self.embedding = torch.nn.Embedding(95, hidden)

    def atom_output(self, graph):
        r = graph.edge_vectors().square().sum(1).sqrt().to(self.dtype)
        source, target = graph.edge_index
        pairs = self.embedding(graph.numbers)[source] * (1 - r / self.cutoff).relu()[:, None] ** 3
        x = torch.zeros_like(self.embedding(graph.numbers)).index_add(0, target, pairs)
        return AtomOutput(x.square().sum(1), (x, 2 * x))
"""


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Forget afterwards what a test registers and imports."""
    monkeypatch.setattr(MODELS, "_registered", dict(MODELS.registered))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield MODELS
    for name in set(sys.modules) - before:
        if name.startswith("springs_"):
            del sys.modules[name]


def write_package(folder, name="springs-net", entry="springs = springs_net:Springs", text=None):
    """Put an installed package into a folder: a module and its metadata."""
    folder.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    text = MODULE.format(decorator="") if text is None else text
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[lkm_calc.models]\n{entry}\n")
    (info / "RECORD").write_text(f"{module}.py,,\n")
    return folder


@pytest.fixture
def package(tmp_path):
    return write_package(tmp_path / "site-packages")


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    return package


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "springs_own.py"
    path.write_text(MODULE.format(decorator="@register_model"))
    return path


@pytest.fixture
def toml(tmp_path):
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(30))
    path = tmp_path / "own.toml"
    path.write_text(
        f"[data]\ntrain = '{data}'\nn_train = 20\nn_validation = 8\n"
        '[model]\nname = "springs"\n[model.hypers]\nhidden = 4\n'
        "[optimiser]\nepochs = 2\nbatch_size = 5\n"
        f"[run]\ndirectory = '{tmp_path / 'run'}'\ndevice = 'cpu'\n"
    )
    return path


class Abstract(EnergyModel):
    name = "abstract"


class Whole(Abstract):
    name = "whole"

    def __init__(self, width: int = 3, cutoff: float = 4.0):
        super().__init__(cutoff, {"width": width, "cutoff": cutoff})

    def atom_output(self, graph):
        raise NotImplementedError


def changed(name="other", init=None):
    """Return a class like Whole with another name or other arguments."""
    members = {"name": name} if init is None else {"name": name, "__init__": init}
    return type("Changed", (Whole,), members)


def test_a_registered_class_is_a_model_like_others(tmp_path):
    assert register_model(Whole) is Whole
    assert MODELS["whole"] is Whole
    assert "whole" in MODELS
    assert set(MODELS) == {*BUNDLED, "whole"}
    assert len(MODELS) == len(BUNDLED) + 1
    assert MODELS.get("nothing") is None
    assert dict(MODELS.items())["pamnet"] is PAMNet
    assert isinstance(build_model("whole", width=5), Whole)
    with pytest.raises(
        ValueError, match="whole has no argument wings; its arguments are width, cutoff"
    ):
        build_model("whole", wings=2)
    with pytest.raises(KeyError):
        MODELS["nothing"]
    with pytest.raises(TypeError):
        MODELS["mine"] = Whole


def of_any(self, **options): ...
def of_many(self, *layers): ...
def of_no_default(self, width): ...
def of_a_dtype(self, width=torch.float32): ...
def of_a_tuple(self, widths=(3, 3)): ...


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Abstract, "Abstract is abstract: it does not define atom_output"),
        (changed("My Net"), "has the invalid name 'My Net'.*lower case"),
        (changed("../net"), "has the invalid name '../net'"),
        (changed(""), "has the invalid name ''"),
        (changed(None), "has the invalid name None"),
        (
            changed("pamnet"),
            r"the name 'pamnet', which is already used by lkm_calc\.models\.pamnet\.PAMNet",
        ),
        (type("Narrow", (PAMNet,), {}), "the name 'pamnet', which"),
        (changed(init=of_any), r"has the argument \*\*options; declare each argument by name"),
        (changed(init=of_many), r"has the argument \*layers"),
        (changed(init=of_no_default), "has no default for width"),
        (changed(init=of_a_dtype), r"width=torch\.float32, which is not a JSON value"),
        (changed(init=of_a_tuple), r"widths=\(3, 3\), which is not a JSON value"),
    ],
)
def test_what_cannot_be_registered_is_refused(cls, message):
    before = dict(MODELS.registered)
    with pytest.raises(ArchitectureError, match=message):
        register_model(cls)
    assert MODELS.registered == before


@pytest.mark.parametrize("thing", [torch.nn.Linear, Whole(), 5, None])
def test_what_is_no_class_of_models_is_refused(thing):
    with pytest.raises(ArchitectureError, match="is not a model class; derive it from Energy"):
        check_class(thing)


def test_a_class_that_is_defined_again_takes_the_place_of_the_old_one():
    register_model(Whole)
    again = type("Whole", (Whole,), {"__qualname__": "Whole", "__module__": __name__})
    register_model(again)
    assert MODELS["whole"] is again


def renamed(self, width=3, cutoff=4.0):
    EnergyModel.__init__(self, cutoff, {"size": width, "cutoff": cutoff})


def rounded(self, width=3, cutoff=4.0):
    EnergyModel.__init__(self, cutoff, {"width": 2 * (width // 2), "cutoff": cutoff})


def with_a_function(self, width=None, cutoff=4.0):
    EnergyModel.__init__(self, cutoff, {"width": width or torch.relu, "cutoff": cutoff})


@pytest.mark.parametrize(
    ("init", "hypers", "message"),
    [
        (renamed, {}, "has the arguments width, cutoff but the hypers size, cutoff"),
        (rounded, {"width": 5}, "was built with width=5 but has 4 in hypers"),
        (with_a_function, {}, "hyper width=<built-in.*relu.* not a JSON value"),
    ],
)
def test_hypers_that_would_not_rebuild_a_model_are_refused(init, hypers, message, tmp_path):
    cls = register_model(changed(init=init))
    with pytest.raises(ArchitectureError, match=message):
        build_model("other", **hypers)
    if not hypers:
        with pytest.raises(ArchitectureError, match=message):
            save_model(cls(), tmp_path / "model.safetensors")
        assert not list(tmp_path.iterdir())


def test_a_class_that_only_shares_a_name_is_not_saved(tmp_path):
    class Twisted(PAMNet):
        pass

    with pytest.raises(ValueError, match="Twisted is not its registered class"):
        save_model(Twisted(**SMALL["pamnet"]), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_installed_package_is_imported_only_when_its_model_is_asked_for(package):
    code = """\
        import sys
        sys.path.append(sys.argv[1])
        import importlib.metadata
        entry_points = importlib.metadata.entry_points
        def refuse(**group):  # torch looks for its own
            assert group.get("group") != "lkm_calc.models", "looked for entry points"
            return entry_points(**group)
        importlib.metadata.entry_points = refuse
        import lkm_calc
        from lkm_calc.models import registry
        assert registry.entry_points is refuse
        lkm_calc.build_model("pamnet", hidden=8)
        lkm_calc.load_model("rmd17-ethanol")
        registry.entry_points = entry_points
        assert "springs" in lkm_calc.MODELS and "springs" in list(lkm_calc.MODELS)
        assert len(lkm_calc.MODELS) == int(sys.argv[2]) + 1 and "summers" not in lkm_calc.MODELS
        assert "springs_net" not in sys.modules
        model = lkm_calc.build_model("springs", hidden=3)
        assert type(model) is sys.modules["springs_net"].Springs
    """
    command = [sys.executable, "-c", textwrap.dedent(code), package, str(len(BUNDLED))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


def test_a_file_of_a_package_loads_where_it_is_installed_and_names_it_elsewhere(
    installed, tmp_path, monkeypatch
):
    model = build_model("springs", hidden=3).double()
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    origin = {"module": "springs_net", "package": "springs-net", "version": "0.3"}
    assert read_header(path)["origin"] == origin
    graph = graph_of(rattled(), model)
    assert torch.equal(load_model(path)(graph).energy, model(graph).energy)

    monkeypatch.delitem(MODELS._registered, "springs")
    (installed / "springs_net-0.3.dist-info" / "entry_points.txt").unlink()
    with pytest.raises(
        ModelFileError,
        match=r"unknown architecture 'springs'.*the package springs"
        r"-net provides it: if you trust that package, run pip install springs-net\. Avail",
    ):
        load_model(path)  # fmt: skip
    with pytest.raises(ModelFileError, match="pip install springs-net"):
        LKMCalculator(path)
    assert lkm_calc_main(["info", str(path)]) == 1


def test_bundled_architectures_tell_no_origin(tmp_path):
    save_model(small_model("pamnet"), tmp_path / "model.safetensors")
    assert "origin" not in read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        (None, "Install the package or import the module"),
        ({"package": "x; rm -rf ~"}, "Install the package or import the module"),
        ({"package": "--index-url=x"}, "Install the package or import the module"),
        ({"package": ["springs"]}, "Install the package or import the module"),
        ([], "Install the package or import the module"),
        (
            {"module": "springs_own"},
            "the module springs_own defines it: import that module.*--import",
        ),
    ],
)
def test_what_a_file_says_of_its_origin_is_not_trusted(origin, message, tmp_path, monkeypatch):
    register_model(Whole)
    path = tmp_path / "model.safetensors"
    monkeypatch.setattr("lkm_calc.potential.checkpoint.origin_of", lambda cls: origin)
    model = Whole()
    model.embedding = torch.nn.Embedding(2, 2)  # weights, of which a dtype is read
    save_model(model, path)
    monkeypatch.delitem(MODELS._registered, "whole")
    with pytest.raises(ModelFileError, match=message):
        load_model(path)


def test_loading_imports_nothing_that_a_file_names(own_file, tmp_path):
    import_architectures([str(own_file)])
    path = tmp_path / "model.safetensors"
    save_model(build_model("springs"), path)
    assert read_header(path)["origin"] == {"module": "springs_own"}
    code = """\
        import sys
        import lkm_calc
        from lkm_calc.potential import ModelFileError
        sys.path.append(sys.argv[1])
        try:
            lkm_calc.load_model(sys.argv[2])
        except ModelFileError as error:
            assert "springs_own" in str(error)
        else:
            sys.exit("loaded")
        assert "springs_own" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path, path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=TIMEOUT)


@pytest.mark.parametrize(
    ("entry", "text", "message"),
    [
        ("springs = springs_net:Springs", "import nowhere", "cannot be imported .ModuleNotFoundE"),
        ("springs = springs_net:Springs", "1 +", "cannot be imported .SyntaxError"),
        ("springs = springs_net:Missing", None, "cannot be imported .AttributeError"),
        ("springs = springs_net:torch", None, "is not a model class"),
        ("summers = springs_net:Springs", None, "'summers', but the name of the class is"),
    ],
)
def test_a_package_that_is_broken_is_named(entry, text, message, tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(write_package(tmp_path / "site", entry=entry, text=text))
    name = entry.partition(" ")[0]
    assert name in MODELS
    assert len([*MODELS]) == len(BUNDLED) + 1
    with pytest.raises(ArchitectureError, match=message):
        build_model(name)
    assert isinstance(build_model("pamnet", **SMALL["pamnet"]), PAMNet)
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(30))
    toml = tmp_path / "run.toml"
    toml.write_text(
        f"[data]\ntrain = '{data}'\nn_train = 20\nn_validation = 8\n[model]\nname = '{name}'\n"
        f"[run]\ndirectory = '{tmp_path / 'run'}'\n"
    )
    assert lkm_train_main(["fit", str(toml)]) == 1
    assert "model.name: " in caplog.text
    assert not (tmp_path / "run").exists()


def test_two_packages_with_one_name_are_refused(installed, tmp_path, monkeypatch):
    other = write_package(tmp_path / "more", "springs-two", "springs = springs_two:Springs")
    monkeypatch.syspath_prepend(other)
    assert [*MODELS].count("springs") == 1
    with pytest.raises(
        ArchitectureError, match="packages springs-net and springs-two both provide"
    ):
        build_model("springs")


def test_a_package_may_register_its_class_as_well(tmp_path, monkeypatch):
    text = MODULE.format(decorator="@register_model")
    monkeypatch.syspath_prepend(write_package(tmp_path / "site", text=text))
    assert MODELS["springs"] is build_model("springs").__class__


def energy_in_a_worker(packed):
    calculator, atoms = pickle.loads(packed)
    return calculator.get_potential_energy(atoms)


def test_workers_that_are_started_afresh_find_a_model(own_file):
    import_architectures([str(own_file)])
    calculator, atoms = LKMCalculator(build_model("springs"), "cpu"), rattled()
    packed = pickle.dumps((calculator, atoms))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (energy,) = pool.map(energy_in_a_worker, [packed])
    assert energy == calculator.get_potential_energy(atoms)


def test_training_with_a_file_of_ones_own(own_file, toml, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    fit = ["fit", str(toml)]
    assert lkm_train_main(fit) == 1
    assert "model.name is 'springs'; choose one of" in caplog.text
    assert "--import" in caplog.text
    with_own = ["--import", str(own_file)]
    assert lkm_train_main([*fit, *with_own, "--stop-after", "3"]) == 3
    assert lkm_train_main([*fit, *with_own]) == 0, "it goes on from the saved state"
    model = tmp_path / "run" / "model.safetensors"
    assert load_model(model).hypers == {"hidden": 4, "cutoff": 5.0}
    card = (tmp_path / "run" / "card.md").read_text()
    assert "| springs of the module springs_own, hidden 4 |" in card
    data = str(tmp_path / "springs.npz")
    assert lkm_train_main(["evaluate", str(model), data, *with_own]) == 0
    assert lkm_train_main(["calibrate", str(model), data, *with_own]) == 0
    atoms, relaxed = tmp_path / "ethanol.xyz", tmp_path / "relaxed.xyz"
    rattled().write(atoms)
    assert lkm_calc_main(["evaluate", str(model), str(atoms), "-o", str(relaxed), *with_own]) == 0
    assert lkm_calc_main(["info", str(model), *with_own]) == 0
    assert "springs, hidden 4" in capsys.readouterr().out


def run_in_a_new_process(toml, *options, path="", processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable, *(launcher if processes > 1 else []), "-m", "train", "fit", str(toml),
    ]  # fmt: skip
    variables = environment()
    variables["PYTHONPATH"] += f":{path}"
    return subprocess.run(
        [*command, *options], cwd=ROOT, env=variables, capture_output=True, text=True,
        timeout=TIMEOUT,
    )  # fmt: skip


def test_training_with_an_installed_package_in_two_processes(package, toml, tmp_path, monkeypatch):
    done = run_in_a_new_process(toml, path=package, processes=2)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(package)
    one = load_model(tmp_path / "run" / "model.safetensors")
    assert one.name == "springs"
    atoms = rattled()
    atoms.calc = LKMCalculator(one, "cpu", "float64")
    assert np.isfinite(atoms.get_forces()).all()


def test_training_with_a_file_of_ones_own_in_two_processes(own_file, toml, tmp_path):
    done = run_in_a_new_process(toml, "--import", str(own_file), processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("springs_missing.py", None, "There is no file .*springs_missing.py to import"),
        ("springs_bad.py", "1 +", "springs_bad.py cannot be imported .SyntaxError"),
        ("springs_idle.py", "x = 1", "springs_idle.py does not register an arch"),
        ("springs-net.py", "x = 1", "springs-net.py is not a valid module name"),
        ("json.py", "x = 1", "json.py has the same name as another module, .*json"),
        ("sys.py", "x = 1", "sys.py has the same name as another module, built-in"),
        ("springs_nowhere", None, "springs_nowhere cannot be imported .ModuleNotFoundError"),
    ],
)
def test_files_that_cannot_be_imported_are_refused(name, text, message, tmp_path, caplog):
    source = tmp_path / name if name.endswith(".py") else name
    if text is not None:
        source.write_text(text)
    with pytest.raises(ArchitectureError, match=message):
        import_architectures([str(source)])
    assert lkm_calc_main(["info", "rmd17-ethanol", "--import", str(source)]) == 1
    assert lkm_train_main(["fit", "own.toml", "--import", str(source)]) == 1
    assert caplog.text.count(str(source).rpartition("/")[2]) >= 2


def test_compiled_programs_depend_on_the_code_of_the_architecture(own_file):
    import_architectures([str(own_file)])
    torch.manual_seed(0)
    model = build_model("springs")
    graph = model.prepare(graph_of(rattled(), model))
    before = _fingerprint(model, graph, False)
    assert _fingerprint(model, graph, False) == before
    own_file.write_text(own_file.read_text() + "\n# other\n")
    assert _fingerprint(model, graph, False) != before
