"""Where to compute."""

import torch


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA when there is one, else the CPU.

    Raises:
        ValueError: There is no such device, or it has no float64, in which energies are summed.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name, dtype=torch.float64).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used ({error}). Choose 'auto', 'cpu' or one that torch "
            "sees and that has float64, such as 'cuda'."
        ) from error
    return torch.device(name)
