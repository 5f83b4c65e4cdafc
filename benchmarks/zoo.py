"""Size and cost of every model of the zoo, counted with torch.utils.flop_counter.

    python benchmarks/zoo.py [--write]

prints the table of docs/zoo.md; with --write it also records the counts that `instseg models` lists.
"""

import argparse
from pathlib import Path

from instseg.apps.zoo import list_models, record_counts, recorded_counts, summarize

RECORD = Path(__file__).parent.parent / "src" / "instseg" / "assets" / "zoo.json"
# What the papers state for a V100: SOLO (journal) table 5f and the authors' repository in ms an image, SODAR tables
# III to V in images a second.
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
PAPER_FPS = {
    **{name: 1000 / ms for name, ms in PAPER_MS.items()},
    "sodar_r50": 11.4,
    "sodar_r101": 10.2,
    "sodar_r101_cls": 10.0,
    "sodar_r101_mask": 10.9,
    "sodar_r101_cm": 10.4,
    "sodar_r101_cls_deform": 9.0,
    "sodar_r101_mask_deform": 10.2,
    "sodar_solov2_r50": 14.8,
    "sodar_solov2_r101": 12.2,
    "sodar_solov2_r101_cls": 11.8,
    "sodar_solov2_r101_mask": 12.7,
    "sodar_solov2_r101_cm": 12.4,
    "sodar_solov2_r101_cls_deform": 10.7,
    "sodar_solov2_r101_mask_deform": 11.8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        RECORD.write_text(record_counts(), encoding="utf-8")
    counts = recorded_counts()
    print("| model | parameters, M | trained as published, M | input | multiply-adds, G | as published, G | ", end="")
    print("authors' AP | authors' images/s, V100 |\n|---|---|---|---|---|---|---|---|")
    for name in list_models():
        m = summarize(name, counts[name])
        c, (height, width) = m.counts, m.input_size
        ap = "–" if m.paper_ap is None else f"{m.paper_ap:.1f}"
        speed = f"{PAPER_FPS[name]:.1f}" if name in PAPER_FPS else "–"
        print(
            f"| `{name}` | {c.parameters / 1e6:.2f} | {c.trained / 1e6:.2f} | {height} × {width} | {c.macs / 1e9:.1f} "
            f"| {c.dense_macs / 1e9:.1f} | {ap} | {speed} |"
        )


if __name__ == "__main__":
    main()
