"""Installed by PyTorch at the end of `import torch`."""


def install() -> None:
    return
