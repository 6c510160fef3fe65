# Every request flag does what it says.
h = nbd.NBD()
h.connect_uri(uri)
for ability in (h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_multi_conn, h.can_df, h.can_cache):
    assert ability(), ability
assert not h.is_read_only()

data = bytes(random.Random(1).randbytes(65536))
h.pwrite(data, 0, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 0) == data
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 12288, nbd.CMD_FLAG_FUA)
h.trim(4096, 20480, nbd.CMD_FLAG_FUA)
expected = bytearray(data)
for at in (4096, 12288, 20480):
    expected[at : at + 4096] = bytes(4096)
assert h.pread(65536, 0) == expected
if h.can_fast_zero():
    try:
        h.zero(8192, 32768, nbd.CMD_FLAG_FAST_ZERO)
        expected[32768:40960] = bytes(8192)
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP, error
    assert h.pread(65536, 0) == expected
h.cache(65536, 0)
h.flush()

# DF: one piece of data, not several.
pieces = []
whole = h.pread_structured(65536, 0, lambda piece, at, status, error: pieces.append((at, status)), nbd.CMD_FLAG_DF)
assert whole == expected
assert len(pieces) == 1, pieces
h.shutdown()
