"""Choice of the device."""

import torch


def choose_device(name: str) -> torch.device:
    """Return the device for a name; "auto" is CUDA if available, else the CPU.

    Raises:
        ValueError: The device does not exist or does not support float64, used to sum energies.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name, dtype=torch.float64).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used ({error}). Choose 'auto', 'cpu' or a torch device "
            "that supports float64, such as 'cuda'."
        ) from error
    return torch.device(name)
