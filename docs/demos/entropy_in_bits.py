# MIT licence. Part of Marginalia.
"""Entropy in bits and nats, with the examples of the lectures.

Bits are counted by log2, nats by the natural logarithm. Beside the entropy stands the mean number
of yes/no questions that the best strategy needs for one answer (Huffman's code).
"""

import heapq
import itertools
import math

from drawing import BLUE, GREY, ORANGE, out_flag, panels, save

EXAMPLES = {  # of CSCE-642, then of the TD3 and SAC slides
    "2 answers, 1/2 each": [1 / 2] * 2,
    "4 answers, 1/4 each": [1 / 4] * 4,
    "4 answers, 0 0 0 1": [0, 0, 0, 1],
    "3 answers, 1/3 each": [1 / 3] * 3,
    "3 answers, 1/2 1/4 1/4": [1 / 2, 1 / 4, 1 / 4],
    "a die": [1 / 6] * 6,
    "a die that shows 3": [0, 0, 1, 0, 0, 0],
}


def entropy(probabilities):
    """H = sum of -p log p, in nats."""
    return sum(-p * math.log(p) for p in probabilities if p > 0)


def questions(probabilities):
    """Mean number of yes/no questions: join the two least likely answers, again and again."""
    heap = [p for p in probabilities if p > 0]
    heapq.heapify(heap)
    mean = 0.0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        mean += both  # one question more for whatever lies below
        heapq.heappush(heap, both)
    return mean


def blocks(probabilities, length):
    """The probabilities of so many independent answers together."""
    return [math.prod(p) for p in itertools.product(probabilities, repeat=length)]


def main(out=""):
    results = {}
    print("                           nats    bits   questions")
    for name, p in EXAMPLES.items():
        nats = entropy(p)
        results[name] = nats, nats / math.log(2), questions(p)
        print(f"{name:24} {nats:6.3f}  {nats / math.log(2):6.3f}   {questions(p):9.3f}")
    cards = math.lgamma(53)  # log 52!
    results["52 cards"] = cards, cards / math.log(2)
    print(f"{'52 shuffled cards':24} {cards:6.1f}  {cards / math.log(2):6.1f}")
    print("\nthree equal answers, several asked about together: questions per answer")
    for length in range(1, 9):
        results[length] = questions(blocks([1 / 3] * 3, length)) / length
        print(f"{length} together   {results[length]:.4f}")
    print(f"log2(3)      {math.log2(3):.4f}")
    print("\ndensities, in nats")
    for width in 2.0, 1.0, math.exp(-1):
        results["uniform", width] = math.log(width)
        print(f"uniform on an interval of length {width:.3f}   {math.log(width):+.2f}")
    for std in 1.0, 0.242, 0.1:
        nats = math.log(std) + 0.5 * math.log(2 * math.pi * math.e)
        results["Gaussian", std] = nats
        print(f"Gaussian, std {std:<5}                      {nats:+.2f}")
    if out:
        draw(results, out)
    return results


def draw(results, out):
    figure, (ax,) = panels(1)
    lengths = list(range(1, 9))
    ax.plot(lengths, [results[n] for n in lengths], "o-", color=BLUE, label="best strategy")
    ax.axhline(math.log2(3), color=ORANGE, label="entropy, log2(3) = 1.585 bits")
    ax.axhline(5 / 3, color=GREY, linestyle=":", label="the slide's 1.667")
    ax.set(xlabel="answers asked about together", title="three equal answers: questions per answer")
    ax.set_ylim(1.57, 1.68)
    ax.legend(frameon=False, fontsize=8)
    save(figure, out)


if __name__ == "__main__":
    main(out_flag(__doc__))
