#!/usr/bin/env python3
"""Writes the vectors of this folder with the `ipfs` in PATH. See README.md."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MASK = (1 << 64) - 1
KIB = 1024
CHUNK = 256 * KIB


def content(seed, length):
    """SplitMix64 from `seed` on: its numbers in little-endian bytes, cut at `length`; in pieces."""
    state, left = seed, length
    while left > 0:
        words = []
        for _ in range(min(8192, (left + 7) // 8)):
            state = (state + 0x9E3779B97F4A7C15) & MASK
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
            words.append(z ^ (z >> 31))
        piece = struct.pack("<%dQ" % len(words), *words)[:left]
        left -= len(piece)
        yield piece


def write_file(path, seed, length):
    with open(path, "wb") as out:
        for piece in content(seed, length):
            out.write(piece)


def ipfs(*arguments):
    done = subprocess.run(["ipfs", *arguments], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


def flags(options):
    # Kubo wants no word about raw leaves beside attributes: it makes none then.
    keep = ["--preserve-mode", "--preserve-mtime"] if options.get("preserve") else []
    return keep + [
        "--cid-version=%d" % options["cid_version"],
        *(["--raw-leaves=%s" % ("true" if options["raw_leaves"] else "false")] if not keep else []),
        "--hash=" + options["hash"],
        "--chunker=" + options["chunker"],
        "--trickle=%s" % ("true" if options["layout"] == "trickle" else "false"),
        "--wrap-with-directory=%s" % ("true" if options.get("wrap") else "false"),
        "--max-file-links=174",
        "--max-hamt-fanout=256",
        "--pin=false",
        "--progress=false",
    ]


def options(cid_version=0, raw_leaves=None, hash="sha2-256", chunker="size-262144", layout="balanced"):
    raw = cid_version > 0 if raw_leaves is None else raw_leaves
    return {"cid_version": cid_version, "raw_leaves": raw, "hash": hash, "chunker": chunker, "layout": layout}


def cumulative_size(cid):
    return int(ipfs("files", "stat", "--format=<cumulsize>", "/ipfs/" + cid))


def file_vectors(folder):
    four = [options(0), options(1), options(1, False), options(0, True)]
    cases = []
    sizes = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1]
    for chunks in (174, 175):
        sizes += [chunks * CHUNK - 1, chunks * CHUNK, chunks * CHUNK + 1]
    for size in sizes + [50_000_000]:
        cases += [(size, chosen) for chosen in four]
    # Three levels need 174 * 174 chunks: small chunks make them cheap.
    for chunks in (174 * 174, 174 * 174 + 1):
        cases += [(chunks * 16, options(0, chunker="size-16")), (chunks * 16, options(1, chunker="size-16"))]
    for chunker in ("size-1", "size-1000", "size-1048576"):
        size = 3000 if chunker == "size-1" else 3_000_000
        cases += [(size, options(0, chunker=chunker)), (size, options(1, chunker=chunker))]
    for name in ("sha2-512", "sha3-256", "sha3-512", "keccak-256", "blake2b-256", "blake2s-256", "blake3"):
        cases += [(size, options(1, hash=name)) for size in (0, 100, 1_000_000)]
        cases.append((1_000_000, options(1, False, hash=name)))
    for chunker in ("rabin", "rabin-100000", "rabin-4096-8192-16384", "rabin-16-64-128", "buzhash"):
        for size in (0, 100, 131_072, 3_000_000):
            cases += [(size, options(0, chunker=chunker)), (size, options(1, chunker=chunker))]
    for size in (0, 1, 64, 174 * 64, 174 * 64 + 1, 5 * 174 * 64, 5 * 174 * 64 + 1, 50 * 174 * 64 + 7, 300_000):
        cases += [(size, {**chosen, "chunker": "size-64", "layout": "trickle"}) for chosen in four]
    cases += [(50_000_000, {**chosen, "layout": "trickle"}) for chosen in four]
    cases += [(1 << 30, options(0)), (1 << 30, options(1))]
    return file_cases(folder, cases)


def file_cases(folder, cases):
    """A vector for each size and options; files of one size have the same content."""
    vectors = []
    path = os.path.join(folder, "content")
    written = None
    for size, chosen in sorted(cases, key=lambda case: case[0]):
        if written != size:
            write_file(path, size, size)
            written = size
        if chosen.get("preserve"):
            set_attributes(path, chosen)
        cid = ipfs("add", "-Q", *flags(chosen), path).strip()
        vectors.append({"bytes": size, "seed": size, **chosen, "cid": cid, "size": cumulative_size(cid)})
        print(size, chosen, cid, file=sys.stderr)
    return vectors


def edge_vectors(folder):
    """Small chunks around the edges of a chunk, of a node's 174 links, and of the levels above; the other hashes."""
    four = [options(0), options(1), options(1, False), options(0, True)]
    cases = []
    for size in (63, 64, 65, 173 * 64, 174 * 64 - 1, 174 * 64, 174 * 64 + 1, 175 * 64, 348 * 64, 348 * 64 + 1, 40_001):
        for layout in ("balanced", "trickle"):
            cases += [(size, {**chosen, "chunker": "size-64", "layout": layout}) for chosen in four]
    for name in ("sha3-224", "sha3-384", "keccak-512", "blake2b-512"):
        cases += [(size, options(1, hash=name)) for size in (1, 300_000)]
    for chunker in ("rabin-16-32-64", "rabin-1000-2000-3000", "buzhash"):
        cases.append((1_000_001, options(1, chunker=chunker, layout="trickle")))
    return file_cases(folder, cases)


def set_attributes(path, attributes):
    if attributes.get("mode") and not os.path.islink(path):
        os.chmod(path, attributes["mode"])
    nanoseconds = attributes.get("mtime", 0) * 10**9 + attributes.get("mtime_nsecs", 0)
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


def attribute_vectors(folder):
    """Mode and mtime of files of all shapes, of trees, and of a sharded directory."""
    kept = [
        {"mode": 0o644, "mtime": 1_700_000_000, "mtime_nsecs": 123_456_789},
        {"mode": 0o4755, "mtime": 1_600_000_000},
        {"mode": 0o600, "mtime": -5, "mtime_nsecs": 500_000_000},
    ]
    files = []
    for size in (0, 1, 64, 65, 174 * 64, 174 * 64 + 1, 20_000):
        for attributes in kept:
            for version in (0, 1):
                for layout in ("balanced", "trickle"):
                    chosen = options(version, False, chunker="size-64", layout=layout)
                    files.append((size, {**chosen, "preserve": True, **attributes}))
    trees = []
    for name, entries in ATTRIBUTE_TREES.items():
        root = os.path.join(folder, name)
        build_tree(root, entries)
        for one in reversed(entries):
            set_attributes(os.path.join(root, one["path"]), one)
        for version in (0, 1):
            for wrap in (False, True):
                case = {**options(version, False), "preserve": True, "wrap": wrap}
                trees.append({"tree": name, "entries": entries, **case, "events": added(root, case)})
    return {
        "files": file_cases(folder, files),
        "trees": trees,
        "directories": [
            big_directory(folder, version, 5000, 40, 0, {"preserve": True, **kept[0], "file_attributes": kept[1]})
            for version in (0, 1)
        ],
    }


def entry(path, kind, **rest):
    return {"path": path, "kind": kind, **rest}


TREES = {
    "empty": [entry("top", "directory")],
    "flat": [entry("top/a.txt", "file", seed=1, bytes=12), entry("top/b.txt", "file", seed=2, bytes=300_000)],
    "nested": [
        entry("top/deep/er/and/deeper/file", "file", seed=3, bytes=1000),
        entry("top/deep/er/empty", "directory"),
        entry("top/deep/file", "file", seed=4, bytes=0),
        entry("top/empty", "directory"),
        entry("top/file", "file", seed=5, bytes=524_289),
    ],
    # Sorted by bytes: not by locale, not by UTF-16 units, and `a` before what begins with it.
    "order": [
        entry("top/" + name, "file", seed=at, bytes=at)
        for at, name in enumerate(
            ["a", "a-", "a.b", "a0", "A", "B", "b", "Z", "_", "10", "2", "~", "é", "e\u0301", "ß", "日本", "\uff5e", "\U0001f600", "sp ace", "q'\"?*"]
        )
    ]
    + [entry("top/a b/x", "file", seed=99, bytes=5), entry("top/a!", "directory")],
    "symlinks": [
        entry("top/file", "file", seed=6, bytes=10),
        entry("top/link", "symlink", target="file"),
        entry("top/sub/up", "symlink", target="../file"),
        entry("top/nowhere", "symlink", target="/does/not/exist/ü"),
    ],
}


ATTRIBUTE_TREES = {
    "dated": [
        entry("top", "directory", mode=0o750, mtime=1_500_000_000),
        entry("top/file", "file", seed=6, bytes=10, mode=0o640, mtime=1_500_000_001, mtime_nsecs=1),
        entry("top/large", "file", seed=8, bytes=600_000, mode=0o444, mtime=1_500_000_002),
        entry("top/link", "symlink", target="file", mtime=1_500_000_003),
        entry("top/sub", "directory", mode=0o2755, mtime=1_500_000_004, mtime_nsecs=999_999_999),
        entry("top/sub/empty", "directory", mode=0o1777, mtime=1_500_000_005),
        entry("top/sub/x", "file", seed=9, bytes=0, mode=0o755, mtime=-1),
    ],
}


def build_tree(folder, entries):
    for one in entries:
        path = os.path.join(folder, one["path"])
        os.makedirs(path if one["kind"] == "directory" else os.path.dirname(path), exist_ok=True)
        if one["kind"] == "file":
            write_file(path, one["seed"], one["bytes"])
        if one["kind"] == "symlink":
            os.symlink(one["target"], path)


def added(folder, chosen, name="top"):
    """What Kubo tells while it adds, in its order."""
    printed = ipfs("add", "-r", *flags(chosen), os.path.join(folder, name))
    events = []
    for line in printed.splitlines():
        _, cid, *rest = line.split(" ", 2)
        events.append({"name": rest[0] if rest else "", "cid": cid, "size": cumulative_size(cid)})
    return events


def tree_vectors(folder):
    vectors = []
    for name, entries in TREES.items():
        root = os.path.join(folder, name)
        build_tree(root, entries)
        for chosen in (options(0), options(1), options(1, hash="blake2b-256")):
            for wrap in (False, True):
                case = {**chosen, "wrap": wrap}
                vectors.append({"tree": name, "entries": entries, **case, "events": added(root, case)})
    single = os.path.join(folder, "single")
    entries = [entry("one.txt", "file", seed=7, bytes=700_000)]
    build_tree(single, entries)
    for wrap in (False, True):
        case = {**options(0), "wrap": wrap}
        vectors.append({"tree": "single", "entries": entries, **case, "events": added(single, case, "one.txt")})
    return vectors


def directory_vectors(folder):
    """Big directories: `count` files of 10 bytes, seeded by number, with names of `name_bytes` characters."""
    vectors = []
    # 4,096 entries of 64 bytes of name and CID are 256 KiB: the last unsharded directory. One byte more is sharded.
    cases = [
        (0, 4096, 30, 0), (0, 4096, 30, 1), (1, 4096, 28, 0), (1, 4096, 28, 1),
        (0, 6000, 12, 0), (1, 6000, 12, 0), (0, 20_000, 10, 0), (1, 4097, 100, 0),
    ]
    for version, count, name_bytes, longer in cases:
        vectors.append(big_directory(folder, version, count, name_bytes, longer, {}))
    return vectors


def big_directory(folder, version, count, name_bytes, longer, attributes):
    top = os.path.join(folder, "many", "top")
    os.makedirs(top)
    for number in range(count):
        # The last name is longer by `longer`.
        name = "%0*d" % (name_bytes + (longer if number == count - 1 else 0), number)
        path = os.path.join(top, name)
        write_file(path, number, 10)
        if attributes:
            set_attributes(path, attributes["file_attributes"])
    if attributes:
        set_attributes(top, attributes)
    chosen = {**options(version, False if attributes else None), **attributes}
    cid = ipfs("add", "-Q", "-r", *flags(chosen), top).strip()
    shutil.rmtree(os.path.join(folder, "many"))
    vector = {"count": count, "name_bytes": name_bytes, "last_name_longer_by": longer, **chosen}
    print(vector, cid, file=sys.stderr)
    return {**vector, "cid": cid, "size": cumulative_size(cid)}


def car_file(folder):
    """A small directory as Kubo exports it: raw leaves, file and directory nodes, a sub-directory."""
    root = os.path.join(folder, "car")
    build_tree(root, [entry("top/a", "file", seed=1, bytes=150), entry("top/sub/b", "file", seed=2, bytes=20)])
    cid = ipfs("add", "-Q", "-r", *flags(options(1, chunker="size-64")), os.path.join(root, "top")).strip()
    exported = subprocess.run(["ipfs", "dag", "export", "--progress=false", cid], check=True, stdout=subprocess.PIPE)
    with open(os.path.join(HERE, "small.car"), "wb") as out:
        out.write(exported.stdout)


def lines(vectors):
    return "[\n" + ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors) + "\n]"


def write_json(name, vectors):
    if isinstance(vectors, dict):
        text = "{" + ",\n".join('"%s": %s' % (kind, lines(of_kind)) for kind, of_kind in vectors.items()) + "}"
    else:
        text = lines(vectors)
    with open(os.path.join(HERE, name), "w") as out:
        out.write(text + "\n")


WRITERS = {
    "trees.json": tree_vectors,
    "directories.json": directory_vectors,
    "attributes.json": attribute_vectors,
    "edges.json": edge_vectors,
    "files.json": file_vectors,
}


def main():
    wanted = sys.argv[1:] or [*WRITERS, "small.car"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPFS_PATH"] = os.path.join(folder, "repo")
        ipfs("init")
        ipfs("config", "--json", "Import.UnixFSHAMTDirectorySizeEstimation", '"links"')
        ipfs("config", "--json", "Import.UnixFSHAMTDirectorySizeThreshold", '"256KiB"')
        for name in wanted:
            if name == "small.car":
                car_file(folder)
            else:
                write_json(name, WRITERS[name](folder))


main()
