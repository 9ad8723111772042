"""A custom architecture: SchNet implemented from its equations, trained, saved and used.

Only a class is needed, which returns the energy of each atom, and the features after each layer for
Layer-to-Layer Knowledge Mixing; forces, stress, units, training and files work for all
architectures. The script first runs the physics tests on it, then trains it on ethanol_gfn2.h5 and
uses the trained model. It is explained in docs/howto/own-architecture.md.

What you should see: the tests pass; a mean force error of some 60 meV/Å on the validation frames
(with --quick some 300; without a model 800); ethanol relaxes to within 0.05 eV/Å.

    python md_examples/own_architecture.py            one minute on one core
    python md_examples/own_architecture.py --quick    100 frames and few steps, 20 s

Without this script, from the folder of this file:

    lkm-train fit own.toml --import own_architecture.py
    lkm-calc relax MODEL STRUCTURE --import own_architecture.py
"""

import argparse
import math
from pathlib import Path

import torch
from ase.build import molecule
from ase.optimize import BFGS
from lkm_train.__main__ import main as lkm_train
from torch import Tensor, nn

from lkm_calc import EnergyModel, Graph, LKMCalculator, build_model, register_model
from lkm_calc.models import AtomOutput
from lkm_calc.nn import check_sizes
from lkm_calc.testing import check_model

DATA = Path(__file__).parent / "ethanol_gfn2.h5"


def ssp(x: Tensor) -> Tensor:
    """Return the shifted softplus ln(eˣ/2 + 1/2)."""
    return nn.functional.softplus(x) - math.log(2)


def cutoff_function(x: Tensor) -> Tensor:
    """Return 1 at x = 0 and 0 from x = 1 on, where two derivatives vanish as well.

    Not the cosine of some versions of SchNet, whose second derivative jumps there.
    """
    t = x.clamp(max=1)
    return 1 - t**3 * (10 - 15 * t + 6 * t**2)


class Interaction(nn.Module):
    """x_i + W₃ ssp(W₂ Σ_j (W₁ x_j) ⊙ f(r_ij)), with filters f of the distance: equations 1 to 3."""

    def __init__(self, hidden: int, num_radial: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList([nn.Linear(num_radial, hidden), nn.Linear(hidden, hidden)])
        self.before = nn.Linear(hidden, hidden, bias=False)
        self.after = nn.ModuleList([nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)])

    def forward(self, x: Tensor, edge_index: Tensor, basis: Tensor, fade: Tensor) -> Tensor:
        """Return the atoms' new features, (atoms, hidden)."""
        source, target = edge_index
        filters = ssp(self.filters[1](ssp(self.filters[0](basis)))) * fade.unsqueeze(1)
        messages = self.before(x).index_select(0, source) * filters
        v = torch.zeros_like(x).index_add(0, target, messages)
        return x + self.after[1](ssp(self.after[0](v)))


@register_model
class OwnSchNet(EnergyModel):
    """SchNet (Schütt et al. 2018, J. Chem. Phys. 148:241722, arXiv:1706.08566).

    Args:
        hidden: Width of all features.
        num_layers: Number of interactions, after each of which LKM taps the features.
        num_radial: Number of Gaussians of a distance.
        cutoff: Radius in Å.
    """

    name = "own-schnet"

    def __init__(
        self, hidden: int = 64, num_layers: int = 3, num_radial: int = 32, cutoff: float = 5.0
    ) -> None:
        hypers = dict(hidden=hidden, num_layers=num_layers, num_radial=num_radial, cutoff=cutoff)
        check_sizes(hypers, dict.fromkeys(["hidden", "num_layers", "num_radial"], (2, 1000)))
        super().__init__(cutoff, hypers)
        self.register_buffer("centres", torch.linspace(0, cutoff, num_radial), persistent=False)
        self.sharpness = (num_radial / cutoff) ** 2 / 2
        self.embedding = nn.Embedding(95, hidden)  # elements up to 94
        self.interactions = nn.ModuleList(
            Interaction(hidden, num_radial) for _ in range(num_layers)
        )
        self.readout = nn.ModuleList([nn.Linear(hidden, hidden // 2), nn.Linear(hidden // 2, 1)])

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return each atom's value and its features after each interaction."""
        r = graph.edge_vectors().square().sum(1).sqrt().to(self.dtype)  # (edges), Å
        basis = torch.exp(-self.sharpness * (r.unsqueeze(1) - self.centres) ** 2)
        fade = cutoff_function(r / self.cutoff)
        x = self.embedding(graph.numbers)  # (atoms, hidden)
        layers = []
        for interaction in self.interactions:
            x = interaction(x, graph.edge_index, basis, fade)
            layers.append(x)
        values = self.readout[1](ssp(self.readout[0](x))).squeeze(1)
        return AtomOutput(values, tuple(layers))


CONFIG = """\
[data]
train = '{data}'
n_train = {n_train}
n_validation = {n_validation}

[model]
name = "own-schnet"

[model.hypers]
hidden = {hidden}

[loss]
kind = "l2"
energy = 2.0
gamma = 1e-2     # weight of Layer-to-Layer Knowledge Mixing; "auto" is too much for this one

[optimiser]
epochs = {epochs}
learning_rate = 4e-3
warmup_steps = 50
ema_decay = 0.99

[run]
directory = '{run}'
validate_every = 2
"""


def main() -> None:
    """Check the architecture, train it, and relax a molecule with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/own_architecture"))
    parser.add_argument("--quick", action="store_true", help="100 frames, few steps")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    check_model(build_model("own-schnet", hidden=16, num_layers=2))
    print("The physics battery passes.")

    size = dict(n_train=100, n_validation=50, hidden=32, epochs=30)
    size = size if options.quick else dict(n_train=400, n_validation=100, hidden=64, epochs=20)
    toml, run = options.output / "own.toml", options.output / "run"
    toml.write_text(CONFIG.format(data=DATA, run=run, **size), encoding="utf-8")
    if status := lkm_train(["fit", str(toml)]):
        raise SystemExit(status)

    atoms = molecule("CH3CH2OH")
    atoms.calc = LKMCalculator(run / "model.safetensors", dtype="float64")
    relaxed = BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    print(f"Relaxed: {relaxed}, energy {atoms.get_potential_energy():.3f} eV")


if __name__ == "__main__":
    main()
