"""Contrast-enhanced abdominal CT in Hounsfield units: liver, spleen, kidneys, vessels, spine, lesions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from hssl_dist.synthetic.anatomy import (
    Grid,
    Phantom,
    deformed,
    ellipse,
    ellipsoid,
    jitter,
    smooth_noise,
    vary,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

    from hssl_dist.records import Triple

Target = Literal["liver", "kidney"]

# The liver's challenge is taken in the portal venous phase, the kidney's in the arterial one: how much more
# the contrast medium adds to the aorta, to the kidneys, and to the liver, spleen and veins.
_PHASE_HU: dict[Target, tuple[float, float, float]] = {
    "liver": (0.0, 0.0, 0.0),
    "kidney": (110.0, 45.0, -30.0),
}
_AIR_HU, _FAT_HU, _MUSCLE_HU, _SPINE_HU, _BOWEL_HU = -1000.0, -95.0, 55.0, 280.0, 25.0


def abdomen(anatomy: np.random.Generator, scan: np.random.Generator, target: Target) -> Phantom:
    """A patient's abdomen (`anatomy`) as one scanner takes it (`scan`: grid, noise).

    The label has liver 1 and tumour 2, or kidney 1 and cyst 2, by the target.
    """
    spacing = (float(scan.uniform(4.0, 6.0)), *(float(np.round(scan.uniform(3.6, 4.6), 2)),) * 2)
    grid = Grid((int(scan.integers(26, 35)), *(int(scan.integers(58, 70)),) * 2), spacing)
    points = deformed(anatomy, grid, amplitude_mm=5.0, length_mm=38.0)
    points = (points / np.exp(0.07 * anatomy.standard_normal())).astype(np.float32)

    image, cavity = _trunk(points)
    organs = _organs(anatomy, points, cavity, _PHASE_HU[target])
    for name, (inside, density_hu) in organs.items():
        texture = smooth_noise(anatomy, grid, 7.0)
        image = np.where(inside, density_hu + (12.0 if name == "bowel" else 7.0) * texture, image)
    lesions = _lesions(anatomy, points, organs[target][0], target)
    drop_hu = float(anatomy.uniform(35.0, 60.0)) * (1.0 if target == "liver" else 2.0)
    image = np.where(lesions, organs[target][1] - drop_hu + 5.0 * smooth_noise(anatomy, grid, 6.0), image)

    label = np.where(lesions, 2, np.where(organs[target][0], 1, 0)).astype(np.uint8)
    noise_hu = scan.uniform(10.0, 22.0) * smooth_noise(scan, grid, 1.8)
    return Phantom(np.clip(image + noise_hu, -1024, 3071).astype(np.float32), label, grid.spacing_mm)


def _trunk(
    points: Float32[np.ndarray, "3 z y x"],
) -> tuple[Float32[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """Air, skin fat, muscle and the fat of the cavity, in HU, and where the cavity is."""
    body = ellipse(points, (0.0, 0.0), (92.0, 125.0))
    wall = ellipse(points, (0.0, 0.0), (82.0, 112.0))
    cavity = ellipse(points, (4.0, 0.0), (68.0, 99.0))
    image = np.full(body.shape, _AIR_HU, dtype=np.float32)
    for inside, density_hu in ((body, _FAT_HU), (wall, _MUSCLE_HU), (cavity, _FAT_HU)):
        image[inside] = density_hu
    return image, cavity


def _organs(
    random: np.random.Generator,
    points: Float32[np.ndarray, "3 z y x"],
    cavity: Bool[np.ndarray, "z y x"],
    phase_hu: tuple[float, float, float],
) -> dict[str, tuple[Bool[np.ndarray, "z y x"], float]]:
    """Organs and their densities in HU, in the order in which later ones replace earlier ones."""

    def blob(centre_mm: Triple, radii_mm: Triple) -> Bool[np.ndarray, "z y x"]:
        return ellipsoid(points, jitter(random, centre_mm, 4.0), vary(random, radii_mm, 0.09))

    dose_hu = float(random.uniform(-15.0, 25.0))
    arteries_hu, kidneys_hu, others_hu = phase_hu
    bowel = np.zeros_like(cavity)
    for _ in range(9):
        centre = (random.uniform(-80, 10), random.uniform(-10, 50), random.uniform(-70, 70))
        bowel |= ellipsoid(points, centre, vary(random, (15.0, 13.0, 17.0), 0.2))
    liver = blob((28.0, 8.0, 48.0), (52.0, 52.0, 50.0)) | blob((36.0, 26.0, 6.0), (30.0, 26.0, 46.0))
    spleen = blob((30.0, -22.0, -72.0), (34.0, 30.0, 20.0))
    stomach = blob((34.0, 26.0, -46.0), (28.0, 24.0, 28.0))
    kidney = np.zeros_like(cavity)
    for side in (-1.0, 1.0):
        centre = jitter(random, (-22.0 - 6.0 * side, -36.0, 50.0 * side), 4.0)
        radii = vary(random, (40.0, 21.0, 23.0), 0.09)
        hilum = (centre[0], centre[1] + 5.0, centre[2] - 0.95 * radii[2] * side)
        kidney |= ellipsoid(points, centre, radii) & ~ellipsoid(
            points, hilum, (0.45 * radii[0], 0.5 * radii[1], 0.7 * radii[2])
        )
    spine = ellipse(points, (-58.0, 0.0), (20.0, 22.0))
    aorta = ellipse(points, (-28.0, -8.0), (9.0, 9.0))
    cava = ellipse(points, (-26.0, 18.0), (9.0, 11.0))
    liver &= cavity & ~cava
    kidney &= ~liver
    return {
        "bowel": (bowel & cavity, _BOWEL_HU),
        "stomach": (stomach & cavity, 12.0),
        "spleen": (spleen & cavity & ~kidney, 112.0 + dose_hu + others_hu),
        "cava": (cava, 125.0 + dose_hu + others_hu),
        "aorta": (aorta, 165.0 + 2.0 * dose_hu + arteries_hu),
        "liver": (liver, 98.0 + dose_hu + others_hu),
        "kidney": (kidney, 150.0 + 1.5 * dose_hu + kidneys_hu),
        "spine": (spine, _SPINE_HU),
    }


def _lesions(
    random: np.random.Generator,
    points: Float32[np.ndarray, "3 z y x"],
    organ: Bool[np.ndarray, "z y x"],
    target: Target,
) -> Bool[np.ndarray, "z y x"]:
    """One to three round lesions centred in the organ; one patient in five has none."""
    lesions = np.zeros_like(organ)
    count = 0 if random.uniform() < 0.2 else int(random.integers(1, 4))
    radius_mm = (11.0, 20.0) if target == "liver" else (9.0, 15.0)
    places = np.argwhere(organ)
    for _ in range(count):
        z, y, x = places[int(random.integers(len(places)))]
        centre = (float(points[0, z, y, x]), float(points[1, z, y, x]), float(points[2, z, y, x]))
        lesions |= ellipsoid(points, centre, vary(random, (float(random.uniform(*radius_mm)),) * 3, 0.1))
    lesions &= organ
    return lesions
