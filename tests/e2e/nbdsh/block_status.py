# Block status covers what was asked, calls written blocks data, and never calls data zero.
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(uri)
MIB = 1 << 20
written = [(3 * MIB, MIB), (9 * MIB, 4096), (size - MIB, MIB)]
for offset, length in written:
    h.pwrite(b"d" * length, offset)
h.pwrite(b"d" * MIB, 5 * MIB)
h.zero(MIB, 5 * MIB)
h.pwrite(b"d" * MIB, 7 * MIB)
h.trim(MIB, 7 * MIB)
h.flush()


def status(length, offset, flags=0):
    extents = []

    def collect(context, at, entries, error):
        assert context == "base:allocation" and at == offset, (context, at)
        position = at
        for extent_length, state in zip(entries[::2], entries[1::2]):
            assert extent_length > 0
            extents.append((position, extent_length, state))
            position += extent_length

    h.block_status(length, offset, collect, flags)
    return extents


position = 0
extents = []
while position < size:
    some = status(min(size - position, 1 << 30), position)
    assert some
    extents += some
    position = some[-1][0] + some[-1][1]
assert position == size, "the extents end at %d" % position

ZERO = nbd.STATE_ZERO
for offset, length in written:
    for start, extent_length, state in extents:
        if start < offset + length and offset < start + extent_length:
            assert not state & ZERO, ("data is called zero", start, extent_length, state)
for start, extent_length, state in extents:
    if state & ZERO:
        for at in range(start, start + extent_length, MIB):
            length = min(MIB, start + extent_length - at)
            assert h.pread(length, at) == bytes(length), "what is called zero is not zero at %d" % at
for offset in (5 * MIB, 7 * MIB, 0):
    assert all(state & ZERO for _, _, state in status(MIB, offset)), ("zeroed, trimmed or never written", offset)

one = status(8 * MIB, 2 * MIB, nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 1 and one[0][1] <= 8 * MIB, one
h.shutdown()
