"""Fills a mounted NTFS with nasty things, or tells what is in it. `fill.py fill|tell FOLDER [OUT]`."""
import hashlib
import json
import os
import random
import socket
import stat
import sys


def fill(root):
    chance = random.Random(4711)
    join = lambda *parts: os.path.join(root, *parts)
    os.makedirs(join("deep", *[f"level {n}" for n in range(60)]))
    with open(join("deep", *[f"level {n}" for n in range(60)], "end"), "w") as file:
        file.write("the end")
    os.mkdir(join("many"))
    for n in range(2500):
        with open(join("many", f"file number {n:06}"), "w") as file:
            file.write(str(n) * (n % 7))
    os.mkdir(join("names"))
    for n, name in enumerate(["Straße", "日本語", "😀 four bytes", "e\u0301", "\u00e9", "a" * 255, "UPPER", "upper", "trailing."]):
        with open(join("names", name), "w") as file:
            file.write(f"{n}")
    for n in range(0xA1, 0x600, 7):
        if chr(n).isalpha():
            open(join("names", f"x{chr(n)}"), "w").write(str(n))
    for size in [0, 1, 100, 500, 700, 900, 1024, 4096, 65536, 1000003]:
        with open(join(f"size {size}"), "wb") as file:
            file.write(chance.randbytes(size))
    with open(join("holes"), "wb") as file:
        for n in range(40):
            file.seek(n * 300_000 + n)
            file.write(chance.randbytes(5000))
        file.truncate(13_000_000)
    with open(join("huge"), "wb") as file:
        file.seek(1 << 40)
        file.write(b"far away")
    with open(join("tail"), "wb") as file:
        file.write(b"head")
        file.truncate(3_000_000)
    # Two files that grow in turn, with others between them that go: fragments.
    a, b = open(join("fragments a"), "wb"), open(join("fragments b"), "wb")
    for n in range(600):
        for file in (a, b):
            file.write(chance.randbytes(4096))
            file.flush()
            os.fsync(file.fileno())
    a.close(), b.close()
    for n in range(300):
        os.link(join("size 900"), join("many", f"link {n}"))
    os.symlink("size 100", join("link"))
    os.symlink("circle b", join("circle a"))
    os.symlink("circle a", join("circle b"))
    os.mkfifo(join("fifo"))
    os.mknod(join("char"), 0o600 | stat.S_IFCHR, os.makedev(5, 300))
    os.mknod(join("block"), 0o600 | stat.S_IFBLK, os.makedev(259, 1))
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(root)
    server.bind("socket")
    os.chdir(here)
    for n in range(12):
        os.setxattr(join("size 1"), f"user.stream {n}", chance.randbytes(n * 3000))
    os.mkdir(join("packed"))
    os.setxattr(join("packed"), "system.ntfs_attrib_be", (0x800 | 0x10).to_bytes(4, "big"))
    text = b"".join(b"line %d of many that look alike\n" % n for n in range(60000))
    for n, part in enumerate([text, text[:100], text[:70000] + bytes(200000) + chance.randbytes(90000) + text[5:80000], bytes(500000), chance.randbytes(300000)]):
        with open(join("packed", f"file {n}"), "wb") as file:
            file.write(part)
    with open(join("packed", "holes"), "wb") as file:
        for n in range(9):
            file.seek(n * 222_222)
            file.write(text[:9000])


def tell(root, out):
    found = []
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind, size, content = "file", status.st_size, ""
            device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            if stat.S_ISDIR(status.st_mode):
                kind, size = "dir", 0
            elif stat.S_ISLNK(status.st_mode):
                kind, content = "symlink", os.readlink(path)
                size = len(content.encode())
            elif stat.S_ISFIFO(status.st_mode):
                kind, size = "fifo", 0
            elif stat.S_ISSOCK(status.st_mode):
                kind, size = "socket", 0
            elif stat.S_ISCHR(status.st_mode):
                kind, size, content = "char", 0, device
            elif stat.S_ISBLK(status.st_mode):
                kind, size, content = "block", 0, device
            elif size <= 128 << 20:
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            found.append(["/" + os.path.relpath(path, root), kind, size, content])
    with open(out, "w") as file:
        json.dump(found, file)


if sys.argv[1] == "fill":
    fill(sys.argv[2])
else:
    tell(sys.argv[2], sys.argv[3])
