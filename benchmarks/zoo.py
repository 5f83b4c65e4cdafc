"""Size and cost of every model of the zoo, counted with torch.utils.flop_counter.

    python benchmarks/zoo.py [--write]

prints the table of docs/zoo.md; with --write it also records the counts that `instseg models` lists.
"""

import argparse
from pathlib import Path

from instseg.infer.zoo import list_models, record_counts, recorded_counts, summarise

RECORD = Path(__file__).parent.parent / "src" / "instseg" / "assets" / "zoo.json"
# Frames a second that the paper states (V100; SOLO journal, tables 5f and the authors' repository in ms an image).
PAPER_MS = {
    "solo_r50": 77,
    "solo_r101": 86,
    "decoupled_solo_r50": 85,
    "decoupled_solo_r101": 92,
    "decoupled_solo_light_r50": 29,
    "decoupled_solo_light_r50_dcn": 36,
    "solov2_r50": 54,
    "solov2_r101": 66,
    "solov2_r101_dcn": 97,
    "solov2_x101_dcn": 169,
    "solov2_light_448_r18": 19,
    "solov2_light_448_r34": 20,
    "solov2_light_448_r50": 24,
    "solov2_light_512_r50_dcn": 34,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        RECORD.write_text(record_counts(), encoding="utf-8")
    counts = recorded_counts()
    print("| model | parameters, M | trained as published, M | input | multiply-adds, G | with all masks, G | ", end="")
    print("authors' AP | authors' images/s, V100 |\n|---|---|---|---|---|---|---|---|")
    for name in list_models():
        m = summarise(name, counts[name])
        c, (height, width) = m.counts, m.input_size
        ap = "–" if m.paper_ap is None else f"{m.paper_ap:.1f}"
        speed = f"{1000 / PAPER_MS[name]:.1f}" if name in PAPER_MS else "–"
        print(
            f"| `{name}` | {c.parameters / 1e6:.2f} | {c.trained / 1e6:.2f} | {height} × {width} | {c.macs / 1e9:.1f} "
            f"| {c.dense_macs / 1e9:.1f} | {ap} | {speed} |"
        )


if __name__ == "__main__":
    main()
