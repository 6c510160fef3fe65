# Structured reads: the pieces cover the request once, in bounds, and holes are zeroes.
h = nbd.NBD()
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
MIB = 1 << 20
data = bytes(random.Random(2).randbytes(MIB))
h.pwrite(data, 2 * MIB)
h.pwrite(b"tail", 6 * MIB - 4)

covered = []


def piece(data, at, status, error):
    if status == nbd.READ_HOLE:
        assert data == bytes(len(data))
    covered.append((at, at + len(data)))


whole = h.pread_structured(5 * MIB, MIB, piece)
assert whole[:MIB] == bytes(MIB)
assert whole[MIB : 2 * MIB] == data
assert whole[-4:] == b"tail"
end = MIB
for start, stop in sorted(covered):
    assert start == end, (covered, end)
    end = stop
assert end == 6 * MIB

# The largest payload that is announced.
big = bytes(random.Random(3).randbytes(32 * MIB))
h.pwrite(big, 8 * MIB)
assert h.pread(32 * MIB, 8 * MIB) == big
h.shutdown()
