"""Join files of frames of one molecule in the layout of MD17 or rMD17.

python -m studies.join FILE FILE ... OUTPUT
"""

import argparse
from pathlib import Path

import numpy as np


def join(files: list[Path], output: Path) -> int:
    """Write the frames of some files to one, in the same order, and return their number.

    Raises:
        ValueError: The files have different arrays or different molecules.
    """
    parts = [dict(np.load(file)) for file in files]
    atoms = "z" if "z" in parts[0] else "nuclear_charges"
    joined = {atoms: parts[0].pop(atoms)}
    for file, part in zip(files[1:], parts[1:], strict=True):
        same = np.array_equal(part.pop(atoms, ()), joined[atoms])
        if not same or part.keys() != parts[0].keys():
            raise ValueError(
                f"{file} has other atoms or arrays than {files[0]}. Join "
                "files of one molecule and one source."
            )
    joined |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(output, **joined)
    return len(joined["energies" if "energies" in joined else "E"])


def main() -> None:
    """Join the files and print the number of frames."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    options = parser.parse_args()
    print(f"{join(options.files, options.output)} frames: {options.output}")


if __name__ == "__main__":
    main()
