"""Train models for many data sets side by side, on this machine or on a Slurm cluster, with Parsl.

One training per data file, each in its own folder of --output. Trainings that were interrupted or
failed continue when the script is started again; finished ones are skipped. At the end the errors
of all models are printed as a table.

Parsl (https://parsl.readthedocs.io, pip install lkm-calc[sweep]) needs no server: the script
submits the jobs itself. Dask needs a scheduler that runs beside the jobs, and a Slurm array a
script for each sweep.

What you should see: a line for each data set with the errors of its model.

    python md_examples/sweep_parsl.py rmd17_*_train_01.npz --output runs/sweep
    python md_examples/sweep_parsl.py frames/*.extxyz --slurm normal -- --pretrain gfn2-xtb
    python md_examples/sweep_parsl.py --quick     two small sets, to see that it runs, half a minute
"""

import argparse
import json
import sys
from pathlib import Path

import parsl
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from lkm_train.formats import read_hdf5
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

EXAMPLE = Path(__file__).parent / "ethanol_gfn2.h5"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", nargs="*", type=Path, help="files with labelled frames")
parser.add_argument("--config", default="own", help="configuration; default %(default)s")
parser.add_argument("--output", type=Path, default=Path("runs/sweep"), help="folder")
parser.add_argument("--workers", type=int, default=2, help="trainings at a time, per node")
parser.add_argument("--slurm", metavar="PARTITION", help="submit jobs to this partition")
parser.add_argument("--nodes", type=int, default=1, help="largest number of Slurm jobs")
parser.add_argument("--hours", type=int, default=4, help="time limit of a Slurm job")
parser.add_argument("--setup", default="", help="shell command in each job, such as activate")
parser.add_argument("--quick", action="store_true", help="two small sets and few steps")
parser.epilog = "Words after -- are options of lkm-train fit."
end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
options, words = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]


def few_frames(start: int) -> Path:
    """Write 40 of the included frames of ethanol to a file, for --quick."""
    frames, images = read_hdf5(EXAMPLE), []
    for f in range(start, start + 40):
        atoms: Atoms = frames.atoms(f)
        rows = slice(frames.starts[f], frames.starts[f + 1])
        atoms.calc = SinglePointCalculator(
            atoms, energy=frames.energies[f], forces=frames.forces[rows]
        )
        images.append(atoms)
    path = options.output / f"ethanol-{start}.extxyz"
    write(path, images)
    return path


@parsl.bash_app
def train(arguments: list[str], stdout: str, stderr: str) -> str:
    """Return the command of a training."""
    import shlex  # an app runs in another process, without the imports above

    return f"OMP_NUM_THREADS=1 {shlex.join(arguments)}"


options.output.mkdir(parents=True, exist_ok=True)
if options.quick:
    options.data = [few_frames(0), few_frames(40)]
    words = ["--optimiser.epochs", "3", "--model.hypers.num_channels", "8", *words]
if not options.data:
    parser.error("name at least one data file")

if options.slurm:
    provider = SlurmProvider(
        options.slurm,
        walltime=f"{options.hours}:00:00",
        max_blocks=options.nodes,
        worker_init=options.setup,
        launcher=SrunLauncher(),
    )
else:
    provider = LocalProvider(max_blocks=1)
executor = HighThroughputExecutor(
    label="trainings",
    max_workers_per_node=options.workers,
    address=None if options.slurm else "127.0.0.1",
    provider=provider,
)
settings = Config(
    executors=[executor], run_dir=str(options.output / "parsl"), usage_tracking=0, retries=1
)
with parsl.load(settings):
    tasks = {}
    for data in options.data:
        run = options.output / data.stem
        if not (run / "result.json").exists():
            run.mkdir(exist_ok=True)
            command = ["lkm-train", "fit", options.config, "--data", str(data.resolve())]
            command += ["--run.directory", str(run.resolve()), *words]
            log = str(run / "log.txt")
            tasks[data] = train(command, stdout=log, stderr=log)
    for data, task in tasks.items():
        if task.exception() is not None:
            print(f"{data}: {task.exception()}; see {options.output / data.stem / 'log.txt'}")

print(f"{'':30}{'energy MAE, meV':>18}{'force MAE, meV/Å':>18}")
for data in options.data:
    result = options.output / data.stem / "result.json"
    if result.exists():
        found = json.loads(result.read_text(encoding="utf-8"))
        errors = found.get("test_errors", found["validation_errors"])
        print(f"{data.stem:30}{errors['energy_mae']:18.2f}{errors['force_mae']:18.2f}")
