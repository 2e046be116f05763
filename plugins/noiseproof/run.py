"""`python -m noiseproof.run llamafactory-cli train r.yaml`: where PyTorch's autoload is switched off.

Installs the hook, then runs the named console script in this process. Workers that the script
starts are new processes again, so for several of them leave the autoload on.
"""

import sys
from importlib import metadata


def main() -> None:
    """Run a console script of this environment with the hook installed."""
    from noiseproof import _autoload

    if len(sys.argv) < 2:
        sys.exit("usage: python -m noiseproof.run llamafactory-cli train recipe.yaml")
    _autoload.install()
    name = sys.argv[1]
    scripts = metadata.entry_points(group="console_scripts", name=name)
    if not scripts:
        sys.exit(f"noiseproof.run: no command is called {name} in this environment")
    sys.argv = sys.argv[1:]
    sys.exit(next(iter(scripts)).load()())


if __name__ == "__main__":
    main()
