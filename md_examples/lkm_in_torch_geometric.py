"""Layer-to-Layer Knowledge Mixing in a model of torch-geometric: GCN, GAT or GIN on bond graphs.

LKM needs the node embeddings of each layer; GCN and similar models return only those of the last
layer. With ``jk="cat"`` and without their final linear layer, they return the concatenation of all
layers. The rest is a term of the loss (see PropertyModel and fit):

    loss = task_loss + gamma * lkm_loss(layers)

Reads molecules from the npz file of QM9, with atoms as nodes and bonds as edges, and trains a model
twice from the same initial weights: without and with LKM.

What you should see: LKM makes the layers more similar. With gamma = 1, L_KD of GCN decreases to a
quarter and the mean cosine similarity of two layers increases from 0.4 to 0.7 (with --quick, to
0.5); the plot shows every pair. The error on held-out molecules changes by some per cent in either
direction, which is not significant for one run: ``python -m studies.generality`` measures it over
seeds and gammas.

    python md_examples/lkm_in_torch_geometric.py --data qm9_130831.npz             a minute
    python md_examples/lkm_in_torch_geometric.py --data qm9_130831.npz --quick     10 seconds
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from lkm_train.formats import TARGETS, read_qm9
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cosine_similarity, l1_loss
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GAT, GCN, GIN
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation
from torch_geometric.transforms import OneHotDegree
from torch_geometric.utils import one_hot
from tqdm import tqdm

from lkm_calc import lkm_loss

BACKBONES: Mapping[str, type[torch.nn.Module]] = {"GCN": GCN, "GAT": GAT, "GIN": GIN}
ELEMENTS = torch.tensor([1, 6, 7, 8, 9])
"""Atomic numbers in QM9."""
MAX_DEGREE = 6
"""Most neighbours of an atom: valences end at 4, but cages of small rings look like more."""
INTENSIVE = ("mu", "homo", "lumo", "gap")
"""Properties that do not grow with the molecule: atoms are averaged; for others, summed."""


def bond_graph(atoms: Atoms, value: float) -> Data:
    """Return a molecule as a graph of bonds, with element and degree of each atom one-hot.

    Bonded are pairs closer than 1.15 times the sum of their covalent radii.
    """
    pairs = np.stack(neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15)))
    element = torch.searchsorted(ELEMENTS, torch.from_numpy(atoms.numbers))
    graph = Data(
        x=one_hot(element, len(ELEMENTS)),
        edge_index=torch.from_numpy(pairs),
        y=torch.tensor([value], dtype=torch.float32),
    )
    return OneHotDegree(MAX_DEGREE)(graph)


def read_graphs(path: Path, target: str, count: int, seed: int) -> list[Data]:
    """Return this many molecules of a QM9 file, drawn at random, with a property as their y."""
    frames = read_qm9(path, target)
    frames = frames.select(np.random.default_rng(seed).permutation(len(frames))[:count])
    rows = zip(frames.starts, frames.starts[1:], frames.energies, strict=False)
    return [
        bond_graph(Atoms(frames.numbers[first:end], frames.positions[first:end]), value)
        for first, end, value in rows
    ]


class PropertyModel(torch.nn.Module):
    """A GNN of torch-geometric with its last layer pooled over atoms and read by a linear head."""

    def __init__(self, backbone: str, target: str, n_layers: int = 4, width: int = 64) -> None:
        super().__init__()
        # The layers need one width: give no out_channels. GAT shares the width out to its heads.
        own = {"heads": 4} if backbone == "GAT" else {}
        n_features = len(ELEMENTS) + MAX_DEGREE + 1
        self.gnn = BACKBONES[backbone](
            n_features, width, n_layers, norm="batch_norm", jk="cat", **own
        )
        self.gnn.lin = torch.nn.Identity()  # so that it returns all layers, side by side
        self.pool = MeanAggregation() if target in INTENSIVE else SumAggregation()
        self.head = torch.nn.Linear(width, 1)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return a value for each molecule, and each layer's embeddings (atoms, width)."""
        layers = self.gnn(batch.x, batch.edge_index).chunk(self.gnn.num_layers, dim=1)
        molecules = self.pool(layers[-1], batch.batch, dim_size=batch.num_graphs)
        return self.head(molecules).squeeze(1), layers


class Scale(NamedTuple):
    """Mean and spread of a property, in whose terms the models learn it."""

    mean: Tensor
    spread: Tensor


def scale_of(graphs: Sequence[Data]) -> Scale:
    """Return mean and standard deviation over molecules."""
    values = torch.cat([graph.y for graph in graphs])
    return Scale(values.mean(), values.std())


def fit(
    model: PropertyModel,
    graphs: Sequence[Data],
    gamma: float,
    epochs: int,
    seed: int,
    learning_rate: float = 3e-3,
) -> None:
    """Train a model; with the same seed, on the same batches in the same order."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(list(graphs), batch_size=100, shuffle=True, generator=generator)
    scale = scale_of(graphs)
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    model.train()
    for _ in tqdm(range(epochs), unit="epoch", leave=False):
        for batch in loader:
            values, layers = model(batch)
            task_loss = l1_loss(values, (batch.y - scale.mean) / scale.spread)
            loss = task_loss + gamma * lkm_loss(layers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


class Figures(NamedTuple):
    """What a model does on molecules."""

    mae: float
    """Mean absolute error in the property's unit."""
    lkm: float
    """L_KD: mean square distance of the layers' embeddings to their mean over layers."""
    cosines: Tensor
    """(layers, layers) cosine between the embeddings of two layers, mean over atoms."""

    @property
    def cosine(self) -> float:
        """Mean over all pairs of different layers."""
        count = len(self.cosines)
        first, second = torch.triu_indices(count, count, 1)
        return self.cosines[first, second].mean().item()


@torch.no_grad()
def evaluate(model: PropertyModel, graphs: Sequence[Data], scale: Scale) -> Figures:
    """Return the error on molecules, and how alike the layers are."""
    batch = Batch.from_data_list(list(graphs))
    values, layers = model.eval()(batch)
    mae = l1_loss(scale.mean + scale.spread * values, batch.y)
    stacked = torch.stack(layers)
    cosines = cosine_similarity(stacked.unsqueeze(0), stacked.unsqueeze(1), dim=3).mean(2)
    return Figures(mae.item(), lkm_loss(layers).item(), cosines)


def draw(figures: Mapping[str, Figures], title: str, path: Path) -> None:
    """Draw the cosine between every two layers."""
    figure = Figure(figsize=(4 * len(figures) + 1, 4), layout="constrained")
    panels = figure.subplots(1, len(figures))
    for axes, (name, found) in zip(panels, figures.items(), strict=True):
        image = axes.matshow(found.cosines, vmin=0, vmax=1)
        for (i, j), cosine in np.ndenumerate(found.cosines.numpy()):
            axes.text(j, i, f"{cosine:.2f}", ha="center", color="w" if cosine < 0.7 else "k")
        ticks = range(len(found.cosines))
        axes.set_xticks(ticks, [f"layer {k + 1}" for k in ticks])
        axes.set_yticks(ticks, [f"layer {k + 1}" for k in ticks])
        axes.set_title(name)
    figure.colorbar(image, ax=panels, label="cosine between embeddings")
    figure.suptitle(title)
    figure.savefig(path, dpi=140)


def main() -> None:
    """Train without LKM and with it, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz file of QM9")
    parser.add_argument("--backbone", default="GCN", choices=BACKBONES)
    parser.add_argument("--target", default="gap", choices=TARGETS, help="property of QM9")
    parser.add_argument("--gamma", type=float, default=1.0, help="weight of LKM")
    parser.add_argument("--molecules", type=int, default=6000, help="a fifth of them to test")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of weights, molecules and batches")
    parser.add_argument("--output", type=Path, default=Path("runs/lkm_in_torch_geometric"))
    parser.add_argument("--quick", action="store_true", help="600 molecules")
    options = parser.parse_args()
    options.molecules = 600 if options.quick else options.molecules
    options.output.mkdir(parents=True, exist_ok=True)

    graphs = read_graphs(options.data, options.target, options.molecules, options.seed)
    n_test = len(graphs) // 5
    test, train = graphs[:n_test], graphs[n_test:]
    figures = {}
    for gamma in (0.0, options.gamma):
        torch.manual_seed(options.seed)
        model = PropertyModel(options.backbone, options.target)
        fit(model, train, gamma, options.epochs, options.seed)
        found = evaluate(model, test, scale_of(train))
        figures[f"γ = {gamma:g}"] = found
        print(
            f"{options.backbone}, gamma {gamma:g}: test MAE {found.mae:.4g} "
            f"{TARGETS[options.target].unit}, L_KD {found.lkm:.3g}, "
            f"cosine between layers {found.cosine:.3f}"
        )
    picture = options.output / "layers.png"
    draw(figures, f"{options.backbone}, {options.target} of QM9", picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
