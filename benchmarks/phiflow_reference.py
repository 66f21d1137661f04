"""Wake flows by PhiFlow, written to tests/solvers/phiflow.npz, which test_wake.py compares with.

Run by hand, in an environment of its own (PhiFlow is not needed by the tests; half a minute)::

    pip install phiflow==3.4.0
    python benchmarks/phiflow_reference.py

All is PhiFlow's: explicit diffusion, semi-Lagrangian advection, the pressure by conjugate gradients
to 1e-10 in float64. Two things are as in PhiFlow 1.5.1, which Um et al. used:

- closed are whole cells (`hard_mask`); 3.4 multiplies velocities by a soft mask of the obstacle
  before it solves for the pressure;
- a component is diffused as a grid of its own (`diffused`); of a staggered grid, 3.4 leaves out the
  outermost faces.

States are as those of WakeFlow2D, (2, 2 * resolution + 1, resolution + 1).
"""

from pathlib import Path

import numpy as np
from phi import flow as phi
from phi.physics import fluid

FILE = Path(__file__).resolve().parents[1] / "tests" / "solvers" / "phiflow.npz"
FRAMES = (0, 20, 80, 100)


def hard_mask(velocity, obstacles):
    """Return the velocity with no flow through any face of a cell whose centre is inside."""
    outside = phi.field.Field(
        velocity.geometry, ~phi.union([each.geometry for each in obstacles]), phi.extrapolation.ONE
    )
    faces = phi.field.stagger(
        outside, phi.math.minimum, velocity.boundary, at="face", dims=velocity.vector.item_names
    )
    return velocity * faces


def diffused(values, amount, size):
    """Return a component after a step of diffusion; beyond the edge it goes on as it is there."""
    box = phi.Box(y=values.shape[0] * size, x=values.shape[1] * size)
    grid = phi.CenteredGrid(
        phi.math.tensor(values, phi.spatial("y,x")), phi.extrapolation.ZERO_GRADIENT, box
    )
    return phi.diffuse.explicit(grid, amount, 1.0).values.numpy("y,x").copy()


def simulate(resolution, reynolds):
    """Return a state for each of FRAMES."""
    rows, columns = 2 * resolution, resolution
    along = np.ones((rows + 1, columns))
    across = np.zeros((rows, columns + 1))
    middle = columns // 2
    across[rows // 2 + 10 : rows // 2 + 20, middle - 2 : middle + 2] = 1
    box = phi.Box(y=200, x=100)
    cylinder = phi.Obstacle(phi.Sphere(y=50, x=50, radius=10))
    solve = phi.Solve("CG", 1e-10, 1e-10, max_iterations=5000)

    def grid(along, across):
        values = phi.math.stack(
            {
                "y": phi.math.tensor(along, phi.spatial("y,x")),
                "x": phi.math.tensor(across, phi.spatial("y,x")),
            },
            phi.dual("vector"),
        )
        return phi.StaggeredGrid(values, phi.extrapolation.ZERO_GRADIENT, box, y=rows, x=columns)

    def arrays(velocity):
        return [velocity.values.vector.dual[name].numpy("y,x").copy() for name in ("y", "x")]

    frames = {}
    for frame in range(max(FRAMES) + 1):
        if frame in FRAMES:
            state = np.zeros((2, rows + 1, columns + 1), dtype=np.float32)
            state[0, :, :-1], state[1, :-1, :] = along, across
            frames[frame] = state
        viscosity = 1e5 / 128**2 / reynolds
        along, across = (diffused(each, viscosity, 100 / resolution) for each in (along, across))
        along[:2] = along[:, 0] = along[:, -1] = 1
        velocity = grid(along, across)
        velocity = phi.advect.semi_lagrangian(velocity, velocity, 1.0)
        velocity, _ = fluid.make_incompressible(velocity, cylinder, solve)
        along, across = arrays(velocity)
    return np.stack([frames[frame] for frame in FRAMES])


def main():
    """Write the file."""
    phi.math.set_global_precision(64)
    fluid.apply_boundary_conditions = hard_mask
    found = {
        "frames": np.array(FRAMES),
        "coarse": simulate(16, 97.65625),
        "fine": simulate(32, 1562.5)[1:],
    }
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
