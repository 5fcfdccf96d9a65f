"""Folders of images."""

from pathlib import Path

from research.base.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted by path; hidden files and links to folders are skipped.

    Raises UserError if there are none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise UserError(f"{folder} has no images: no file in it ends in one of {', '.join(SUFFIXES)}")
    return found
