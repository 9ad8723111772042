"""Command line of the studies: ``python -m studies run gamma --data FOLDER`` and ``report``."""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from train.config import ConfigError
from train.data import DataError
from train.fit import TrainingDivergedError
from train.state import StateError

from .arms import HERE, how_to_run, quick, read_study, study_files
from .report import write_report
from .runner import run_study

RESULTS = HERE / "results"
STUDIES = [path.stem for path in study_files()]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m studies", description="Evidence on LKM.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="train the arms of a study that have no result yet",
        epilog="Further options change all arms in how they run: --run.device cuda, "
        "--run.cuda_graphs true, --run.compile true.",
    )
    run.add_argument("study", choices=[*STUDIES, "all"])
    run.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("LKM_DATA", "."),
        help="folder that holds rmd17/, qm9/ and chignolin/ (default: $LKM_DATA or here)",
    )
    run.add_argument("--work", type=Path, default=Path("runs/studies"), help="folder for the runs")
    run.add_argument("--results", type=Path, default=RESULTS, help="folder for the figures")
    run.add_argument("--only", default="", help="arms whose names hold this, as model=pamnet")
    run.add_argument("--workers", type=int, default=1, help="processes side by side")
    run.add_argument("--quick", action="store_true", help="every arm for a few steps, kept nowhere")
    report = commands.add_parser("report", help="make the tables and plots of the documentation")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command == "report":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.command == "report":
            write_report(options.results, options.docs)
            return 0
        names = STUDIES if options.study == "all" else [options.study]
        arms = [arm for name in names for arm in read_study(HERE / f"{name}.toml")]
        arms = [arm for arm in arms if options.only in arm.name]
        overrides = how_to_run(rest)
        if not options.quick:
            run_study(
                arms,
                options.data,
                options.work,
                options.results / "arms",
                overrides,
                options.workers,
            )
            return 0
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            run_study(
                quick(arms),
                place,
                place / "runs",
                place / "results" / "arms",
                overrides,
                options.workers,
            )
            write_report(place / "results", place)
    except (ConfigError, DataError, StateError, TrainingDivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{error}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
