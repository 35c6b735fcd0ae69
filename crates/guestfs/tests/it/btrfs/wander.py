"""Does what a seed says to files of a folder, syncing some of them. Words: the folder, the seed, how many steps."""
import ctypes, errno, fcntl, os, random, subprocess, sys

root, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.chdir(root)
dice = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
FICLONE, EXCHANGE, AT_FDCWD = 0x40049409, 2, -100


def folders():
    found = ["."]
    for place, names, _ in os.walk("."):
        found += [os.path.join(place, name) for name in names]
    return sorted(found)


def files(plain=False):
    found = []
    for place, _, names in os.walk("."):
        found += [os.path.join(place, name) for name in names]
    found = sorted(found)
    return [name for name in found if not plain or (os.path.isfile(name) and not os.path.islink(name))]


def fresh():
    length = dice.choice((1, 3, 8, 40, 200))
    return os.path.join(dice.choice(folders()), f"{dice.randrange(40)}" + "n" * length)


def data():
    return dice.randbytes(dice.choice((1, 50, 2000, 4096, 5000, 20000, 150000))) if dice.random() < 0.6 else b"same " * dice.randrange(1, 40000)


def place():
    return dice.choice((0, 1, 4000, 4096, 8192, 65536, 100000, 131072, 262144, 1 << 20))


def create():
    with open(fresh(), "wb") as file:
        file.write(data())


def write():
    with open(dice.choice(files(True)), "r+b") as file:
        file.seek(place())
        file.write(data())


def truncate():
    os.truncate(dice.choice(files(True)), dice.choice((0, 1, 3000, 4096, 50000, 131072, 700000)))


def allocate():
    mode = dice.choice(([], ["-n"], ["-p"], ["-z"], ["-z", "-n"]))
    subprocess.run(["fallocate", *mode, "-o", str(place()), "-l", str(dice.choice((100, 4096, 70000, 300000))), dice.choice(files(True))], check=True, stderr=subprocess.DEVNULL)


def rename():
    os.rename(dice.choice(files()), dice.choice((fresh(), dice.choice(files()))))


def move():
    os.rename(dice.choice(folders()[1:]), fresh())


def exchange():
    names = [os.fsencode(dice.choice(files() + folders()[1:])) for _ in range(2)]
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE):
        raise OSError(ctypes.get_errno(), "exchange")


def link():
    os.link(dice.choice(files()), fresh(), follow_symlinks=False)


def unlink():
    os.unlink(dice.choice(files()))


def clone():
    with open(dice.choice(files(True)), "rb") as source, open(fresh(), "wb") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())


def attribute():
    name, key = dice.choice(files() + folders()), f"user.{dice.randrange(5)}"
    if dice.random() < 0.4:
        os.removexattr(name, key, follow_symlinks=False)
    else:
        os.setxattr(name, key, dice.randbytes(dice.randrange(300)), follow_symlinks=False)


def special():
    kind = dice.randrange(3)
    if kind == 0:
        os.symlink("t" * dice.randrange(1, 300), fresh())
    elif kind == 1:
        os.mkfifo(fresh())
    else:
        os.mknod(fresh(), 0o20600, os.makedev(4, dice.randrange(99)))


def nameless():
    file = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(file, data())
    if dice.random() < 0.5:
        os.fsync(file)
    if dice.random() < 0.6:
        os.link(f"/proc/self/fd/{file}", fresh(), follow_symlinks=True)
        os.fsync(file)
    os.close(file)


def mode():
    os.chmod(dice.choice(files(True) + folders()[1:]), dice.choice((0o600, 0o755, 0o4711)))


def sync():
    name = dice.choice(files(True) + folders())
    file = os.open(name, os.O_RDONLY)
    (os.fsync if dice.random() < 0.8 else os.fdatasync)(file)
    os.close(file)


def remove():
    os.rmdir(dice.choice(folders()[1:]))


ACTS = [create] * 5 + [write] * 6 + [truncate] * 3 + [allocate] * 3 + [rename] * 4 + [link] * 4 + [unlink] * 3 + [clone] * 2
ACTS += [attribute] * 3 + [special, nameless, nameless, mode, exchange, exchange, move, remove] + [sync] * 10
ACTS += [lambda: os.mkdir(fresh())] * 2
for step in range(steps):
    try:
        dice.choice(ACTS)()
    except (OSError, IndexError, subprocess.CalledProcessError):
        pass
for _ in range(3):
    sync()
