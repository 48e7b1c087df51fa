"""Prints samples of nano's world: `python -m train.data.world coffee --split test --count 5`."""

import argparse

from train.data.world import TOPICS, exchanges

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("topic", nargs="?", choices=TOPICS, help="one topic only")
parser.add_argument("--split", choices=("train", "test"), default="train")
parser.add_argument("--count", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
for item in exchanges(arguments.split, arguments.seed, arguments.count, [arguments.topic] if arguments.topic else None):
    for user, most in item.history:
        print(f"    {user}\n    > {most}")
    print(f"{item.question}\n> {item.answer}    [{item.template}{item.held_out and ', new ' + item.held_out}]")
