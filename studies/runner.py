"""Run the arms of a study, sequentially or in parallel, and store their results."""

import json
import logging
import multiprocessing
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from train.config import config_from_table, merge, to_table
from train.fit import Record, fit
from train.gradients import Programs, program_key
from train.report import write_json

from .arms import Arm

logger = logging.getLogger("lkm_train")

DIGITS = 6
"""Significant, of the figures that are kept."""


def run_study(
    arms: Iterable[Arm],
    data: Path,
    work: Path,
    results: Path,
    overrides: Mapping[str, Any],
    workers: int = 1,
) -> None:
    """Train the arms whose results are not there yet.

    A run that was stopped goes on where it stood. Studies that have an arm in common share its
    result; do not run such studies in one folder at the same time.

    Args:
        arms: In the order in which they are wanted.
        data: Folder of the data sets, to which the arms' files are relative.
        work: Folder for the runs.
        results: Folder of the figures, a file for each training.
        overrides: Changes to all configurations that say how, not what: device, compilation.
        workers: Number of processes side by side.
    """
    missing = {arm.digest: arm for arm in arms if not result_path(arm, results).exists()}
    groups: dict[object, list[Arm]] = {}
    for arm in missing.values():  # arms of one compiled program together
        key = program_key(arm.config), arm.config.data.train, arm.config.optimiser.batch_size
        groups.setdefault(key, []).append(arm)
    logger.info("%d arms in %d groups are to be trained.", len(missing), len(groups))
    if workers == 1:
        for group in groups.values():
            _run_group(group, data, work, results, overrides)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        futures = [
            pool.submit(_run_group, group, data, work, results, overrides)
            for group in groups.values()
        ]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def result_path(arm: Arm, results: Path) -> Path:
    """Return where the figures of an arm are kept."""
    return results / f"{arm.digest}.json"


def _run_group(
    arms: Iterable[Arm],
    data: Path,
    work: Path,
    results: Path,
    overrides: Mapping[str, Any],
) -> None:
    """Train arms that may share compiled programs, one after the other."""
    programs: Programs = {}
    for arm in arms:
        path = result_path(arm, results)
        if path.exists():  # made by another study meanwhile
            continue
        files = {
            key: str(data / name)
            for key, name in (("train", arm.config.data.train), ("test", arm.config.data.test))
            if name
        }
        where = {"data": files, "run": {"directory": str(work / arm.digest)}}
        table = merge(merge(to_table(arm.config), where), overrides)
        config = config_from_table(table)
        logger.info("%s: %s", arm.study, arm.name)
        if fit(config, programs=programs) is None:
            raise KeyboardInterrupt("stopped; the same command goes on from here")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _figures(arm, Record(config)))


def _figures(arm: Arm, record: Record) -> dict[str, Any]:
    """Return what is kept of a finished run."""
    result = json.loads((record.directory / "result.json").read_text())
    rows = [row for row in record.read_metrics() if "layers_lkm" in row]
    last = rows[-1]
    return {
        "configuration": arm.changes,
        "validation": _rounded(result["validation_errors"]),
        "test": _rounded(result.get("test_errors", {})),
        "train": _rounded({k[6:]: v for k, v in last.items() if k.startswith("train_")}),
        "layers": _rounded({k[7:]: v for k, v in last.items() if k.startswith("layers_")}),
        "steps": last["step"],
        "best_step": result["step"],
        "torch": result["torch"],
        "device": result["device"],
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in figures.items()}
