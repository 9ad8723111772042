"""Force fields of other packages as ASE calculators, in their recommended set-up on a CPU.

Each uses the calculator, neighbour list and defaults of its package; weights are random with a
fixed seed, so that only timings are meaningful. The packages are not dependencies of lkm-calc and
cannot all be installed together, because mace-torch and nequip require different versions of e3nn:
``available`` returns those that are installed. Tested with mace-torch 0.3.16, schnetpack 2.1.1,
torchmd-net 3.1.0 and nequip 0.19.1 on torch 2.13.

Time the forces only, as MD does: SchNetPack's calculator caches only the requested properties, so
requesting the energy afterwards evaluates the model again.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ase
import numpy as np
import torch
import torch.utils.data.dataloader
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes

CUTOFF = 5.0
"""Å, of every peer."""

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8}
"""What MACE and NequIP are built for; the others embed the elements up to Z = 99."""

NEIGHBOURS = 20.0
"""By which MACE and NequIP divide their sums over neighbours; it does not change the cost."""

Builder = Callable[[torch.dtype], Calculator]


def mace(dtype: torch.dtype) -> Calculator:
    """Return MACE, 64x0e + 64x1o, two interactions, correlation 3, else as mace_run_train has it.

    Its calculator computes the stress in every call, that of a molecule too.
    """
    import mace.calculators  # before e3nn, which torch would not load without what it sets
    from e3nn import o3
    from mace.modules import RealAgnosticResidualInteractionBlock, ScaleShiftMACE

    with _drawing():
        model = ScaleShiftMACE(
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=RealAgnosticResidualInteractionBlock,
            interaction_cls_first=RealAgnosticResidualInteractionBlock,
            num_interactions=2,
            num_elements=len(ELEMENTS),
            hidden_irreps=o3.Irreps("64x0e + 64x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(len(ELEMENTS)),
            avg_num_neighbors=NEIGHBOURS,
            atomic_numbers=list(ELEMENTS.values()),
            correlation=3,
            gate=torch.nn.functional.silu,
        )
    return mace.calculators.MACECalculator(
        models=model.to(dtype), device="cpu", default_dtype=_name(dtype)
    )


def schnet(dtype: torch.dtype) -> Calculator:
    """Return SchNet of SchNetPack, 128 features, 3 interactions, 20 Gaussians."""
    return _schnetpack("SchNet", dtype)


def painn(dtype: torch.dtype) -> Calculator:
    """Return PaiNN of SchNetPack, 128 features, 3 interactions, 20 Gaussians."""
    return _schnetpack("PaiNN", dtype)


def _schnetpack(network: str, dtype: torch.dtype) -> Calculator:
    if not hasattr(torch.utils.data.dataloader, "T_co"):
        # A type variable that schnetpack 2.1.1 imports and torch 2.13 has no more.
        torch.utils.data.dataloader.T_co = TypeVar("T_co", covariant=True)
    import schnetpack.representation
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.interfaces import SpkCalculator
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.transform import MatScipyNeighborList

    class FromObject(SpkCalculator):
        """Takes a model where theirs takes the path of a pickled one."""

        def _load_model(self, model: NeuralNetworkPotential) -> NeuralNetworkPotential:
            return model.eval()

    with _drawing():
        model = NeuralNetworkPotential(
            getattr(schnetpack.representation, network)(
                n_atom_basis=128,
                n_interactions=3,
                radial_basis=GaussianRBF(n_rbf=20, cutoff=CUTOFF),
                cutoff_fn=CosineCutoff(CUTOFF),
            ),
            input_modules=[PairwiseDistances()],
            output_modules=[Atomwise(n_in=128, output_key="energy"), Forces()],
        )
    return FromObject(model, MatScipyNeighborList(CUTOFF), energy_unit="eV", dtype=dtype)


def equivariant_transformer(dtype: torch.dtype) -> Calculator:
    """Return TorchMD-NET's equivariant transformer, 4 layers of 128 features, 64 radial functions.

    The rest is as in their ET-MD17.yaml.
    """
    return _torchmdnet(
        dtype,
        model="equivariant-transformer",
        num_layers=4,
        num_rbf=64,
        num_heads=8,
        attn_activation="silu",
        distance_influence="both",
        neighbor_embedding=True,
    )


def tensornet(dtype: torch.dtype) -> Calculator:
    """Return TensorNet of TorchMD-NET, 2 layers of 128 features, 32 radial functions."""
    return _torchmdnet(
        dtype, model="tensornet", num_layers=2, num_rbf=32, equivariance_invariance_group="O(3)"
    )


def _torchmdnet(dtype: torch.dtype, **arguments: Any) -> Calculator:
    from torchmdnet.calculators import External
    from torchmdnet.models.model import create_model

    class AroundExternal(Calculator):
        """Their own, TMDNETCalculator, takes positions in float32 only; it is as fast in that."""

        implemented_properties = ["energy", "forces"]  # noqa: RUF012

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def calculate(
            self,
            atoms: ase.Atoms | None = None,
            properties: Sequence[str] = ("energy",),
            system_changes: Sequence[str] = tuple(all_changes),
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            if "numbers" in system_changes:
                numbers = torch.tensor(self.atoms.numbers, dtype=torch.long)
                self.external = External(self.model, numbers[None], dtype=dtype)
            box = torch.tensor(self.atoms.cell.array) if self.atoms.pbc.any() else None
            energy, forces = self.external.calculate(torch.tensor(self.atoms.positions), box)
            self.results = {"energy": energy.item(), "forces": forces[0].numpy()}

    arguments |= {
        "embedding_dimension": 128,
        "activation": "silu",
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "cutoff_lower": 0.0,
        "cutoff_upper": CUTOFF,
        "max_z": 100,
        "max_num_neighbors": 128,  # room for pairs, too little is an error; water has 54 an atom
        "output_model": "Scalar",
        "reduce_op": "add",
        "prior_model": None,
        "atom_filter": -1,
        "derivative": True,
    }
    with _drawing():
        drawn = create_model(arguments | {"precision": 64}).state_dict()
        model = create_model(arguments | {"precision": torch.finfo(dtype).bits})
    model.load_state_dict(drawn)
    return AroundExternal(model)


def nequip(dtype: torch.dtype) -> Calculator:
    """Return NequIP, l = 1, 4 layers of 32 features, as it is without nequip-compile.

    Its calculator computes the stress in every call, that of a molecule too.
    """
    return _nequip(dtype, compiled=False)


def nequip_compiled(dtype: torch.dtype) -> Calculator:
    """Return the same through ``nequip-compile --mode aotinductor``, as they recommend for MD.

    It takes a C++ compiler and one to three minutes.
    """
    return _nequip(dtype, compiled=True)


def _nequip(dtype: torch.dtype, compiled: bool) -> Calculator:
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms
    from nequip.model import NequIPGNNModel
    from nequip.utils import torch_default_dtype
    from nequip.utils.global_state import set_global_state

    class InFloat64(NequIPCalculator):
        """Keeps to itself the default dtype that theirs reads positions in, whatever the model's.

        NequIP sets it to float64 for the whole process.
        """

        def calculate(self, *arguments: Any, **keywords: Any) -> None:
            with torch_default_dtype(torch.float64):
                super().calculate(*arguments, **keywords)

    with _drawing(torch.float64):
        set_global_state()
        model = NequIPGNNModel(
            seed=0,
            model_dtype=_name(dtype),
            r_max=CUTOFF,
            type_names=list(ELEMENTS),
            num_layers=4,
            l_max=1,
            num_features=32,
            avg_num_neighbors=NEIGHBOURS,
            per_type_energy_scales=1.0,
            per_type_energy_shifts=0.0,
        ).eval()
        species = {symbol: symbol for symbol in ELEMENTS}
        transforms = basic_transforms(model.metadata, CUTOFF, list(ELEMENTS), species)
        calculator = InFloat64(model, device="cpu", transforms=transforms)
        if not compiled:
            return calculator
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nequip.pt2"
            _compile(calculator, path)
            return InFloat64.from_compiled_model(
                path, device="cpu", chemical_species_to_atom_type_map=True
            )


def _compile(calculator: Any, path: Path) -> None:
    """Write the model of a NequIPCalculator as ``nequip-compile --target ase`` does."""
    from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
    from nequip.utils.aot import aot_export_model

    target = COMPILE_TARGET_DICT["ase"]
    several = {
        of: torch.export.Dim(f"num_{of}s", min=2, max=torch.inf) for of in ("graph", "node", "edge")
    }
    model = calculator.model
    aot_export_model(
        model=model,
        device="cpu",
        input_fields=target["input"],
        output_fields=target["output"],
        data=target["data_settings"](
            calculator.atoms_to_data(molecule("CH3CH2OH", vacuum=5.0, pbc=True))
        ),
        batch_map=target["batch_map_settings"](several),
        output_path=str(path),
        inductor_configs={"aot_inductor.metadata": {**model.metadata, "allow_tf32": "0"}},
    )


PEERS: dict[str, Builder] = {
    "MACE": mace,
    "SchNet": schnet,
    "PaiNN": painn,
    "TorchMD-NET ET": equivariant_transformer,
    "TensorNet": tensornet,
    "NequIP": nequip,
    "NequIP, compiled": nequip_compiled,
}
"""Builders by name: each takes float32 or float64 and returns a calculator in eV and Å."""

PACKAGES = {
    "MACE": ("mace", "mace-torch"),
    "SchNet": ("schnetpack", "schnetpack"),
    "PaiNN": ("schnetpack", "schnetpack"),
    "TorchMD-NET ET": ("torchmdnet", "torchmd-net"),
    "TensorNet": ("torchmdnet", "torchmd-net"),
    "NequIP": ("nequip", "nequip"),
    "NequIP, compiled": ("nequip", "nequip"),
}
"""Of each peer, what is imported and what pip calls it."""


class Available(NamedTuple):
    builders: dict[str, Builder]
    """Of ``PEERS``, those whose package is installed."""
    missing: dict[str, str]
    """Of each other, the package to install."""


def available() -> Available:
    """Return the peers of this environment, and what the others lack. Imports none of them."""
    here = {name for name, (module, _) in PACKAGES.items() if importlib.util.find_spec(module)}
    return Available(
        {name: builder for name, builder in PEERS.items() if name in here},
        {name: package for name, (_, package) in PACKAGES.items() if name not in here},
    )


@contextmanager
def _drawing(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Draw weights from the seed 0; leave torch's generator and default dtype as they were."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _name(dtype: torch.dtype) -> str:
    """Return "float32" or "float64"."""
    return str(dtype).removeprefix("torch.")
