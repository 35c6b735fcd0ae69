#!/usr/bin/env python3
"""Reads a Hikae repository without Hikae.

For the day when there is a repository and a key, and no program: written from docs/FORMAT.md alone, it shares no code
with Hikae. It reads a repository that is a directory (of a bucket, make a copy first), never writes into it, never
looks at index segments or caches, and trusts nothing: every object's checksum, every blob's hash and every disk's root
are compared.

    pip install -r requirements.txt                     blake3 zstandard lz4 cryptography argon2-cffi
    read_repository.py list    REPOSITORY [KEY]         the points
    read_repository.py restore REPOSITORY [KEY] NAME[@SEQUENCE] OUT      a disk as a sparse raw file
    read_repository.py verify  REPOSITORY [KEY]         everything: packs, blobs, points, trees

    KEY is --key-file FILE, --passphrase-file FILE or --recovery-key-file FILE; nothing for an unencrypted repository.

It holds the directories of all packs in memory: about 200 bytes for each block of 64 KiB.
Exit code: 0 good, 1 it could not be done, 3 it was done and something is damaged (named on standard error).
"""

import argparse
import json
import os
import struct
import sys
from collections import OrderedDict

import lz4.block
import zstandard
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMAT_VERSION = 2
BLOCK_BYTES, NODE_BYTES, FANOUT, MAX_HEIGHT = 65536, 4096, 128, 5
MAX_PACK_BYTES = 64 << 20
HEADER, FRAME, ENTRY, TRAILER = 64, 16, 48, 64
DIRECTORY_ORDINAL, DIRECTORY_LEVEL = 0xFFFFFFFF, 0xFF
KINDS = {1: "config", 2: "slot", 3: "ring", 4: "segment", 5: "point", 6: "tombstone", 7: "bundle", 8: "mark",
         9: "lease", 10: "condemned", 11: "verdict"}
PACK_KINDS = {1: "data", 2: "node"}


class Damaged(Exception):
    """Bytes that are not what they should be; says which."""


def derive(context, *parts):
    """BLAKE3 derive-key: 32 bytes."""
    return blake3(b"".join(parts), derive_key_context=context).digest()


def blob_hash(level, plain):
    """Name of a block (level 0) or of a node of a level."""
    return derive("hikae v1 block" if level == 0 else f"hikae v1 node level {level}", plain)


ZERO = [blob_hash(0, bytes(BLOCK_BYTES))]
for _level in range(1, MAX_HEIGHT + 1):
    ZERO.append(blob_hash(_level, ZERO[-1] * FANOUT))


def covered_bytes(level):
    """Bytes of disk under one entry of a level."""
    return BLOCK_BYTES * FANOUT**level


def height_of(length):
    """Level of the top node of a disk."""
    return next((level for level in range(1, MAX_HEIGHT) if covered_bytes(level) >= length), MAX_HEIGHT)


def disk_root(disk):
    """The root that binds length, height, top node and what was left out."""
    omitted = bytes(32)
    if disk.get("omissions"):
        ranges = disk["omissions"]["ranges"]
        encoded = b"".join(struct.pack("<QQ", one["offset"], one["length_bytes"]) for one in ranges)
        omitted = derive("hikae v1 omissions", encoded)
    fixed = struct.pack("<QB", disk["length_bytes"], disk["height"])
    return derive("hikae v1 disk root", fixed, bytes.fromhex(disk["top"]), omitted)


def decode(codec, plain_length, stored, where):
    """Undoes the compression."""
    try:
        if codec == 0:
            plain = stored
        elif codec == 1:
            if zstandard.frame_content_size(stored) not in (-1, plain_length):
                raise Damaged(f"{where}: its compressed length is not its length")
            plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=plain_length)
        elif codec == 2:
            plain = lz4.block.decompress(stored, uncompressed_size=plain_length)
        else:
            raise Damaged(f"{where}: unknown codec {codec}")
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as error:
        raise Damaged(f"{where}: does not decompress: {error}") from error
    if len(plain) != plain_length:
        raise Damaged(f"{where}: decompresses to {len(plain)} bytes instead of {plain_length}")
    return plain


class Pack:
    """One pack: header, keys, frames."""

    def __init__(self, repository, kind, path, name):
        self.name, self.path = name, path
        self.size = os.path.getsize(path)
        if not HEADER + FRAME + TRAILER <= self.size <= MAX_PACK_BYTES:
            raise Damaged(f"{name}: {self.size} bytes cannot be a pack")
        header = self.read(0, HEADER)
        magic, version, kind_byte, cipher, flags, pack_id, key_id, salt = struct.unpack("<8sHBBI16s16s16s", header)
        if magic != b"HIKAEPCK" or version != FORMAT_VERSION or flags != 0 or cipher not in (0, 1):
            raise Damaged(f"{name}: not the header of a pack of format {FORMAT_VERSION}")
        named = bytes.fromhex(os.path.basename(path))
        if PACK_KINDS.get(kind_byte) != kind or pack_id != named:
            # The name is bound into every frame: if the pack really is another one, no frame will open.
            repository.problem(f"{name}: its header is another pack's")
            kind_byte, pack_id = (1 if kind == "data" else 2), named
        if (cipher == 0) != (not repository.encrypted):
            raise Damaged(f"{name}: its encryption is not the repository's")
        self.kind_byte, self.pack_id, self.cipher = kind_byte, pack_id, None
        if cipher == 1:
            key = repository.data_key(key_id, name)
            self.cipher = AESGCM(derive("hikae v1 pack key", key, salt, pack_id))
        self.overhead = 16 if cipher else 0

    def read(self, offset, length):
        """Bytes of the object."""
        descriptor = Files.open(self.path)
        data = os.pread(descriptor, length, offset)
        if len(data) != length:
            raise Damaged(f"{self.name}: ends within its byte {offset + len(data)}")
        return data

    def frame(self, offset, limit):
        """The frame at an offset: level, ordinal, plain bytes, offset behind it."""
        where = f"{self.name}, frame at {offset}"
        if offset + FRAME > limit:
            raise Damaged(f"{where}: cut off")
        magic, level, codec, ordinal, plain_length, stored_length = struct.unpack("<HBBIII", self.read(offset, FRAME))
        end = offset + FRAME + stored_length
        if magic != 0x5246 or end > limit or plain_length > MAX_PACK_BYTES:
            raise Damaged(f"{where}: not a frame")
        stored = self.read(offset + FRAME, stored_length)
        if self.cipher:
            bound = self.pack_id + struct.pack("<IBBBII", ordinal, self.kind_byte, level, codec, plain_length,
                                               stored_length)
            try:
                stored = self.cipher.decrypt(struct.pack("<I8x", ordinal), stored, bound)
            except InvalidTag as error:
                raise Damaged(f"{where}: was not written with this key") from error
        return level, ordinal, decode(codec, plain_length, stored, where), end

    def blob(self, offset, level, name_hash):
        """A blob, compared with its name."""
        found, _, plain, _ = self.frame(offset, self.size - TRAILER)
        if found != level or blob_hash(level, plain) != name_hash:
            raise Damaged(f"{self.name}, frame at {offset}: not the bytes that its hash says")
        return plain

    def directory(self):
        """(level, hash, offset) of every blob, from the directory at the end."""
        magic, offset, stored_length, count, check, _ = struct.unpack("<8sIII12s32s", self.read(self.size - TRAILER, TRAILER))
        if magic != b"HIKAEEND" or offset + FRAME + stored_length + TRAILER != self.size:
            raise Damaged(f"{self.name}: no trailer at its end")
        if derive("hikae v1 pack directory", self.read(offset, FRAME + stored_length))[:12] != check:
            raise Damaged(f"{self.name}: its directory is damaged")
        level, ordinal, plain, _ = self.frame(offset, self.size - TRAILER)
        if (level, ordinal) != (DIRECTORY_LEVEL, DIRECTORY_ORDINAL) or len(plain) != count * ENTRY:
            raise Damaged(f"{self.name}: its directory contradicts its trailer")
        for at in range(0, len(plain), ENTRY):
            name_hash, blob_offset, _, _, _, level, _ = struct.unpack_from("<32sIIIBBH", plain, at)
            yield level, name_hash, blob_offset

    def walk(self):
        """The same from the frames themselves, as far as they are whole: when the directory is damaged."""
        offset = HEADER
        while offset < self.size:
            try:
                level, _, plain, end = self.frame(offset, self.size)
            except Damaged as error:
                print(f"warning: {error}", file=sys.stderr)
                return
            if level == DIRECTORY_LEVEL:
                return
            yield level, blob_hash(level, plain), offset
            offset = end

    def checksum_fits(self):
        """Whether the pack is byte for byte what was written; needs no key."""
        data = self.read(0, self.size)
        return derive("hikae v1 pack checksum", data[:-32]) == data[-32:]


class Files:
    """Open packs, the most recently used."""

    opened = OrderedDict()

    @classmethod
    def open(cls, path):
        if path in cls.opened:
            cls.opened.move_to_end(path)
        else:
            if len(cls.opened) >= 128:
                os.close(cls.opened.popitem(last=False)[1])
            cls.opened[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return cls.opened[path]


class Repository:
    """A repository in a directory, unlocked."""

    def __init__(self, path, unlock):
        self.path, self.keys, self.name_key, self.problems = path, {}, None, []
        self.encrypted = False
        self.config = self.read_config()
        self.encrypted = self.config["encryption"] != "none"
        if self.encrypted:
            self.master = self.unlock(unlock)
            self.master_id = derive("hikae v1 master key id", self.master)[:16]
            self.read_ring()
        self.packs, self.places, self.salvaged = [], {}, False

    def problem(self, text):
        """Damage that does not end the work; said once."""
        if str(text) not in self.problems:
            self.problems.append(str(text))
            print(f"damaged: {text}", file=sys.stderr)

    # -- small objects

    def names(self, prefix):
        """Names of all objects under a prefix, sorted."""
        found = []
        for place, _, files in os.walk(os.path.join(self.path, prefix)):
            folder = os.path.relpath(place, self.path).replace(os.sep, "/")
            found.extend(file if folder == "." else f"{folder}/{file}" for file in files)
        return sorted(found)

    def data_key(self, key_id, name):
        if key_id not in self.keys:
            raise Damaged(f"{name}: encrypted with key {key_id.hex()}, which is not in the keyring")
        return self.keys[key_id]

    def envelope(self, name):
        """Bytes of a small object before its checksum, which was compared; needs no key."""
        with open(os.path.join(self.path, *name.split("/")), "rb") as file:
            data = file.read((64 << 20) + 4096)
        body, checksum = data[:-32], data[-32:]
        if len(data) < 112 or body[:8] != b"HIKAEOBJ":
            raise Damaged(f"{name}: not an object of a repository")
        encoded = name.encode()
        if derive("hikae v1 object checksum", struct.pack("<I", len(encoded)), encoded, body) != checksum:
            raise Damaged(f"{name}: its checksum does not fit")
        return body

    def small_object(self, name, kinds, find_key=None):
        """Text of an envelope and its kind; checksum, name and encryption are checked."""
        body, encoded = self.envelope(name), name.encode()
        version, kind, cipher, length = struct.unpack_from("<HBBI", body, 8)
        key_id, salt, text = body[16:32], body[32:64], body[80:]
        if version != FORMAT_VERSION or KINDS.get(kind) not in kinds or len(text) != length + 16 * cipher:
            raise Damaged(f"{name}: format {version}, kind {kind}: not what belongs here")
        plain_here = KINDS[kind] in ("config", "slot")
        if (cipher == 1) != (self.encrypted and not plain_here):
            raise Damaged(f"{name}: its encryption is not the repository's")
        if cipher == 1:
            key = derive("hikae v1 object key", (find_key or self.data_key)(key_id, name), salt)
            try:
                text = AESGCM(key).decrypt(bytes(12), text, body[:80] + encoded)
            except InvalidTag as error:
                raise Damaged(f"{name}: was not written with this key") from error
        return KINDS[kind], text

    def read_config(self):
        for name in ("config", "config.copy"):
            try:
                return json.loads(self.small_object(name, ["config"])[1])
            except (OSError, Damaged) as error:
                self.problem(error)
        raise Damaged(f"{self.path}: neither config nor config.copy is readable: not a repository?")

    # -- keys

    def unlock(self, unlock):
        """The master key, from whichever slot the secret opens."""
        if unlock is None:
            raise Damaged("the repository is encrypted: give a key file, a passphrase or a recovery key")
        kind, secret, slot_id, repository = unlock
        if repository not in (None, self.config["repository"]):
            raise Damaged(f"the key file is of repository {repository}")
        for name in self.names("keys"):
            if not name.startswith("keys/slot-"):
                continue
            try:
                slot = json.loads(self.small_object(name, ["slot"])[1])
            except Damaged as error:
                self.problem(error)
                continue
            if slot["kind"] != kind or slot_id not in (None, slot["slot"]):
                continue
            identity = bytes.fromhex(slot["slot"])
            if kind == "passphrase":
                costs = slot["argon2id"]
                if costs["memory_kib"] > 1 << 20 or costs["passes"] > 64:
                    raise Damaged(f"{name}: asks for too much work")
                key = hash_secret_raw(secret, bytes.fromhex(costs["salt"]), costs["passes"], costs["memory_kib"],
                                      costs["lanes"], 32, Type.ID)
            else:
                key = derive("hikae v1 slot key", secret, identity)
            bound = b"hikae v1 slot" + bytes.fromhex(self.config["repository"]) + identity + kind.encode()
            try:
                return AESGCM(key).decrypt(bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"]), bound)
            except InvalidTag:
                continue
        raise Damaged("this opens no key slot of the repository")

    def read_ring(self):
        """The highest readable keyring."""
        def master(key_id, name):
            if key_id != self.master_id:
                raise Damaged(f"{name}: encrypted with another master key")
            return self.master
        rings = [name for name in self.names("keys") if name.startswith("keys/ring-")]
        for name in reversed(rings):
            try:
                ring = json.loads(self.small_object(name, ["ring"], master)[1])
                self.keys = {bytes.fromhex(one["id"]): bytes.fromhex(one["key"]) for one in ring["data_keys"]}
                self.name_key = bytes.fromhex(ring["name_key"])
                return
            except Damaged as error:
                self.problem(error)
        raise Damaged("no keyring is readable")

    # -- points

    def name_id(self, name):
        if self.encrypted:
            return blake3(name.encode(), key=self.name_key).digest()[:16].hex()
        return derive("hikae v1 plain name id", name.encode())[:16].hex()

    def signature_fits(self, signed):
        """Whether a writer that the root key certifies signed this body; nothing is signed without encryption."""
        if not self.encrypted:
            return True
        given = signed.get("signature")
        if not given:
            return False
        writer, root = bytes.fromhex(given["writer"]), bytes.fromhex(self.config["signing_public_key"])
        try:
            Ed25519PublicKey.from_public_bytes(root).verify(bytes.fromhex(given["certificate"]),
                                                            b"hikae v1 writer\0" + writer)
            Ed25519PublicKey.from_public_bytes(writer).verify(bytes.fromhex(given["signature"]),
                                                              b"hikae v1 point\0" + signed["body"].encode())
        except InvalidSignature:
            return False
        return True

    def points(self):
        """Every committed point, by name and sequence; single ones and those in bundles."""
        found = {}
        bundles = sorted({name.removesuffix(".copy") for name in self.names("bundles")})
        for name in self.names("points") + bundles:
            try:
                if name in bundles:
                    kind, text = self.bundle(name)
                else:
                    kind, text = self.small_object(name, ["point", "tombstone"])
                if kind == "point":
                    _, name_id, sequence = name.split("/")
                    places = [({"name_id": name_id, "sequence": int(sequence, 16)}, json.loads(text))]
                else:
                    places = [(one["key"], one["point"]) for one in json.loads(text).get("points", [])]
            except (OSError, Damaged, KeyError, ValueError) as error:
                known = isinstance(error, (OSError, Damaged))
                self.problem(error if known else f"{name}: malformed: {error}")
                continue
            for key, signed in places:
                try:
                    self.take_point(found, name, key["name_id"], key["sequence"], signed)
                except (Damaged, KeyError, TypeError, ValueError) as error:
                    self.problem(error if isinstance(error, Damaged) else f"{name}: a malformed point: {error}")
        return [found[key] for key in sorted(found)]

    def bundle(self, name):
        """A bundle, or its copy where the bundle itself is damaged or gone."""
        try:
            return self.small_object(name, ["bundle"])
        except (OSError, Damaged) as error:
            self.problem(error)
            return self.small_object(name + ".copy", ["bundle"])

    def take_point(self, found, where, name_id, sequence, signed):
        point = json.loads(signed["body"])
        if point["sequence"] != sequence or self.name_id(point["name"]) != name_id:
            raise Damaged(f"{where}: holds the point of another place")
        if not self.signature_fits(signed):
            raise Damaged(f"{where}: the signature of {point['name']}@{sequence} does not fit")
        for disk in point["disks"] + [file["content"] for file in point.get("configuration", [])]:
            if disk_root(disk).hex() != disk["root"] or disk["height"] != height_of(disk["length_bytes"]):
                raise Damaged(f"{where}: a disk of {point['name']}@{sequence} has a root that is not its own")
        point["forgotten"] = self.is_forgotten(name_id, sequence)
        found[point["name"], sequence] = point

    def is_forgotten(self, name_id, sequence):
        """What the newest of the marks `forgotten` and `undeleted` says."""
        newest = (-1, "", "")
        for name in self.names(f"marks/{name_id}-{sequence:016x}"):
            kind = name.rsplit("/", 1)[1].split("-")[0]
            if kind in ("forgotten", "undeleted"):
                try:
                    mark = json.loads(self.small_object(name, ["mark"])[1])
                    newest = max(newest, (mark["number"], mark["id"], kind))
                except Damaged as error:
                    self.problem(error)
        return newest[2] == "forgotten"

    # -- blobs

    def load_directories(self):
        """Where every blob lies, from the packs themselves."""
        for kind in ("node", "data"):
            for name in self.names(kind):
                try:
                    pack = Pack(self, kind, os.path.join(self.path, *name.split("/")), name)
                except (Damaged, OSError) as error:
                    self.problem(error)
                    continue
                number = len(self.packs)
                self.packs.append(pack)
                try:
                    entries = list(pack.directory())
                except Damaged as error:
                    self.problem(f"{error}; its frames are read instead")
                    entries = pack.walk()
                for level, name_hash, offset in entries:
                    self.places.setdefault(name_hash + bytes([level]), []).append(number << 32 | offset)

    def blob(self, level, name_hash):
        """A blob from the first place that has it whole."""
        error, name = None, name_hash + bytes([level])
        for attempt in range(2):
            for place in self.places.get(name, []):
                try:
                    return self.packs[place >> 32].blob(place & 0xFFFFFFFF, level, name_hash)
                except (Damaged, OSError) as problem:
                    if attempt == 0:
                        self.problem(problem)
                    error = problem
            if self.salvaged:
                break
            self.salvage()
        raise Damaged(str(error or f"{'block' if level == 0 else 'node'} {name_hash.hex()} is in no pack"))

    def salvage(self):
        """Looks for blobs that no directory names in the frames of packs that are not as they were written."""
        self.salvaged = True
        for number, pack in enumerate(self.packs):
            if not pack.checksum_fits():
                self.problem(f"{pack.name}: its checksum does not fit; its frames are searched")
                for level, name_hash, offset in pack.walk():
                    self.places.setdefault(name_hash + bytes([level]), []).append(number << 32 | offset)

    def blocks(self, disk):
        """(offset, hash) of every block of a disk that is not zeros, in disk order."""
        stack = [(disk["height"], bytes.fromhex(disk["top"]), 0)]
        while stack:
            level, name_hash, offset = stack.pop()
            if name_hash == ZERO[level]:
                continue
            if level == 0:
                yield offset, name_hash
                continue
            node, step = self.blob(level, name_hash), covered_bytes(level - 1)
            for slot in reversed(range(FANOUT)):
                stack.append((level - 1, node[slot * 32:slot * 32 + 32], offset + slot * step))


# -- verbs


def choose(repository, selector):
    """The point that NAME, NAME@latest, NAME@SEQUENCE or NAME@<digits of its id> means."""
    name, _, which = selector.partition("@")
    mine = [point for point in repository.points() if point["name"] == name]
    if which in ("", "latest"):
        mine = [point for point in mine if not point["forgotten"]][-1:]
    elif len(which) < 6:
        mine = [point for point in mine if str(point["sequence"]) == which]
    else:
        mine = [point for point in mine if point["point"].startswith(which)]
    if len(mine) != 1:
        raise Damaged(f"{selector}: {len(mine)} points are called so")
    return mine[0]


def restore(repository, arguments):
    """Writes one disk of a point as a sparse raw file."""
    point = choose(repository, arguments.point)
    disks = [disk for disk in point["disks"] if arguments.disk in (None, disk.get("label", ""))]
    if len(disks) != 1:
        labels = ", ".join(repr(disk.get("label", "")) for disk in point["disks"])
        raise Damaged(f"{arguments.point} has these disks: {labels}: choose one with --disk")
    disk, written = disks[0], 0
    repository.load_directories()
    partial = arguments.out + ".partial"
    with open(partial, "wb") as out:
        for offset, name_hash in repository.blocks(disk):
            block = repository.blob(0, name_hash)[:disk["length_bytes"] - offset]
            out.seek(offset)
            out.write(block)
            written += len(block)
        out.truncate(disk["length_bytes"])
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, arguments.out)
    report = {"name": point["name"], "version": point["sequence"], "root": disk["root"],
              "bytes_logical": disk["length_bytes"], "bytes_written": written}
    print(json.dumps(report))


def list_points(repository, _):
    """One line of JSON for each point."""
    for point in repository.points():
        disks = [{key: disk.get(key) for key in ("label", "root", "length_bytes")} for disk in point["disks"]]
        print(json.dumps({"name": point["name"], "version": point["sequence"], "point": point["point"],
                          "created": point["created"], "forgotten": point["forgotten"], "disks": disks}))


def verify(repository, _):
    """Reads every pack, every blob and every tree."""
    for name in repository.names("."):
        if name.split("/")[0] not in ("data", "node", ".tmp"):
            try:
                repository.envelope(name)
            except (Damaged, OSError) as error:
                repository.problem(error)
    points = repository.points()
    repository.load_directories()
    for pack in repository.packs:
        if not pack.checksum_fits():
            repository.problem(f"{pack.name}: its checksum does not fit")
    whole = set()
    for name in list(repository.places):
        try:
            repository.blob(name[32], name[:32])
            whole.add(name)
        except Damaged:
            pass  # Each bad place was named; it counts against a point only where a tree needs it.
    for point in points:
        for disk in point["disks"] + [file["content"] for file in point.get("configuration", [])]:
            try:
                for offset, name_hash in repository.blocks(disk):
                    if name_hash + b"\0" not in whole:
                        raise Damaged(f"block at {offset} ({name_hash.hex()}) is missing or damaged")
            except Damaged as error:
                repository.problem(f"{point['name']}@{point['sequence']}: {error}")
    print(json.dumps({"points": len(points), "packs": len(repository.packs), "blobs": len(repository.places),
                      "problems": len(repository.problems)}))


def read_secret(arguments):
    """(slot kind, secret, slot id, repository id) from what was given."""
    def first_line(path):
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    if arguments.key_file:
        with open(arguments.key_file, encoding="utf-8") as file:
            lines = [line.split(":", 1) for line in file if ":" in line and not line.startswith("#")]
        fields = {key.strip(): value.strip() for key, value in lines}
        parts = [bytes.fromhex(fields[key]) for key in ("repository", "slot", "secret")]
        if derive("hikae v1 secret checksum", *parts).hex()[:16] != fields["checksum"]:
            raise Damaged("key file: its checksum does not fit: a digit was changed or is missing")
        return "keyfile", parts[2], fields["slot"], fields["repository"]
    if arguments.passphrase_file:
        return "passphrase", first_line(arguments.passphrase_file).encode(), None, None
    if arguments.recovery_key_file:
        with open(arguments.recovery_key_file, encoding="utf-8") as file:
            lines = [line for line in file if not line.startswith("#")]
        digits = "".join("".join(lines).split()).replace("-", "").lower()
        secret = bytes.fromhex(digits[:64])
        if derive("hikae v1 secret checksum", secret).hex()[:8] != digits[64:]:
            raise Damaged("recovery key: a digit was changed or is missing")
        return "recovery", secret, None, None
    return None


def main():
    parser = argparse.ArgumentParser(description="Reads a Hikae repository without Hikae.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, action in (("list", list_points), ("restore", restore), ("verify", verify)):
        verb = verbs.add_parser(name, help=action.__doc__)
        verb.set_defaults(action=action)
        verb.add_argument("repository")
        key = verb.add_mutually_exclusive_group()
        for option in ("--key-file", "--passphrase-file", "--recovery-key-file"):
            key.add_argument(option, metavar="FILE")
        if name == "restore":
            verb.add_argument("point", help="NAME, NAME@SEQUENCE, NAME@latest or NAME@<first digits of its id>")
            verb.add_argument("out", help="raw file to write; sparse")
            verb.add_argument("--disk", help="label of the disk, when the point has several")
    arguments = parser.parse_args()
    try:
        repository = Repository(arguments.repository, read_secret(arguments))
        arguments.action(repository, arguments)
    except (Damaged, OSError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 3 if repository.problems else 0


if __name__ == "__main__":
    sys.exit(main())
