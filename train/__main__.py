"""The command lkm-train."""

import argparse
import dataclasses
import json
import logging
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lkm_calc import EnergyModel, load_model
from lkm_calc.commands import add_batch_size_option, add_device_option, add_import_option
from lkm_calc.files import expanded
from lkm_calc.models import ArchitectureError, import_architectures
from lkm_calc.page import PageError, check_packages
from lkm_calc.potential import ModelFileError
from lkm_calc.runtime import add_version, fast_matmul, on_any_terminal

from .config import Config, ConfigError, DataConfig, read_config
from .data import (
    DataError,
    Frames,
    GraphFrames,
    atom_errors,
    isolated_atoms,
    structures_of,
)
from .doctor import diagnose, plot_report, report_text, write_report_page
from .download import SOURCES, download
from .fit import (
    TrainingDivergedError,
    check_elements,
    device_of,
    first_process,
    fit,
    fit_members,
    parse_time,
    prolonged,
)
from .formats import FORMATS, LabelKeys, read_frames
from .report import (
    Measured,
    calibrate_file,
    errors_of,
    held_frames,
    own_split,
    predict,
    read_run,
    write_comparison,
    write_run_page,
)
from .state import StateError

logger = logging.getLogger("lkm_train")

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that come with the package."""

DESCRIPTION = """\
Train force fields with Layer-to-Layer Knowledge Mixing, and evaluate them.

  lkm-train fit CONFIG.toml                        train, or continue a run that was stopped
  lkm-train fit CONFIG.toml --optimiser.epochs 10  override a value of the configuration
  lkm-train fit rmd17 --molecule ethanol --data FILE   use a bundled configuration
  lkm-train fit CONFIG.toml --time 2h              train for about two hours
  lkm-train fit CONFIG.toml --prolong 300          continue a finished run to 300 epochs in total
  lkm-train fit CONFIG.toml --members 4            train a committee
  lkm-train fit CONFIG.toml --finetune MODEL       start from a trained model
  lkm-train fit CONFIG.toml --pretrain gfn2-xtb    pretrain on dynamics with a cheap method
  lkm-train fit CONFIG.toml --import my_model.py   train a custom architecture
  torchrun --nproc-per-node 4 -m lkm_train fit CONFIG.toml   train on several GPUs
  lkm-train report RUN --open                      write an interactive page about a run
  lkm-train compare RUN RUN --open                 compare learning curves, errors and options
  lkm-train evaluate MODEL DATA                    compute errors on labelled frames
  lkm-train calibrate MODEL DATA                   calibrate the extrapolation guards of a model
  lkm-train check-data DATA                        check labelled frames for errors
  lkm-train download md17-aspirin FOLDER           download a public data set
"""

FIT = """\
Train a model from a TOML configuration, which only contains values that differ from the defaults
below. Ctrl-C finishes the current step and saves the state; the same command then continues.

Files in the run directory: config.json, split.npz, metrics.jsonl, state.pt (training state),
model.safetensors (lowest validation error, for LKMCalculator), last.safetensors, result.json,
card.md, learning_curves.png, parity.png and report.html.
"""


REPORT = """\
Write an interactive page about a run, report.html in its directory: parity plots, errors against
expected errors, the structures in 3D with forces and force errors, learning curves and settings.
It is a single file, for any browser, without network access. lkm-train fit writes it at the end of
a run. Needs pip install lkm-calc[report].

The test frames of the run are evaluated, or the validation frames if it has no test set.
"""


CHECK = """\
Check labelled frames for errors: NaN, units, duplicates, atoms too close, outliers, forces that
are not the negative gradient of the energy, net forces and torques, reference energies.

Exit status: 0 if no errors were found, 1 if errors were found, 2 if the file cannot be read.
"""


CALIBRATE = """\
Evaluate a model on labelled held-out frames and store the calibration of the guards of
LKMCalculator(on_extrapolation=...) in its file: quantiles of the force errors, statistics of the
embeddings of training atoms, and the closest distance of each pair of elements in the training
frames. The weights are not changed. lkm-train fit calibrates automatically.

If DATA is the file that the model was trained on, its validation frames are used.
"""


@on_any_terminal
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 success, 1 error, 3 stopped before the end."""
    # With several processes, only the first one logs progress.
    level = logging.INFO if first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _fit:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    try:
        import_architectures(options.imports)
        return int(options.command(options, rest))
    except BrokenPipeError:
        raise
    except (
        ArchitectureError,
        ConfigError,
        DataError,
        ModelFileError,
        OSError,
        PageError,
        StateError,
        TrainingDivergedError,
    ) as error:
        logger.error("lkm-train: %s", error)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lkm-train", description=DESCRIPTION, formatter_class=raw)
    parser.set_defaults(imports=[])
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit_parser = commands.add_parser(
        "fit", help="train a model", description=FIT, epilog=_defaults(), formatter_class=raw
    )
    ready = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
    fit_parser.add_argument(
        "config", metavar="CONFIG", help=f"TOML file or bundled configuration: {ready}"
    )
    fit_parser.add_argument(
        "--molecule", metavar="NAME", help="use the bundled configuration for it, if there is one"
    )
    fit_parser.add_argument(
        "--data", metavar="FILE", help="training frames; the same as --data.train"
    )
    fit_parser.add_argument(
        "--stop-after", type=int, metavar="N", help="stop after N steps in total; can be continued"
    )
    fit_parser.add_argument(
        "--time", type=parse_time, metavar="T", help="train for about this long: 2h, 90min, 45s"
    )
    fit_parser.add_argument(
        "--prolong", type=int, metavar="N", help="continue a run to N epochs in total"
    )
    fit_parser.add_argument(
        "--members", type=int, metavar="N", help="train a committee of N with different seeds"
    )
    fit_parser.add_argument(
        "--finetune", metavar="MODEL", help="model to start from; the same as --run.finetune"
    )
    fit_parser.add_argument(
        "--pretrain",
        metavar="METHOD",
        help="pretrain on molecular dynamics with gfn2-xtb or another ASE calculator; the same as "
        "--pretraining.calculator",
    )
    add_import_option(fit_parser)
    fit_parser.set_defaults(command=_fit)
    evaluate = commands.add_parser(
        "evaluate",
        help="compute errors of a model on labelled frames",
        description="Print the errors of a model on the frames of a file, as JSON. Isolated atoms "
        "are listed separately.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="bundled name or model file")
    _add_measuring_options(evaluate)
    evaluate.set_defaults(command=_evaluate)
    report = commands.add_parser(
        "report",
        help="write an interactive page about a run",
        description=REPORT,
        formatter_class=raw,
    )
    report.add_argument("run", type=expanded, metavar="RUN", help="directory of a run")
    report.add_argument(
        "--data", metavar="FILE", help="labelled frames to evaluate instead, or their new path"
    )
    report.add_argument(
        "--output", type=expanded, metavar="HTML", help="default: report.html in RUN"
    )
    report.add_argument("--open", action="store_true", help="open the page in a browser")
    add_device_option(report)
    add_batch_size_option(report, 16)
    add_import_option(report)
    report.set_defaults(command=_report)
    compare = commands.add_parser(
        "compare",
        help="compare runs on an interactive page",
        description="Write an interactive page with the learning curves and errors of several runs "
        "and a table of the options that differ. Needs pip install lkm-calc[report].",
    )
    compare.add_argument(
        "runs", nargs="+", type=expanded, metavar="RUN", help="directories of two runs or more"
    )
    compare.add_argument(
        "--output",
        type=expanded,
        default=Path("compare.html"),
        metavar="HTML",
        help="default: %(default)s",
    )
    compare.add_argument("--open", action="store_true", help="open the page in a browser")
    compare.set_defaults(command=_compare)
    calibrate = commands.add_parser(
        "calibrate",
        help="calibrate the extrapolation guards of a model",
        description=CALIBRATE,
        formatter_class=raw,
    )
    calibrate.add_argument("model", type=expanded, metavar="MODEL", help="model file to update")
    _add_measuring_options(calibrate)
    calibrate.add_argument(
        "--train", metavar="FILE", help="training frames of the model, if DATA is another file"
    )
    calibrate.set_defaults(command=_calibrate)
    check = commands.add_parser(
        "check-data",
        help="check labelled frames for errors",
        description=CHECK,
        formatter_class=raw,
    )
    _add_data_options(check)
    check.add_argument(
        "--output",
        type=expanded,
        metavar="FILE",
        help="also write a plot (.png) or an interactive page (.html)",
    )
    check.set_defaults(command=_check_data)
    fetch = commands.add_parser("download", help="download a public data set")
    fetch.add_argument("name", metavar="NAME", help=", ".join(SOURCES))
    fetch.add_argument("folder", metavar="FOLDER")
    fetch.set_defaults(command=_download)
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the data file and its options, named like the keys of the section data."""
    parser.add_argument("data", metavar="DATA", help="data file in any format supported by fit")
    parser.add_argument("--format", default=DataConfig.format, help="auto, " + ", ".join(FORMATS))
    parser.add_argument(
        "--labels", choices=("revised", "original"), help="labels of revised MD17 to use"
    )
    parser.add_argument("--target", help="property of QM9")
    parser.add_argument("--energy-unit", default="", help="for files that do not specify it")
    parser.add_argument("--length-unit", default="", help="for files that do not specify it")
    for label in LabelKeys._fields:
        parser.add_argument(
            f"--{label}-key", metavar="NAME", help=f"name of the {label} in the file"
        )
    parser.add_argument(
        "--no-check-units",
        dest="check_units",
        action="store_false",
        help="accept labels that are implausible in their units",
    )


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add options for data and for evaluating a model."""
    _add_data_options(parser)
    add_device_option(parser)
    add_batch_size_option(parser, 16)
    add_import_option(parser)


def _read(
    options: argparse.Namespace, check_units: bool, learnt: Mapping[str, Any] | None = None
) -> Frames:
    """Read the data file; options not given default to the data section of the training."""
    learnt = learnt or {}
    keys = [f"{label}_key" for label in LabelKeys._fields]
    return read_frames(
        options.data,
        options.format,
        options.labels or learnt.get("labels", DataConfig.labels),
        options.target or learnt.get("target", DataConfig.target),
        options.energy_unit,
        options.length_unit,
        check_units,
        LabelKeys(*(getattr(options, key) or learnt.get(key, "") for key in keys)),
    )


def _defaults() -> str:
    """Return sections, keys and defaults of the configuration."""
    lines = ["Configuration keys and their defaults:", ""]
    for section in dataclasses.fields(Config):
        values = getattr(Config(), section.name)
        lines.append(f"[{section.name}]")
        lines += [f"{f.name} = {getattr(values, f.name)!r}" for f in dataclasses.fields(values)]
        lines.append("")
    return "\n".join(lines)


def _fit(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    path, directory = _find_config(options.config, options.molecule)
    given = {
        "--run.directory": directory,
        "--data.train": options.data,
        "--run.finetune": options.finetune,
        "--pretraining.calculator": options.pretrain,
    }
    shorthand = [word for flag, value in given.items() if value for word in (flag, str(value))]
    config = read_config(path, [*shorthand, *overrides])
    if options.prolong is not None:
        if options.time or options.members:
            raise ConfigError("--prolong cannot be combined with --time or --members.")
        config = prolonged(config, options.prolong)
    if options.members is not None:
        return _fit_members(config, options.members, options.time)
    model = fit(config, options.stop_after, seconds=options.time)
    if model is None:
        logger.info("Stopped. Run the same command to continue.")
        return 3
    result = json.loads((model.parent / "result.json").read_text(encoding="utf-8"))
    for name in ("validation_errors", "test_errors"):
        if name in result:
            logger.info("%s: %s", name.replace("_", " "), json.dumps(result[name]))
    logger.info("The model is %s; plots are in the same folder.", model)
    return 0


def _find_config(name: str, molecule: str | None) -> tuple[Path, str | None]:
    """Return the path of a configuration and, if bundled, its default run directory."""
    path = expanded(name)
    if path.suffix or path.is_file():
        if molecule:
            raise ConfigError(
                f"--molecule is for bundled configurations, not for {name}. Remove the option."
            )
        return path, None
    labels = [f"{name}-{molecule}", name] if molecule else [name]
    for label in labels:
        path = CONFIGS / f"{label}.toml"
        if path.exists():
            return path, f"runs/{labels[0]}"
    ready = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
    raise ConfigError(
        f"There is no bundled configuration {name!r}. Specify a TOML file, before other options, "
        f"or one of {ready}."
    )


def _fit_members(config: Config, members: int, seconds: float | None) -> int:
    models = fit_members(config, members, seconds)
    if models is None:
        logger.info("Stopped. Run the same command to continue.")
        return 3
    logger.info("The models are %s.", ", ".join(map(str, models)))
    return 0


def _download(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    logger.info("%s", download(options.name, options.folder))
    return 0


def _check_data(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    try:
        frames = _read(options, check_units=False)
    except DataError as error:
        logger.error("lkm-train: %s", error)
        return 2
    report = diagnose(frames)
    sys.stdout.write(report_text(report, options.data) + "\n")
    if options.output:
        try:
            if options.output.suffix in (".html", ".htm"):
                write_report_page(frames, report, options.data, options.output)
            else:
                plot_report(frames, report, options.output)
        except (OSError, PageError, ValueError) as error:  # folder, packages or image format
            logger.error("lkm-train: --output %s cannot be written: %s", options.output, error)
            return 2
    return 1 if report.faulty else 0


def _report(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    _check_batch_size(options)
    check_packages()
    run = read_run(options.run)
    model = load_model(run.model, device=device_of(options.device, "--device"))
    held = held_frames(run, model, options.data or "")
    source = options.data or f"the {held.name} set of {options.run}"
    _check_unit(model, held.frames, source)
    check_elements(model, held.frames, source)
    data = GraphFrames(held.frames, model, model.device)
    with fast_matmul():
        predictions = predict(model, data, options.batch_size)
        found = Measured(model, held, data, predictions, options.batch_size)
        path = options.output or run.directory / "report.html"
        write_run_page(run, found, path)
    _show(path, options.open)
    return 0


def _compare(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    write_comparison([read_run(run) for run in options.runs], options.output)
    _show(options.output, options.open)
    return 0


def _show(page: Path, in_browser: bool) -> None:
    """Log the path of a page, and open it if requested."""
    logger.info("%s", page)
    if in_browser and not webbrowser.open(page.resolve().as_uri()):
        logger.warning("No browser was found. Open %s in one.", page)


def _model_and_frames(options: argparse.Namespace) -> tuple[EnergyModel, Frames]:
    """Return the model on its device, and the frames, checked for unit and elements."""
    _check_batch_size(options)
    model = load_model(options.model, device=device_of(options.device, "--device"))
    frames = _read(options, options.check_units, model.provenance.get("config", {}).get("data"))
    _check_unit(model, frames, options.data)
    if not frames.isolated.all():
        check_elements(model, structures_of(frames, options.data), options.data)
    return model, frames


def _check_batch_size(options: argparse.Namespace) -> None:
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; it must be at least 1.")


def _check_unit(model: EnergyModel, frames: Frames, source: str) -> None:
    """Raise a DataError if the model was trained on a property in another unit."""
    unit = model.provenance.get("energy_unit", "eV")
    if frames.energy_unit != unit:
        raise DataError(
            f"{source} contains energies in {frames.energy_unit}, but the model was trained on a "
            f"property in {unit}. Select the property with --target."
        )


def _calibrate(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    if not options.model.is_file():
        raise ConfigError(
            f"There is no file {str(options.model)!r}. Specify the path of a model file."
        )
    model, frames = _model_and_frames(options)
    held_out = training = structures_of(frames, options.data)
    split = own_split(model, frames, options.data)
    if split is not None:
        training, held_out = frames.select(split.train), frames.select(split.validation)
    elif not options.train:
        raise ConfigError(
            f"{options.data} is not the file that the model was trained on. Specify that file with "
            "--train: the guards need the training frames."
        )
    if options.train:
        options.data = options.train
        training = structures_of(_model_and_frames(options)[1], options.data)
    with fast_matmul():
        found = calibrate_file(
            options.model,
            GraphFrames(held_out, model, model.device),
            GraphFrames(training, model, model.device),
            options.batch_size,
        )
    sys.stdout.write(json.dumps(found.as_data(), indent=1) + "\n")
    return 0


def _evaluate(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    model, frames = _model_and_frames(options)
    isolated = isolated_atoms(frames, options.data)
    figures: dict[str, Any] = {}
    if isolated.n_frames < len(frames):
        data = GraphFrames(structures_of(frames, options.data), model, model.device)
        with fast_matmul():
            figures |= errors_of(predict(model, data, options.batch_size)).figures()
    if isolated.n_frames:
        figures["isolated_atoms"] = atom_errors(model, isolated.energies)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
