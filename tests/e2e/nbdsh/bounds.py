# Requests that cannot be right are refused by number, and the connection goes on.
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(uri)
h.pwrite(b"x" * 4096, size - 4096)


def refused(expected, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum in expected, (arguments[1:], error)
    else:
        raise AssertionError(("accepted", call, arguments[1:]))
    assert h.pread(4096, size - 4096) == b"x" * 4096


block = b"y" * 4096
past_end_write = (errno.ENOSPC, errno.EINVAL)
for offset in (size, size - 1, size - 4095, size + (1 << 40), (1 << 63) - 4096, (1 << 63) - 1):
    refused((errno.EINVAL,), h.pread, 4096, offset)
    refused(past_end_write, h.pwrite, block, offset)
    refused((errno.EINVAL, errno.ENOSPC), h.trim, 4096, offset)
    refused(past_end_write, h.zero, 4096, offset)
refused((errno.EINVAL,), h.pread, 4097, size - 4096)
refused((errno.EINVAL, errno.ENOSPC), h.trim, 0xFFFFF000, size - 4096)

# Flags that no request has, or not this one.
refused((errno.EINVAL,), h.pwrite, block, 0, 1 << 14)
refused((errno.EINVAL,), h.flush, nbd.CMD_FLAG_REQ_ONE)
refused((errno.EINVAL,), h.trim, 4096, 0, nbd.CMD_FLAG_DF)

# Any alignment and length within the export is fine.
h.pwrite(b"abc", 4095)
assert h.pread(5, 4094) == b"\0abc\0", h.pread(5, 4094)
h.pwrite(b"z", size - 1)
assert h.pread(1, size - 1) == b"z"
h.zero(3, 4095)
assert h.pread(5, 4094) == b"\0" * 5
h.shutdown()
