"""The `noiseproof` command. Imports stay inside the commands: `--help` must not load torch."""

from pathlib import Path
from typing import Any

import click


class _Group(click.Group):
    """A ValueError or OSError of a command is the user's to mend: one sentence, exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            click.echo(f"Error: {error}", err=True)
            raise SystemExit(2) from None


@click.group(cls=_Group)
@click.version_option(package_name="noiseproof")
def main() -> None:
    """Fine-tune language models on noisy data, with Axolotl or LLaMA-Factory."""


@main.command()
@click.option("--json-schema", is_flag=True, help="A JSON schema of recipes, for editors.")
def keys(json_schema: bool) -> None:
    """Print every key of the `noiseproof:` block."""
    from noiseproof_converters import keys as module

    click.echo(module.json_schema() if json_schema else module.as_text())


@main.command()
@click.argument("target", required=False, type=click.Path(path_type=Path))
def doctor(target: Path | None) -> None:
    """Say what is installed and active; check a recipe or an output folder."""
    from noiseproof_converters import doctor as module

    lines, sound = module.examine(target)
    click.echo("\n".join(lines))
    if not sound:
        raise SystemExit(2)


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--name", default=None, help="Name of the data set; the file's name by default.")
@click.option("--instruction-column", default="prompt", show_default=True)
@click.option("--output-column", default="response", show_default=True)
def convert(
    data: Path, out: Path, name: str | None, instruction_column: str, output_column: str
) -> None:
    """Turn a CSV of prompts and responses into Alpaca data that both frameworks read."""
    from noiseproof_converters import convert as module

    click.echo(module.convert(data, out, name, instruction_column, output_column))


if __name__ == "__main__":
    main()
