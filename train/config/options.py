"""The options of a training run, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class ConfigError(ValueError):
    """The configuration is invalid; the message names the option and the remedy."""


@dataclass(frozen=True)
class DataConfig:
    """Data set and training/validation split."""

    train: str = ""
    """File with the training frames, and the validation frames if they have no file."""
    validation: str = ""
    """File with the validation frames; empty to draw them from the training file."""
    test: str = ""
    """File with test frames for the final model; empty for none (see n_test)."""
    format: Literal["auto", "md17", "chignolin", "qm9", "hdf5", "ase"] = "auto"
    """Format of the files; "auto" detects it from suffix and content."""
    labels: Literal["revised", "original"] = "revised"
    """For rMD17 files: the revised or the original MD17 labels."""
    target: str = "U0"
    """For QM9 files: the property to learn."""
    energy_unit: str = ""
    """For files read by ASE and npz files in MD17 layout: eV, kcal/mol, kJ/mol, Hartree, Ry or meV;
    empty for the default, eV and kcal/mol respectively."""
    length_unit: str = ""
    """For the same files: Å, Bohr or nm; empty for Å."""
    energy_key: str = ""
    """Name of the energies in the files, for example "dft_energy"; empty for the usual names."""
    forces_key: str = ""
    """Name of the forces (not gradients) in the files; empty for the usual names."""
    stress_key: str = ""
    """Name of the stress in the files, 1/V dE/dε with ASE's sign, in energy per volume: 3 × 3, nine
    numbers or xx, yy, zz, yz, xz, xy. A virial is then ignored unless it is named too."""
    virial_key: str = ""
    """Name of the virial in the files, −volume × stress, an energy, with the same shapes. A stress
    is then ignored unless it is named too."""
    n_train: int | Literal["auto"] = "auto"
    """Number of training frames; "auto" for all that are not validation or test frames."""
    n_validation: int | Literal["auto"] = "auto"
    """Number of validation frames; "auto" for a tenth of the file, at most 50, or for all of
    data.validation."""
    n_test: int = 0
    """Number of test frames for the final model that are drawn from the training file, if they have
    no file."""
    check_units: bool = True
    """Reject energies and forces that are implausible in their units."""

    def sizes(self, n_frames: int) -> tuple[int, int]:
        """Return how many frames of a file of so many structures train and validate."""
        n_train, n_validation = self.n_train, self.n_validation
        tenth = max(1, min(50, n_frames // 10))
        validation = n_validation if isinstance(n_validation, int) else tenth
        rest = n_frames - validation - self.n_test
        return n_train if isinstance(n_train, int) else rest, validation


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and hyperparameters."""

    name: str = "ace"
    """A key of lkm_calc.MODELS, or a custom architecture (install its package or use --import)."""
    hypers: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that differ from the defaults of the architecture, in [model.hypers]."""


@dataclass(frozen=True)
class LossConfig:
    """Loss function."""

    kind: Literal["l1", "l2", "huber"] = "l1"
    """Loss of the difference between prediction and label."""
    energy_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for energies; empty for the value of kind."""
    forces_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for forces."""
    stress_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for stress."""
    huber_delta: float = 0.05
    """Threshold of the Huber loss, in eV, eV/Å and eV/Å³."""
    energy: float = 0.1
    """Weight of the energy term, eV per structure."""
    energy_per_atom: bool = False
    """Divide energies by the number of atoms; for data sets with very different sizes."""
    forces: float = 1.0
    """Weight of the force term, eV/Å per component."""
    stress: float = 0.0
    """Weight of the stress term, eV/Å³ per component."""
    config_type_weights: Mapping[str, Any] = field(default_factory=dict)
    """Weights of the energy, force and stress terms of frames by their config_type, in
    [loss.config_type_weights]; "Default" applies to all others and is 1 if not given."""
    gamma: float | Literal["auto"] = 0.0
    """γ, weight of the LKM term; 0 disables LKM, and model.hypers.lkm_tap selects the embeddings.
    "auto" sets γ at every step so that γ L_KD is gamma_fraction times the rest of the loss."""
    gamma_fraction: float = 0.1
    """See gamma."""
    gamma_warmup_steps: int = 0
    """Number of steps over which γ increases linearly from zero."""
    lkm_distance: Literal["mse", "mae"] = "mse"
    """Squared or absolute distance of each layer to its target."""
    lkm_teacher: Literal["mean", "deeper", "neighbours", "learned", "error"] = "mean"
    """Target of each layer: mean over layers as in the paper; mean of the deeper or of the
    neighbouring layers; mean of the other layers with learned weights; or mean of all layers
    weighted by the inverse energy error of the network truncated after each."""
    lkm_scale_free: bool = False
    """Divide by the mean square (or mean absolute value) of the embeddings, so that shrinking them
    does not reduce the loss."""
    raw_energies: bool = False
    """Fit uncentred total energies in float32 and kcal/mol, without reference energies, as some
    published code does; only to study the effect."""

    @property
    def mixes(self) -> bool:
        """Whether LKM is used."""
        return self.gamma == "auto" or self.gamma > 0


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimiser and learning rate."""

    epochs: int = 150
    """Number of passes over the training frames."""
    batch_size: int = 5
    """Frames per step, summed over all processes."""
    accumulate: int = 1
    """Number of parts in which each process computes its share of a batch, to save memory; the step
    is the same."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    kind: Literal["adamw", "muon"] = "muon"
    """AdamW, or Muon for the weight matrices of linear layers and AdamW for the rest."""
    momentum: float = 0.95
    """Momentum of Muon."""
    learning_rate: float = 4e-3
    """Peak learning rate; half of the default is safer for AdamW. The default is 1e-3 for runs that
    start from a model (run.finetune, pretraining)."""
    final_fraction: float = 1e-3
    """Final learning rate of the cosine schedule, or lowest of the plateau schedule, as a fraction
    of the peak."""
    plateau_factor: float = 0.8
    """Factor on the learning rate after plateau_patience validations without improvement."""
    plateau_patience: int = 20
    """See plateau_factor."""
    early_stopping: int = 0
    """Stop after this many validations without improvement; 0 disables it."""
    warmup_steps: int = 500
    """Number of steps over which the learning rate increases linearly from zero."""
    restart_epoch: int = 0
    """Epoch after which the schedule starts again with half the learning rate, where a run is
    prolonged (--prolong); 0 for none."""
    weight_decay: float = 0.02
    """Decoupled weight decay of the weight matrices of linear layers. With few frames (50) a larger
    one is better (0.1)."""
    clip_norm: float = 10.0
    """Maximum norm of the gradient (gradient clipping)."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is validated and saved."""
    swa_fraction: float = 0.0
    """Fraction of the steps, at the end, with stochastic weight averaging (SWA) at a constant
    learning rate instead; 0 disables it."""
    swa_rate: float = 0.05
    """Learning rate of SWA as a fraction of the peak."""


@dataclass(frozen=True)
class RunConfig:
    """Output, device and performance."""

    directory: str = "runs/run"
    """Folder for checkpoints, metrics and plots."""
    seed: int = 0
    """Random seed of the split, the initial weights and the order of the frames."""
    finetune: str = ""
    """Model file or bundled model to start from, with its architecture; empty for none."""
    device: str = "auto"
    """"auto" uses CUDA if available; else a torch device such as "cpu" or "cuda:1"."""
    dtype: Literal["float32", "float64"] = "float32"
    """dtype of the weights and activations."""
    cuda_graphs: bool = False
    """Capture the gradient computation as a CUDA graph, for frames of one molecule: less launch
    overhead, more memory."""
    compile: bool = False
    """Compile the gradient computation for a CPU, for frames of one molecule: a few minutes at the
    start, then up to twice as fast. Needs a C++ compiler."""
    kernels: Literal["auto", "off"] = "auto"
    """"auto" trains with a C++ kernel on a CPU if the architecture has one that supports training
    (ace, dimenet++, mxmnet and pamnet), using first derivatives only, and computes the steps of
    Muon in C++."""
    tf32: bool = False
    """Use TF32 for matrix products on a GPU: faster, less accurate."""
    validate_every: int = 1
    """Epochs between validations."""
    checkpoint_every: int = 5
    """Epochs between checkpoints."""
    eval_batch_size: int = 16
    """Frames per batch in validation and testing."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard, which must be installed."""


@dataclass(frozen=True)
class PretrainingConfig:
    """Pretraining on frames of molecular dynamics with a cheap method, sampled by the run itself.

    The model of this first stage is the start of the second one, which trains on the labelled
    frames.
    """

    calculator: str = ""
    """"gfn2-xtb" or "gfn1-xtb" (pip install lkm-calc[label]), or MODULE:NAME or FILE.py:NAME of a
    function or class that returns an ASE calculator; empty for no pretraining."""
    frames: int = 10000
    """Number of frames."""
    temperature: float = 700.0
    """Temperature in K of the Langevin dynamics, which starts from the training frames."""
    epochs: int = 15
    """Epochs of the first stage."""
    learning_rate: float = 4e-3
    """Peak learning rate of the first stage; other options of the optimiser are those of the
    second."""


@dataclass(frozen=True)
class Config:
    """Complete configuration of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
