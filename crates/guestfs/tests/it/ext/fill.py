"""Fills a mounted file system with nasty things. Words: old (no 1 TiB files), plain (no attributes), many, large_values."""
import os, random, socket, stat, subprocess, sys

root, words = sys.argv[1], sys.argv[2:]
os.chdir(root)
dice = random.Random(7)


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)


for size in (0, 1, 59, 60, 61, 100, 156, 160, 161, 300, 1023, 1024, 1025, 4095, 4096, 4097, 70000):
    put(f"size-{size}", dice.randbytes(size))
put("large", dice.randbytes(9 << 20))
path = "deep"
for level in range(60):
    os.mkdir(path)
    put(path + "/file", str(level).encode())
    path += f"/{level}"
os.mkdir("names")
for name in ("Twin", "twin", "\U0001F427" * 60, "x" * 255, "new\nline", "sp ace", "日本語", "e\u0301", "é", "\\", "a" * 251 + ".txt"):
    put("names/" + name, name.encode())
put(b"names/\xff\xfe not UTF-8", b"bytes")
os.mkdir("many")
for number in range(20000 if "many" in words else 1500):
    put(f"many/file number {number}", b"" if number % 7 else b"x" * (number % 50))
for number in range(0, 1500, 3):
    os.unlink(f"many/file number {number}")
os.mkdir("gone")
for number in range(30):
    put(f"gone/{number}", b"y")
for number in range(30):
    os.unlink(f"gone/{number}")
with open("holes", "wb") as file:
    for place in (3000, 50000, 1 << 20, 5 << 20, 70 << 20):
        file.seek(place)
        file.write(dice.randbytes(3000))
    file.truncate(90 << 20)
with open("huge", "wb") as file:
    for place in (10 << 20, 3 << 30, (15 << 30) if "old" in words else 1 << 40):
        if "plain" in words and place > 1 << 31:
            continue
        file.seek(place)
        file.write(b"here")
put("empty hole", b"")
os.truncate("empty hole", 5 << 20)
parts = [open(f"fragment-{number}", "wb") for number in range(2)]
for step in range(400):
    for file in parts:
        file.write(dice.randbytes(2048))
        file.flush()
        if step % 4 == 0:
            os.fsync(file.fileno())
for file in parts:
    file.close()
with open("alternating", "wb") as file:
    for step in range(600):
        file.seek(step * 8192)
        file.write(bytes([step & 255]) * 700)
if "old" not in words:
    with open("unwritten", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3 << 20)
        file.seek(1 << 20)
        file.write(b"written" * 1000)
    with open("kept", "wb") as file:
        file.write(b"short")
    subprocess.run(["fallocate", "-n", "-l", "1M", "kept"], check=True)
os.mkdir("links")
for length in (1, 20, 58, 59, 60, 61, 100, 300, 1000):
    os.symlink("t" * length, f"links/{length}")
os.symlink("circle-b", "links/circle-a")
os.symlink("circle-a", "links/circle-b")
os.symlink(".", "links/self")
for number in range(40):
    os.link("size-4097", f"links/hard-{number}")
os.mkdir("special")
os.mkfifo("special/fifo")
listener = socket.socket(socket.AF_UNIX)
listener.bind("special/socket")
listener.close()
for name, major, minor in (("small", 5, 1), ("wide", 300, 70000), ("most", 4095, 0xFFFFF)):
    os.mknod(f"special/c-{name}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
    os.mknod(f"special/b-{name}", stat.S_IFBLK | 0o640, os.makedev(major, minor))
os.mkdir("owned")
for number, (user, group, mode) in enumerate(((0, 0, 0o000), (1000, 1000, 0o4755), (70000, 4000000000, 0o7777), (1, 2, 0o1644))):
    put(f"owned/{number}", b"")
    if "plain" in words:
        user, group = user % 60000, group % 60000
    os.chown(f"owned/{number}", user, group)
    os.chmod(f"owned/{number}", mode)
if "plain" not in words:
    os.mkdir("attributes")
    for size in (0, 1, 20, 90, 500, 900):
        put(f"attributes/{size}", b"z" * (size // 9))
        os.setxattr(f"attributes/{size}", "user.value", dice.randbytes(size))
        os.setxattr(f"attributes/{size}", "trusted.other", b"t")
    put("attributes/several", b"")
    for number in range(9):
        os.setxattr("attributes/several", f"user.number-{number}", str(number).encode() * 8)
    os.setxattr("attributes/several", "security.selinux", b"system_u:object_r:etc_t:s0\0")
    if "large_values" in words:
        put("attributes/large", b"")
        os.setxattr("attributes/large", "user.large", dice.randbytes(30000))
        os.setxattr("attributes/large", "user.larger", dice.randbytes(60000))
    acl = bytes.fromhex("02000000") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in ((1, 7, 0xFFFFFFFF), (2, 5, 1234), (4, 5, 0xFFFFFFFF), (8, 4, 99), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)))
    put("attributes/list", b"")
    os.setxattr("attributes/list", "system.posix_acl_access", acl)
    os.mkdir("attributes/folder")
    os.setxattr("attributes/folder", "system.posix_acl_default", acl)
os.mkdir("times")
for seconds in (0, 1, -1, -86400 * 365 * 20, 2**31 - 1, -(2**31)) + (() if "old" in words else (2**31, 2**32 + 5, 2**33, 2**33 + 2**32 + 2**31 - 1)):
    put(f"times/{seconds}", b"")
    fraction = 0 if "old" in words else 123456789
    os.utime(f"times/{seconds}", ns=(seconds * 10**9 + fraction, seconds * 10**9 + fraction // 2))
