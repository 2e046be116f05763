"""`noiseproof convert`: prompts and responses -> Alpaca JSON for both frameworks."""

from pathlib import Path

from noiseproof_converters.rows import (
    merged_dataset_info,
    read_csv,
    safe_name,
    write_json,
    write_text,
)


def convert(
    data: Path, out: Path, name: str | None, instruction: str = "prompt", output: str = "response"
) -> str:
    """Write NAME.json, its dataset_info.json entry and NAME.axolotl.yaml; returns what to do next.

    Raises:
        ValueError: bad input, by file and line; nothing is written then.
    """
    name = safe_name(name or data.stem)
    if data.suffix.lower() != ".csv":
        raise ValueError(f"{data.name}: not a .csv file; this command reads CSV only")
    rows = read_csv(data, (instruction, output))
    alpaca = [{"instruction": r[instruction], "input": "", "output": r[output]} for r in rows]
    info = merged_dataset_info(out / "dataset_info.json", name, {"file_name": f"{name}.json"})
    target = out / f"{name}.json"
    snippet = f"datasets:\n  - path: {target.as_posix()}\n    ds_type: json\n    type: alpaca\n"
    write_json(target, alpaca)
    write_json(out / "dataset_info.json", info)
    write_text(out / f"{name}.axolotl.yaml", snippet)
    return (
        f"{len(alpaca)} rows in {target}\n\n# LLaMA-Factory\ndataset_dir: {out.as_posix()}\n"
        f"dataset: {name}\n\n# Axolotl\n{snippet}"
    )
