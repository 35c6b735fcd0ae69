"""Files on a mounted file system: changed from a seed, or told with their hashes.

fill.py change FOLDER SEED     about a third of the files goes, some are written over in part, new ones come
fill.py tell FOLDER            one line per file: hash, size, path; files that a backup may leave out are not told
"""

import hashlib
import os
import random
import sys

UNNEEDED = {"pagefile.sys", "swapfile.sys", "hiberfil.sys", "swap.img"}


def files(root):
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        found += [os.path.join(folder, name) for name in sorted(names) if name not in UNNEEDED]
    return [path for path in found if os.path.isfile(path) and not os.path.islink(path)]


def change(root, seed):
    dice = random.Random(seed)
    for path in files(root):
        if "/etc/" in path:
            continue
        draw = dice.random()
        if draw < 0.35:
            os.remove(path)
        elif draw < 0.5 and os.path.getsize(path) > 0:
            with open(path, "r+b") as file:
                file.seek(dice.randrange(os.path.getsize(path)))
                file.write(dice.randbytes(5000))
    for number in range(60):
        folder = os.path.join(root, f"d{dice.randrange(5)}", f"s{dice.randrange(3)}")
        os.makedirs(folder, exist_ok=True)
        size = min(int(dice.expovariate(1 / 200_000)), 3_000_000)
        with open(os.path.join(folder, f"f{seed}-{number}"), "wb") as file:
            file.write(dice.randbytes(size))


def tell(root):
    for path in files(root):
        with open(path, "rb") as file:
            content = file.read()
        print(hashlib.sha256(content).hexdigest(), len(content), os.path.relpath(path, root))


if sys.argv[1] == "change":
    change(sys.argv[2], int(sys.argv[3]))
else:
    tell(sys.argv[2])
