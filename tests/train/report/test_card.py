from train.report.card import model_card

ERRORS = {
    "energy_mae": 1.234,
    "energy_rmse": 2.0,
    "energy_per_atom_mae": 0.1,
    "force_mae": 9.876,
    "force_rmse": 12.0,
}


def header(**errors):
    from train.config import Config, DataConfig, to_table

    return {
        "architecture": "dimenet++",
        "hypers": {"hidden": 8, "cutoff": 4.0},
        "elements": ["H", "O"],
        "cutoff": 4.0,
        "provenance": {
            "config": to_table(Config(DataConfig(n_train=950, n_validation=50))),
            "files": {"train": {"name": "water.npz", "sha256": "ab" * 32}},
            "training_seconds": 600.0,
            "device": "cpu, 1 thread(s)",
            "step": 123,
            "version": "0.1.0",
            "torch": "2.13.0",
            "date": "2026-01-01",
            **errors,
        },
    }


def test_card_tells_recipe_and_errors():
    card = model_card(
        header(test_errors=ERRORS, validation_errors=ERRORS | {"force_mae": 5.5}),
        "Water",
        "lkm-train fit water.toml",
        "water.png",
    )
    assert card.startswith("# Water\n")
    assert "| force MAE, meV/Å | 5.50 | 9.88 |" in card
    assert "950 frames of water.npz" in card
    assert "10 min on cpu" in card
    assert "hidden 8 |" in card
    assert "lkm-train fit water.toml" in card
    assert "](water.png)" in card


def test_card_without_a_test_set():
    card = model_card(header(validation_errors=ERRORS), "Water", "", "")
    assert "| | validation frames |\n|---|---|\n| energy MAE, meV | 1.23 |" in card
