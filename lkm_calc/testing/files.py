"""Tests of the output, dtypes, devices, copies and files of a model."""

import copy
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ase
import torch

from ..graph import Graph
from ..models import EnergyModel
from ..potential import energy_and_forces, load_model, save_model
from .measures import ROUND_OFF, SINGLE, graph_of, named, require, require_close


def check_output(model: EnergyModel, structures: Sequence[ase.Atoms]) -> None:
    """Check shapes and dtypes of the output, and that it is reproducible."""
    graph = model.prepare(Graph.collate([graph_of(atoms, model) for atoms in structures]))
    out, again = model.atom_output(graph), model.atom_output(graph)
    atoms = len(graph.numbers)
    columns = {"values": out.values} | {f"layer_values {k}": v for k, v in enumerate(out[2])}
    for name, values in columns.items():
        found = (tuple(values.shape), values.dtype)
        wanted = ((atoms,), model.dtype)
        require(found == wanted, f"Output: {name} are {found} but must be {wanted}.")
    require(len(out.embeddings) > 0, "Output: there are no embeddings; return one per layer.")
    shapes = {tuple(layer.shape) for layer in out.embeddings}
    require(
        len(shapes) == 1 and all(len(s) == 2 and s[0] == atoms for s in shapes),
        f"Output: embeddings have the shapes {sorted(shapes)}; all must be ({atoms}, dim), because "
        "LKM compares them.",
    )
    require(torch.equal(out.values, again.values), "Output: a second call gives different values.")
    if out.layer_values:
        total = torch.stack(out.layer_values).sum(0)
        require_close(
            total, out.values, ROUND_OFF, "Output: the sum of layer_values against values"
        )


def check_float32(model: EnergyModel, atoms: ase.Atoms, bound: float = SINGLE) -> None:
    """Check that forces in float32 agree with those in float64.

    Args:
        model: The model in float64.
        atoms: The structure.
        bound: Maximum relative difference.
    """
    graph = graph_of(atoms, model)
    exact = energy_and_forces(model, graph).forces
    single = energy_and_forces(copy.deepcopy(model).float(), graph).forces
    require_close(single, exact, bound, f"Forces of {named(atoms)} in float32 and float64")


def check_device(model: EnergyModel, device: torch.device | str, atoms: ase.Atoms) -> None:
    """Check that results on a device agree with those on the current device of the model."""
    graph = graph_of(atoms, model)
    expected = energy_and_forces(model, graph).forces
    there = copy.deepcopy(model).to(device)
    found = energy_and_forces(there, graph.to(device)).forces
    text = f"Forces of {named(atoms)} on {device} and {model.device}"
    require_close(found.cpu(), expected.cpu(), 1e-8, text)


def check_copies(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that a copy and a pickle of a model give bitwise identical energies."""
    graph = graph_of(atoms, model)
    expected = model(graph).energy
    copies = {"copy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}
    for name, one in copies.items():
        require(torch.equal(one(graph).energy, expected), f"A {name} gives a different energy.")


def check_file(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that a model loaded from its file has identical weights and energies.

    Raises:
        PhysicsError: They differ.
        ValueError: The model is not registered, or its hypers are not its arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, path)
        loaded = load_model(path, device=model.device)
    for name, value in model.state_dict().items():
        same = torch.equal(loaded.state_dict()[name], value)
        require(same, f"File: {name} has changed after loading.")
    graph = graph_of(atoms, model)
    same = torch.equal(loaded(graph).energy, model(graph).energy)
    require(same, f"File: the energy of {named(atoms)} is different after loading.")
