"""Draw the picture of the README: a molecule, and its energies at constant energy.

The run is that of ``python md_examples/nve_ethanol.py --ps 5``:

    python docs/picture.py runs/nve_ethanol docs/nve-ethanol.png
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.io import read
from ase.neighborlist import natural_cutoffs, neighbor_list
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LIGHT = np.array([-0.45, 0.55, 0.7])
"""Where the light comes from, in the frame of the picture."""
CLOUD = 100
"""Last frames whose atoms are drawn as dots behind the molecule."""
TILT = np.radians((14, 20))
"""Turn of the molecule about the x and y axes of the picture, so that no atom hides another."""


def main() -> None:
    """Draw the run of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder that nve_ethanol.py filled")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    frames = read(options.run / "trajectory.traj", ":")
    log = np.genfromtxt(options.run / "energies.csv", delimiter=",", names=True)

    figure = Figure(figsize=(11, 4.2), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.65])
    draw_molecule(left.add_axes((0, 0, 1, 1)), frames)
    draw_energies(right.subplots(2, 1, height_ratios=[1.7, 1]), log, len(frames[0]))
    figure.savefig(options.picture, dpi=140)


def draw_molecule(axes: Axes, frames: list[Atoms]) -> None:
    """Draw the last frame as shaded balls and sticks, with those before it as dots."""
    last = frames[-1]
    middle = last.get_center_of_mass()
    view = np.linalg.svd(last.positions - middle)[2]  # along the shortest extent
    view *= np.sign(np.linalg.det(view))
    (cx, cy), (sx, sy) = np.cos(TILT), np.sin(TILT)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    view = about_x @ about_y @ view

    def seen(atoms: Atoms) -> np.ndarray:
        return (atoms.positions - atoms.get_center_of_mass()) @ fitted(atoms, last) @ view.T

    cloud = np.array([seen(atoms) for atoms in frames[-CLOUD:]])
    points = cloud[-1]
    radii = 0.42 * covalent_radii[last.numbers] + 0.12
    colours = np.where(last.numbers[:, None] == 6, 0.35, jmol_colors[last.numbers])
    first, second = neighbor_list("ij", last, natural_cutoffs(last, mult=1.2))
    for k, colour in enumerate(colours):
        axes.scatter(*cloud[:, k, :2].T, s=7, color=0.75 * colour, alpha=0.3, linewidths=0)
    order = np.argsort(points[:, 2])
    for rank, k in enumerate(order):
        for other in second[first == k]:
            half = (points[k] + points[other]) / 2
            for width, shade in ((9, 0.62), (6, 0.78), (2.5, 0.92)):
                ends = np.stack([points[k], half])
                axes.plot(
                    *ends[:, :2].T, color=str(shade), linewidth=width, zorder=2 * rank + 1,
                    solid_capstyle="butt",
                )  # fmt: skip
        image = ball(colours[k])
        x, y, r = *points[k, :2], radii[k]
        axes.imshow(image, extent=(x - r, x + r, y - r, y + r), zorder=2 * rank + 2, origin="lower")
    low, high = (points[:, :2] - radii[:, None]).min(0), (points[:, :2] + radii[:, None]).max(0)
    margin = 0.25
    axes.set(
        xlim=(low[0] - margin, high[0] + margin),
        ylim=(low[1] - margin, high[1] + margin),
        aspect="equal",
    )
    axes.axis("off")


def fitted(atoms: Atoms, target: Atoms) -> np.ndarray:
    """Return the rotation that lays a structure upon another one."""
    a, b = (each.positions - each.get_center_of_mass() for each in (atoms, target))
    u, _, v = np.linalg.svd((a * atoms.get_masses()[:, None]).T @ b)
    u[:, -1] *= np.sign(np.linalg.det(u @ v))
    return u @ v


def ball(colour: np.ndarray, size: int = 160) -> np.ndarray:
    """Return the picture of a shaded sphere, (size, size, 4)."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size)])
    square = x**2 + y**2
    z = np.sqrt(np.clip(1 - square, 0, None))
    light = LIGHT / np.linalg.norm(LIGHT)
    diffuse = np.clip(x * light[0] + y * light[1] + z * light[2], 0, None)
    shine = np.clip(2 * diffuse * z - light[2], 0, None) ** 30
    shaded = colour * (0.45 + 0.6 * diffuse)[..., None] + 0.55 * shine[..., None]
    image = np.empty((size, size, 4))
    image[..., :3] = shaded.clip(0, 1)
    image[..., 3] = np.clip((1 - np.sqrt(square)) * size / 3, 0, 1)  # a soft edge
    return image


def draw_energies(panels: np.ndarray, log: np.ndarray, atoms: int) -> None:
    """Draw the energies of the last steps, and how level their sum stays over all of them."""
    time, potential, kinetic = (log[n] for n in ("time_ps", "potential_eV", "kinetic_eV"))
    total = 1000 * (potential + kinetic) / atoms
    total -= np.median(total)
    slope, offset = np.polyfit(time, total, 1)
    top, bottom = panels
    top.plot(time, kinetic, linewidth=1.3, color="#d1495b", label="kinetic")
    top.plot(time, potential - potential.min(), linewidth=1.3, color="#2e6f95", label="potential")
    level = kinetic + potential - potential.min()
    top.plot(time, level, linewidth=2, color="0.15", label="total")
    top.set(ylabel="energy, eV", xlim=(time[-1] - 0.3, time[-1]), ylim=(0, 1.3 * level.max()))
    top.set_title(
        "Ethanol at constant energy: the last 0.3 ps, and the total over all",
        fontsize=11,
        loc="left",
    )
    top.legend(loc="upper right", ncols=3, frameon=False)
    bottom.plot(time, total, linewidth=0.4, color="0.55")
    bottom.plot(time, slope * time + offset, color="0.15", linewidth=1.5)
    bottom.set(
        xlabel="time, ps", ylabel="total,\nmeV per atom", xlim=(0, time[-1]), ylim=(-0.5, 0.5)
    )
    text = f"drift {slope:+.4f} meV/atom/ps".replace("-", "\N{MINUS SIGN}")
    bottom.text(0.99, 0.93, text, transform=bottom.transAxes, ha="right", va="top")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
