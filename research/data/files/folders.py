"""Folders of images."""

from pathlib import Path

from research.base.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class: those in the subfolder called as it, by name, sorted by path.

    Raises UserError if there are fewer than two subfolders, one without images, an image beside them, or a link
    to nothing.
    """
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    found = {path.name: path for path in visible if path.is_dir()}
    loose = next((path for path in visible if path.suffix.lower() in SUFFIXES and not path.is_dir()), None)
    if loose:
        raise UserError(f"{loose} is an image beside the folders of the classes; each class needs a folder of its own")
    if found and set(found) <= {"train", "training", "val", "valid", "validation", "dev", "test"}:
        names = ", ".join(f"data.{'train' if 'train' in name else name}={folder / name}" for name in found)
        raise UserError(f"{folder} has a folder for each split, not for each class; give them one by one: {names}")
    if len(found) < 2:
        raise UserError(f"{folder} has {len(found)} subfolders; it needs at least two, one for each class")
    return {name: image_files(path) for name, path in found.items()}


def contents(file: Path) -> bytes:
    """The contents of a file. Raises UserError if it can't be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted by path; hidden files and links to folders are skipped.

    Raises UserError if there are none, and for a link to nothing or to itself.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    broken = next((path for path in found if not path.is_file()), None)
    if broken:
        raise UserError(f"{broken} can't be opened: it is a link to nothing, or to itself")
    if not found:
        raise UserError(f"{folder} has no images: no file in it ends in one of {', '.join(SUFFIXES)}")
    return found
