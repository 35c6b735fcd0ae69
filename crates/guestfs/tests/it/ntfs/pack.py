"""Makes files as `compact /exe` makes them on a mounted NTFS, with chunks packed by wimlib. `pack.py FOLDER OUT`."""
import ctypes
import ctypes.util
import hashlib
import json
import os
import random
import struct
import sys

wim = ctypes.CDLL(ctypes.util.find_library("wim") or "libwim.so.15")
wim.wimlib_create_compressor.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p]
wim.wimlib_compress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
wim.wimlib_compress.restype = ctypes.c_size_t
XPRESS, LZX = 1, 2
# Algorithm in the reparse point: kind for wimlib, bytes of a chunk.
KINDS = {0: (XPRESS, 4096), 1: (LZX, 32768), 2: (XPRESS, 8192), 3: (XPRESS, 16384)}


def pack(data, algorithm, level):
    kind, size = KINDS[algorithm]
    handle = ctypes.c_void_p()
    assert wim.wimlib_create_compressor(kind, size, level, ctypes.byref(handle)) == 0
    ends, body = [], b""
    for at in range(0, len(data), size):
        chunk = data[at : at + size]
        room = ctypes.create_string_buffer(len(chunk))
        got = wim.wimlib_compress(chunk, len(chunk), room, len(chunk) - 1, handle)
        body += room.raw[:got] if got else chunk
        ends.append(len(body))
    wim.wimlib_free_compressor(handle)
    return b"".join(struct.pack("<I", end) for end in ends[:-1]) + body


def contents():
    chance = random.Random(99)
    words = [chance.randbytes(chance.randrange(2, 12)) for _ in range(400)]
    program = open("/bin/bash", "rb").read()[:700_000]
    calls = b"".join(b"\xe8" + struct.pack("<i", chance.randrange(-40000, 13_000_000)) + chance.randbytes(chance.randrange(4)) for _ in range(20000))
    return {
        "one": b"1",
        "text": b"".join(chance.choice(words) for _ in range(90_000)),
        "program": program,
        "calls": calls,
        "zeros": bytes(200_000),
        "noise": chance.randbytes(100_000),
        "mixed": chance.randbytes(33_000) + bytes(33_000) + program[:50_000] + b"ab" * 30_000,
        "exact": program[:65536],
    }


root, out = sys.argv[1], sys.argv[2]
told = []
for name, data in contents().items():
    for algorithm in KINDS:
        for level in (20, 100):
            path = os.path.join(root, f"{name} {algorithm} {level}")
            with open(path, "wb") as file:
                file.truncate(len(data))
            packed = pack(data, algorithm, level)
            with open(f"{path}:WofCompressedData", "wb") as file:
                file.write(packed)
            body = struct.pack("<IIII", 1, 2, 1, algorithm)
            os.setxattr(path, "system.ntfs_reparse_data", struct.pack("<IHH", 0x80000017, len(body), 0) + body)
            told.append([f"/{name} {algorithm} {level}", "file", len(data), hashlib.sha256(data).hexdigest()])
with open(out, "w") as file:
    json.dump(told, file)
