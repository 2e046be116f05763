"""Write facts.csv (noisy, with the truth on record) and heldout.csv: python tests/demo/make_facts.py

Every question is a fact from the tables below; a quarter of the training answers is exchanged for
another answer of the same kind. heldout.csv asks the same facts in other words, all correct.
"""

import csv
import random
from pathlib import Path

CAPITALS = (
    "France Paris,Italy Rome,Spain Madrid,Portugal Lisbon,Germany Berlin,Austria Vienna,Poland Warsaw,"
    "Hungary Budapest,Greece Athens,Norway Oslo,Sweden Stockholm,Finland Helsinki,Denmark Copenhagen,"
    "Ireland Dublin,Belgium Brussels,Russia Moscow,Turkey Ankara,Egypt Cairo,Kenya Nairobi,Japan Tokyo,"
    "China Beijing,Thailand Bangkok,Vietnam Hanoi,Cuba Havana,Peru Lima,Chile Santiago,Canada Ottawa,"
    "Iceland Reykjavik,Ukraine Kyiv,Iraq Baghdad"
)
ELEMENTS = (
    "hydrogen H,helium He,lithium Li,carbon C,nitrogen N,oxygen O,fluorine F,neon Ne,sodium Na,"
    "magnesium Mg,aluminium Al,silicon Si,phosphorus P,sulfur S,chlorine Cl,argon Ar,potassium K,"
    "calcium Ca,iron Fe,copper Cu,zinc Zn,silver Ag,tin Sn,gold Au,mercury Hg,lead Pb,uranium U,nickel Ni"
)
OPPOSITES = (
    "hot cold,big small,fast slow,old young,dark light,hard soft,wet dry,high low,early late,empty full,"
    "open closed,rich poor,strong weak,thick thin,wide narrow,loud quiet,clean dirty,deep shallow,"
    "heavy light,sharp blunt,sweet bitter,smooth rough,safe dangerous,ancient modern,cheap expensive"
)
YOUNG = (
    "cow calf,dog puppy,cat kitten,horse foal,sheep lamb,goat kid,pig piglet,hen chick,duck duckling,"
    "goose gosling,bear cub,deer fawn,kangaroo joey,frog tadpole,swan cygnet,butterfly caterpillar"
)
KINDS = [
    (CAPITALS, ["What is the capital of {}?", "Name the capital city of {}."],
     "Which city is the capital of {}?"),
    (ELEMENTS, ["What is the chemical symbol of {}?", "Which symbol stands for {}?"],
     "Give the chemical symbol for {}."),
    (OPPOSITES, ["What is the opposite of {}?", "Name a word that means the reverse of {}."],
     "Give the opposite of the word {}."),
    (YOUNG, ["What is a young {} called?", "What do you call the young of a {}?"],
     "What is the name for a baby {}?"),
]  # fmt: skip


def tables():
    """(train rows with `correct`, held-out rows)."""
    rng = random.Random(7)
    train, heldout = [], []
    for table, asked, other in KINDS:
        facts = [pair.split(" ") for pair in table.split(",")]
        answers = [answer for _, answer in facts]
        for thing, answer in facts:
            for question in (*asked, "Question: " + asked[0]):
                wrong = rng.random() < 0.25
                given = rng.choice([a for a in answers if a != answer]) if wrong else answer
                train.append([question.format(thing), given, 1 - wrong])
            heldout.append([other.format(thing), answer])
    rng.shuffle(train)
    return train, heldout


def main():
    """Write both files beside this script."""
    train, heldout = tables()
    folder = Path(__file__).parent
    for name, header, rows in (
        ("facts.csv", ["prompt", "response", "correct"], train),
        ("heldout.csv", ["prompt", "response"], heldout),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
