# An NBD server that lies in one chosen way: `nbdkit python lying_server.py file=PATH lie=NAME one_in=N`.
#
# An honest write reaches the file before it is acknowledged, and so survives SIGKILL; everything held in this
# process does not. The lies are described in peer.rs. Calls are serialised, so nothing here needs a lock.

import os
import random

import nbdkit

API_VERSION = 2
BLOCK = 4096

path = None
lie = "honest"
one_in = 1000
disk = -1
held = []
old = {}
dice = random.Random(4711)


def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def config(key, value):
    global path, lie, one_in
    if key == "file":
        path = value
    elif key == "lie":
        lie = value
    elif key == "one_in":
        one_in = int(value)
    else:
        raise RuntimeError("unknown parameter " + key)


def after_fork():
    global disk
    disk = os.open(path, os.O_RDWR)


def open(readonly):
    return 1


def get_size(h):
    return os.fstat(disk).st_size


def can_multi_conn(h):
    return True


def can_flush(h):
    return True


def can_fua(h):
    return nbdkit.FUA_EMULATE


def can_trim(h):
    return True


def can_zero(h):
    return True


def seldom():
    return dice.randrange(one_in) == 0


def release(count):
    for data, offset in held[:count]:
        os.pwrite(disk, data, offset)
    del held[:count]


def pread(h, buf, offset, flags):
    data = bytearray(os.pread(disk, len(buf), offset))
    for piece, at in held:
        start, end = max(at, offset), min(at + len(piece), offset + len(data))
        if start < end:
            data[start - offset : end - offset] = piece[start - at : end - at]
    if lie == "reads-stale" and seldom():
        for at in range(offset, offset + len(data) - BLOCK + 1, BLOCK):
            if at in old:
                data[at - offset : at - offset + BLOCK] = old[at]
    buf[:] = data


def pwrite(h, buf, offset, flags):
    data = bytes(buf)
    if lie == "drops-writes" and seldom():
        return
    if lie == "shifts-writes" and seldom() and offset + len(data) + BLOCK <= get_size(h):
        offset += BLOCK
    if lie == "reads-stale":
        for at in range(offset, offset + len(data) - BLOCK + 1, BLOCK):
            old[at] = os.pread(disk, BLOCK, at)
    if lie in ("ignores-flush", "loses-unflushed"):
        held.append((data, offset))
        if len(held) > 4000:
            release(2000)
    elif lie == "tears-writes":
        release(1)
        half = len(data) // 2 // 512 * 512 + 512 * 3
        half = min(half, len(data))
        os.pwrite(disk, data[:half], offset)
        held.append((data[half:], offset + half))
    elif lie == "reorders" and dice.randrange(4) == 0:
        held.append((data, offset))
        if len(held) > 8:
            release(1)
    else:
        # A later write to the same place must win while the process lives.
        while any(at < offset + len(data) and offset < at + len(piece) for piece, at in held):
            release(1)
        os.pwrite(disk, data, offset)


def flush(h, flags):
    if lie == "ignores-flush":
        return
    release(len(held))
    os.fdatasync(disk)


def zero(h, count, offset, flags):
    if lie == "half-trims":
        count = count // 2
    while held:
        release(1)
    os.pwrite(disk, bytes(count), offset)


def trim(h, count, offset, flags):
    zero(h, count, offset, flags)
