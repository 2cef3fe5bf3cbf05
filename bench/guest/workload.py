"""What programs in Python do: objects, dictionaries, lists, text, floats.  `python3 workload.py SIZE` prints a checksum."""

import hashlib
import sys


class Node:
    def __init__(self, key, left=None, right=None):
        self.key, self.left, self.right = key, left, right

    def total(self):
        return self.key + (self.left.total() if self.left else 0) + (self.right.total() if self.right else 0)


def tree(depth, key=1):
    return Node(key, tree(depth - 1, 2 * key), tree(depth - 1, 2 * key + 1)) if depth else Node(key)


def words(size):
    counts = {}
    for k in range(size):
        word = f"w{k * 7919 % 1009}"
        counts[word] = counts.get(word, 0) + k
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]


def floats(size):
    x, total = 0.5, 0.0
    for _ in range(size):
        x = 3.7 * x * (1.0 - x)
        total += x
    return total


size = int(sys.argv[1])
result = repr((tree(10).total(), words(size), floats(size), sum(k * k for k in range(size)), "".join(map(str, range(size)))[-40:]))
print(hashlib.md5(result.encode()).hexdigest())
