"""Model card in Markdown."""

from collections.abc import Mapping
from typing import Any

from ..data import describe_labels

ERRORS = (
    ("energy_mae", "energy MAE", "meV"),
    ("energy_rmse", "energy RMSE", "meV"),
    ("energy_per_atom_mae", "energy MAE per atom", "meV"),
    ("force_mae", "force MAE", "meV/Å"),
    ("force_rmse", "force RMSE", "meV/Å"),
    ("stress_mae", "stress MAE", "meV/Å³"),
)
"""Errors in the order of the tables: key, name and unit for energies in eV."""
_OPTIMISERS = {"adamw": "AdamW", "muon": "Muon for matrices, AdamW for other weights"}


def model_card(header: Mapping[str, Any], title: str, command: str, picture: str) -> str:
    """Return the card of a trained model in Markdown.

    Args:
        header: Header of the model file, see :func:`lkm_calc.potential.read_header`.
        title: Title of the card.
        command: Command that reproduces the model.
        picture: Link to the parity plot.
    """
    training = header["provenance"]
    rows = "\n".join(f"| {name} | {text} |" for name, text in facts(header))
    return f"""\
# {title}

| | |
|---|---|
{rows}

## Errors

{_error_table(training)}

One seed.

![parity plots of energies and forces]({picture})

## Reproduce

```
{command}
```

## Limits

The model is valid only for the molecules and the range of geometries in its training frames, not
for bond breaking, other molecules or much higher temperatures. It reproduces the level of theory of
its labels.
"""


def facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what describes a model and its training, as names and texts.

    Args:
        header: Header of the model file, see :func:`lkm_calc.potential.read_header`.
    """
    training = header["provenance"]
    config = training["config"]
    loss, optimiser = config["loss"], config["optimiser"]
    minutes = training["training_seconds"] / 60
    return [
        ("architecture", f"{header['architecture']}{_origin(header)}, {_listed(header['hypers'])}"),
        ("elements", ", ".join(header["elements"])),
        ("cutoff", f"{header['cutoff']:g} Å"),
        ("units", f"energies {training.get('energy_unit', 'eV')}, forces eV/Å"),
        *_start(config),
        ("trained on", _data(training, config["data"])),
        *_isolated(training, header),
        *_labels(training),
        (
            "loss",
            f"{loss['kind']}; weights: energy {loss['energy']:g} (eV per structure), forces "
            f"{loss['forces']:g} (eV/Å per component), LKM γ = {loss['gamma']} "
            f"({loss['lkm_distance']}){_type_weights(loss)}",
        ),
        (
            "optimiser",
            f"{_OPTIMISERS[optimiser.get('kind', 'adamw')]}, {optimiser['epochs']} epochs of "
            f"batches of {optimiser['batch_size']}, learning rate {optimiser['learning_rate']:g} "
            f"after {optimiser['warmup_steps']} warm-up steps, {_decay(optimiser)}"
            f"{_schedule(optimiser)}",
        ),
        ("seed", str(config["run"]["seed"])),
        ("best step", f"{training['step']}, selected on the validation frames"),
        (
            "training time",
            f"{minutes:.0f} min on {training['device']}, {config['run']['dtype']}"
            f"{_first(training)}",
        ),
        (
            "created with",
            f"lkm-calc {training['version']}, torch {training['torch']}, {training['date']}",
        ),
    ]


def _decay(optimiser: Mapping[str, Any]) -> str:
    decay = optimiser.get("weight_decay", 0)
    return f"weight decay {decay:g}, " if decay else ""


def _schedule(optimiser: Mapping[str, Any]) -> str:
    """Describe the schedule after the warm-up; options missing from older files were off."""
    schedule = optimiser.get("schedule", "cosine")
    text = {
        "cosine": f"cosine decay to {optimiser['final_fraction']:g} of it",
        "plateau": f"reduced by a factor {optimiser.get('plateau_factor', 1):g} on plateaus",
        "constant": "constant",
    }[schedule]
    text += f", EMA of the weights ({optimiser['ema_decay']:g})"
    if optimiser.get("swa_fraction"):
        text += f", SWA in the last {optimiser['swa_fraction']:.0%} of the steps"
    return text


def _origin(header: Mapping[str, Any]) -> str:
    """Return the package or module of a custom architecture."""
    origin = header.get("origin", {})
    if "package" in origin:
        return f" of the package {origin['package']} {origin['version']}"
    return f" of the module {origin['module']}" if origin else ""


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if name != "cutoff")


def _start(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row on the model from which the training started, if there was one."""
    parts = [f"finetuned from {name}" for name in [config["run"].get("finetune")] if name]
    first = config.get("pretraining", {})
    if first.get("calculator"):
        parts.append(
            f"pretrained on {first['frames']} frames of molecular dynamics at "
            f"{first['temperature']:g} K with {first['calculator']}, {first['epochs']} epochs, "
            f"learning rate {first['learning_rate']:g}"
        )
    return [("start", "; ".join(parts))] if parts else []


def _first(training: Mapping[str, Any]) -> str:
    """Return the time of a first stage, if there was one."""
    seconds = training.get("pretraining_seconds")
    return f", after {seconds / 60:.0f} min of pretraining" if seconds is not None else ""


def _data(training: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    file, other = training["files"]["train"], training["files"].get("validation")
    origin = f" of {other['name']}" if other else ""
    labels = "" if data["labels"] == "revised" else f"{data['labels']} labels, "
    tested = f", {data['n_test']} test frames" if data.get("n_test") else ""
    return (
        f"{data['n_train']} frames of {file['name']} ({labels}{data['n_validation']} validation "
        f"frames{origin}{tested}), SHA-256 {file['sha256'][:16]}…"
    )


def _isolated(training: Mapping[str, Any], header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row on isolated atoms, if there were any."""
    if "isolated_atoms" not in training:
        return []
    energies = training["isolated_atoms"]["energies"]
    listed = ", ".join(f"{s} {e:.4f} eV" for s, e in energies.items() if s in header["elements"])
    frames = training["isolated_atoms"]["frames"]
    return [("isolated atoms", f"{listed}: exact, from {frames} further frame(s) of the file")]


def _labels(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row with the numbers of labels, which older files do not contain."""
    counts = training.get("labels", {})
    parts = [f"{name} frames: {describe_labels(counts[name])}" for name in counts]
    return [("labels", "; ".join(parts))] if parts else []


def _type_weights(loss: Mapping[str, Any]) -> str:
    """Describe the weights by config_type, if there are any."""
    weights = loss.get("config_type_weights", {})
    listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    return f"; weights by config_type: {listed}" if listed else ""


def error_rows(training: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the names of the sets with errors, and rows of errors with their names."""
    sets = [name for name in ("validation", "test") if f"{name}_errors" in training]
    energy_unit = training.get("energy_unit", "eV")
    rows = []
    for key, label, unit in ERRORS:
        if key not in training[f"{sets[0]}_errors"]:
            continue
        if energy_unit != "eV" and key.startswith("energy"):
            unit = f"10⁻³ {energy_unit}"
        values = [f"{training[f'{name}_errors'][key]:.2f}" for name in sets]
        rows.append([f"{label}, {unit}", *values])
    return sets, rows


def _error_table(training: Mapping[str, Any]) -> str:
    sets, rows = error_rows(training)
    lines = [
        f"| | {' | '.join(f'{name} frames' for name in sets)} |",
        "|---" * (len(sets) + 1) + "|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
