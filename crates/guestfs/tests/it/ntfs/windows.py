"""Fills a volume mounted at `mount` with what Windows makes: links, placeholders, attributes; tells what ntfs-3g shows of it."""
import os, struct
os.chdir("mount")
def reparse(path, tag, data):
    os.setxattr(path, "system.ntfs_reparse_data", struct.pack("<IHH", tag, len(data), 0) + data)
def names(substitute, shown):
    s, p = substitute.encode("utf-16-le"), shown.encode("utf-16-le")
    return struct.pack("<HHHH", 0, len(s), len(s) + 2, len(p)), s + b"\0\0" + p + b"\0\0"
head, text = names("\\??\\C:\\Users\\Public", "C:\\Users\\Public")
os.mkdir("junction")
reparse("junction", 0xA0000003, head + text)
open("relative", "w").close()
head, text = names("..\\to\\file", "..\\to\\file")
reparse("relative", 0xA000000C, head + struct.pack("<I", 1) + text)
open("share", "w").close()
head, text = names("\\??\\UNC\\server\\share\\x", "")
reparse("share", 0xA000000C, head + struct.pack("<I", 0) + text)
open("dedup", "w").write("x" * 5000)
reparse("dedup", 0x80000013, bytes(100))
open("cloud", "w").write("x" * 5000)
reparse("cloud", 0x9000601A, bytes(40))
open("away", "w").write("x" * 5000)
reparse("away", 0x9000601A, bytes(40))
old = int.from_bytes(os.getxattr("away", "system.ntfs_attrib_be"), "big")
os.setxattr("away", "system.ntfs_attrib_be", (old | 0x1000).to_bytes(4, "big"))
open("plain", "w").write("plain")
ea = b"".join(
    struct.pack("<IBBH", step, 0, len(name), len(value)) + name + b"\0" + value + bytes(pad)
    for name, value, step, pad in [(b"FIRST", b"one", 20, 3), (b"$LXMOD", b"\xed\x81\0\0", 20, 1)])
os.setxattr("plain", "system.ntfs_ea", ea)
open("../acl", "wb").write(os.getxattr("plain", "system.ntfs_acl"))
open("../times", "wb").write(os.getxattr("plain", "system.ntfs_times"))
open("../attrib", "wb").write(os.getxattr("plain", "system.ntfs_attrib_be"))
open("Pagefile.sys", "wb").write(b"p" * 100000)
