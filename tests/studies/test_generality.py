"""LKM in torch-geometric's models: the layers are theirs, and the study counts rightly."""

import json

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch_geometric.data import Batch

from lkm_calc import lkm_loss
from md_examples.lkm_in_torch_geometric import (
    BACKBONES,
    ELEMENTS,
    MAX_DEGREE,
    PropertyModel,
    Scale,
    bond_graph,
    evaluate,
    fit,
    read_graphs,
    scale_of,
)
from studies import generality
from studies.generality import Plan, main, read_sweeps, report, run, write_stand_in

SMALL = Plan(n_train=20, n_validation=10, n_test=10, epochs=1, gammas=(0.0, 1.0), seeds=(1,))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_stand_in(tmp_path_factory.mktemp("data") / "molecules.npz")


@pytest.fixture(scope="module")
def graphs(data):
    return read_graphs(data, "gap", 40, seed=0)


def model_of(backbone, **options):
    torch.manual_seed(0)
    return PropertyModel(backbone, "gap", width=16, **options)


def test_bonds_elements_and_degrees():
    graph = bond_graph(molecule("CH3CH2OH"), 1.5)
    elements, degrees = graph.x[:, : len(ELEMENTS)], graph.x[:, len(ELEMENTS) :]
    numbers = molecule("CH3CH2OH").numbers
    assert ELEMENTS[elements.argmax(1)].tolist() == numbers.tolist()
    expected = {1: [1] * 6, 6: [4, 4], 8: [2]}
    for number, found in expected.items():
        assert degrees[torch.from_numpy(numbers == number)].argmax(1).tolist() == found
    assert (graph.x.sum(1) == 2).all()
    assert graph.num_edges == 16
    assert graph.is_undirected()
    assert graph.y.tolist() == [1.5]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layers_are_those_of_the_models_as_they_come(backbone, graphs):
    batch = Batch.from_data_list(graphs)
    model = model_of(backbone)
    fit(model, graphs, gamma=0.1, epochs=1, seed=0)
    _, layers = model.eval()(batch)
    assert len(layers) == 4
    own = {"heads": 4} if backbone == "GAT" else {}
    features = len(ELEMENTS) + MAX_DEGREE + 1
    for depth, layer in enumerate(layers, start=1):
        plain = BACKBONES[backbone](
            features, 16, depth, out_channels=3, norm="batch_norm", jk="last", **own
        )
        weights = plain.state_dict()
        weights |= {k: v for k, v in model.gnn.state_dict().items() if k in weights}
        plain.load_state_dict(weights)
        torch.testing.assert_close(
            plain.eval()(batch.x, batch.edge_index), plain.lin(layer), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("target", ["gap", "alpha"])
def test_properties_that_grow_with_the_molecule_are_summed(target):
    graph = bond_graph(molecule("CH4"), 0.0)
    torch.manual_seed(0)
    model = PropertyModel("GIN", target, width=16).eval()
    value, layers = model(Batch.from_data_list([graph]))
    pooled = layers[-1].sum(0) / (5 if target == "gap" else 1)
    torch.testing.assert_close(value[0], model.head(pooled)[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mixing_brings_the_layers_together(backbone, graphs):
    found = []
    for gamma in (0.0, 100.0):
        model = model_of(backbone)
        fit(model, graphs, gamma, epochs=20, seed=0, learning_rate=0.03)
        found.append(evaluate(model, graphs, scale_of(graphs)))
    without, mixed = found
    assert mixed.lkm < 0.5 * without.lkm
    assert mixed.cosine > without.cosine


def test_training_learns_and_repeats_itself(graphs):
    models = [model_of("GIN") for _ in range(2)]
    scale = scale_of(graphs)
    untrained = evaluate(models[0], graphs, scale).mae
    for model in models:
        fit(model, graphs, gamma=0.0, epochs=20, seed=3, learning_rate=0.03)
    assert evaluate(models[0], graphs, scale).mae < 0.5 * untrained
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_figures(graphs):
    model = model_of("GCN", n_layers=3)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, 0.5)
    found = evaluate(model, graphs, Scale(torch.tensor(2.0), torch.tensor(3.0)))
    values = torch.cat([graph.y for graph in graphs])
    assert found.mae == pytest.approx((values - 3.5).abs().mean().item())
    with torch.no_grad():
        _, layers = model(Batch.from_data_list(graphs))
    assert found.lkm == lkm_loss(layers).item()
    units = [torch.nn.functional.normalize(layer, dim=1) for layer in layers]
    pairs = [(units[i] * units[j]).sum(1).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.cosine == pytest.approx(float(sum(pairs)) / 3, rel=1e-5)


def test_arms_of_a_seed_differ_in_gamma_alone_and_are_run_once(tmp_path, data, capsys):
    run(data, tmp_path, SMALL)
    files = sorted(tmp_path.glob("*.json"))
    assert [path.stem for path in files] == [
        f"gap-{name}-gamma-{gamma}-seed-1" for name in ("gat", "gcn", "gin") for gamma in "01"
    ]
    first, mixed = (json.loads(path.read_text()) for path in files[:2])
    differing = {k for k, v in first["configuration"].items() if v != mixed["configuration"][k]}
    assert differing == {"gamma"}
    written = {path: path.read_text() for path in files}
    files[0].unlink()
    changed = json.loads(files[1].read_text())
    changed["configuration"]["epochs"] = 7
    files[1].write_text(json.dumps(changed))
    capsys.readouterr()
    run(data, tmp_path, SMALL)
    assert len(capsys.readouterr().out.splitlines()) == 2, "the missing and the outdated arm"
    assert {path: path.read_text() for path in files} == written


def made_up(folder, errors):
    """Write results whose errors in eV are given by γ and seed."""
    for gamma, row in errors.items():
        for seed, (validation, test) in enumerate(row, start=1):
            known = {"target": "gap", "backbone": "GCN", "gamma": gamma, "seed": seed}
            known |= {"n_train": 5, "n_test": 3, "n_validation": 2, "epochs": 1}
            figures = {"validation_mae": validation, "test_mae": test, "lkm": 0.1, "cosine": 0.5}
            path = folder / f"{gamma}-{seed}.json"
            path.write_text(json.dumps({"configuration": known, **figures}))


def test_report(tmp_path):
    errors = {
        0.0: [(0.5, 0.1), (0.4, 0.2), (0.6, 0.4)],
        0.1: [(0.6, 0.09), (0.6, 0.18), (0.5, 0.36)],
        1.0: [(0.4, 0.11), (0.7, 0.20), (0.7, 0.36)],
    }
    made_up(tmp_path, errors)
    (sweep,) = read_sweeps(tmp_path)
    expected = [[0, 0, 0], [-10, -10, -10], [10, 0, -10]]
    np.testing.assert_allclose(sweep.changes, expected, atol=1e-9)
    gammas, changes = sweep.chosen
    assert gammas == [1.0, 0.0, 0.1]
    np.testing.assert_allclose(changes, [10, 0, -10], atol=1e-9)
    text = report(tmp_path, tmp_path)
    assert "| GCN, gap | 233.3 ± 88.2 meV | -10.0 ± 0.0 | +0.0 ± 5.8 |" in text
    assert "Of 2 changes, 1 are significantly below zero and 0 above" in text
    assert "+0.0 ± 5.8 % for GCN, gap (γ = 1, 0, 0.1)" in text
    assert (tmp_path / generality.IMAGE).stat().st_size > 10_000


def test_report_leaves_out_a_seed_that_is_not_done(tmp_path):
    made_up(tmp_path, {0.0: [(1, 1), (1, 1), (1, 1)], 0.1: [(1, 2), (1, 2)]})
    (sweep,) = read_sweeps(tmp_path)
    assert sweep.seeds == [1, 2]
    assert "2 seeds, change" in report(tmp_path, tmp_path)


def test_quick_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generality, "QUICK", SMALL)
    main(["--quick", "--work", str(tmp_path)])
    assert "## Other models" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.json"))) == 6
    with pytest.raises(SystemExit):
        main([])
    assert "--data is missing" in capsys.readouterr().err
