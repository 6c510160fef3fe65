# A drive with a volatile write cache, as an NBD server: `nbdkit python volatile_drive.py file=PATH keeps=PERCENT seed=N`.
#
# The file is the medium, this process's memory the cache; SIGKILL is the power cut. A write goes to the cache. Of its
# sectors the drive moves some to the medium by itself, `keeps` per cent at once and more when the cache is full, in
# no order: so a power cut leaves any subset of what was not flushed, and cuts requests anywhere between two sectors.
# A flush moves everything to the medium before it is answered: this drive is honest, unless `flushes=lost` makes
# it answer them and do nothing. Such a drive has a cache that is never full: with `keeps=0` a power cut leaves what there
# was when it was switched on, a file system that is whole and old.

import os
import random

import nbdkit

API_VERSION = 2
SECTOR = 512
CACHE_SECTORS_MAX = 64 * 1024 * 1024 // SECTOR

path = None
keeps = 50
honest = True
medium = -1
cache = {}
dice = random.Random()


def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def config(key, value):
    global path, keeps, honest
    if key == "file":
        path = value
    elif key == "keeps":
        keeps = int(value)
    elif key == "flushes":
        honest = value != "lost"
    elif key == "seed":
        dice.seed(int(value))
    else:
        raise RuntimeError("unknown parameter " + key)


def after_fork():
    global medium
    medium = os.open(path, os.O_RDWR)


def open(readonly):
    return 1


def get_size(h):
    return os.fstat(medium).st_size


def block_size(h):
    return (SECTOR, 4096, 0xFFFFFFFF)


def can_flush(h):
    return True


def can_fua(h):
    return nbdkit.FUA_EMULATE


def destage(sectors):
    for sector in sectors:
        os.pwrite(medium, cache.pop(sector), sector * SECTOR)


def pread(h, buf, offset, flags):
    data = bytearray(os.pread(medium, len(buf), offset))
    first = offset // SECTOR
    for index in range(len(buf) // SECTOR):
        held = cache.get(first + index)
        if held is not None:
            data[index * SECTOR : (index + 1) * SECTOR] = held
    buf[:] = data


def pwrite(h, buf, offset, flags):
    data = bytes(buf)
    first = offset // SECTOR
    sectors = range(first, first + len(data) // SECTOR)
    for sector in sectors:
        at = (sector - first) * SECTOR
        cache[sector] = data[at : at + SECTOR]
    # Whole requests as well as single sectors: both happen to real drives.
    if dice.randrange(2) == 0:
        chosen = sectors if dice.randrange(100) < keeps else ()
    else:
        chosen = [sector for sector in sectors if dice.randrange(100) < keeps]
    destage(chosen)
    if honest and len(cache) > CACHE_SECTORS_MAX:
        destage(dice.sample(sorted(cache), len(cache) // 2))


def flush(h, flags):
    if honest:
        destage(sorted(cache))
