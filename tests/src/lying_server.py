# An NBD server that lies in one chosen way: `nbdkit python lying_server.py file=PATH lie=NAME one_in=N`.
#
# An honest write reaches the file before it is acknowledged, and so survives SIGKILL; everything held in this
# process does not. The lies are described in peer.rs. One call runs at a time; two lies leave a connection waiting
# for ever meanwhile.

import functools
import io
import os
import pickle
import random
import threading
import time

import nbdkit

API_VERSION = 2
BLOCK = 4096

path = None
lie = "honest"
one_in = 1000
disk = -1
held = []
early = []  # data, offset, the connection that reads it or None for all, the call from which it is in the file
left = []  # for the next process
revived = []  # from the last process
old = {}
calls = 0
lock = threading.Lock()
dice = random.Random(4711)


def thread_model():
    if lie in ("shows-early", "revives-writes"):
        return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def one_at_a_time(call):
    @functools.wraps(call)
    def locked(*arguments):
        with lock:
            catch_up()
            return call(*arguments)

    return locked


def wait_for_death():
    lock.release()
    time.sleep(3600)
    lock.acquire()


# Does what was put off until now.
def catch_up():
    global calls
    calls += 1
    while early and early[0][3] <= calls:
        settle(early[0])
    if calls > 300:
        while revived:
            data, offset = revived.pop()
            os.pwrite(disk, data, offset)


def settle(entry):
    early.remove(entry)
    os.pwrite(disk, entry[0], entry[1])


def settle_before(offset, length):
    for entry in [entry for entry in early if entry[1] < offset + length and offset < entry[1] + len(entry[0])]:
        settle(entry)


def leave(data, offset):
    left.append((data, offset))
    with io.open(path + ".left", "wb") as file:
        pickle.dump(left, file)


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
    if lie == "revives-writes" and os.path.exists(path + ".left"):
        with io.open(path + ".left", "rb") as file:
            revived.extend(pickle.load(file))
        os.unlink(path + ".left")


def open(readonly):
    return object()


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


@one_at_a_time
def pread(h, buf, offset, flags):
    data = bytearray(os.pread(disk, len(buf), offset))
    for piece, at in held + [(piece, at) for piece, at, reader, _ in early if reader in (None, h)]:
        start, end = max(at, offset), min(at + len(piece), offset + len(data))
        if start < end:
            data[start - offset : end - offset] = piece[start - at : end - at]
    if lie == "reads-stale" and seldom():
        for at in range(offset, offset + len(data) - BLOCK + 1, BLOCK):
            if at in old:
                data[at - offset : at - offset + BLOCK] = old[at]
    buf[:] = data


@one_at_a_time
def pwrite(h, buf, offset, flags):
    data = bytes(buf)
    if lie == "drops-writes" and seldom():
        return
    if lie == "shifts-writes" and seldom() and offset + len(data) + BLOCK <= get_size(h):
        offset += BLOCK
    if lie == "reads-stale":
        for at in range(offset, offset + len(data) - BLOCK + 1, BLOCK):
            old[at] = os.pread(disk, BLOCK, at)
    settle_before(offset, len(data))
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
    elif lie == "answers-early" and seldom():
        early.append((data, offset, h, calls + 50))
    elif lie == "shows-early" and seldom():
        early.append((data, offset, None, 1 << 62))
        wait_for_death()
    elif lie == "revives-writes" and seldom():
        leave(data, offset)
        wait_for_death()
    else:
        # A later write to the same place must win while the process lives.
        while any(at < offset + len(data) and offset < at + len(piece) for piece, at in held):
            release(1)
        os.pwrite(disk, data, offset)


@one_at_a_time
def flush(h, flags):
    if lie == "ignores-flush":
        return
    release(len(held))
    os.fdatasync(disk)


@one_at_a_time
def zero(h, count, offset, flags):
    if lie == "half-trims":
        count = count // 2
    while held:
        release(1)
    settle_before(offset, count)
    os.pwrite(disk, bytes(count), offset)


trim = zero
