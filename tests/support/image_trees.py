"""Small trees of image files."""

from PIL import Image

from budgettune.spec.tables import DataSpec
from budgettune.training.data.load import load_data
from tests.support.image_files import pixels


def write_image(path, *, mode="RGB", size=(8, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(pixels(*shape, seed=seed)).save(path)


def write_tree(root, *, parts=("train", "test"), classes=("ant", "bee"), each=4, suffix="png", **settings):
    """Write pictures, each of its own pixels."""
    for place, part in enumerate(parts):
        for label, cls in enumerate(classes):
            for number in range(each):
                seed = 1_000 * place + 100 * label + number
                write_image(root / part / cls / f"{number:03d}.{suffix}", seed=seed, **settings)
    return root


def folder(root, **settings):
    return load_data(DataSpec(name="folder", root=str(root), **settings))
