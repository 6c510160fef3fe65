# Several connections are one disk: what one has written the others read, and a flush on one covers them all.
handles = []
for _ in range(4):
    h = nbd.NBD()
    h.connect_uri(uri)
    assert h.can_multi_conn()
    handles.append(h)
for turn in range(200):
    writer = handles[turn % 4]
    data = bytes([turn]) * 8192
    writer.pwrite(data, turn * 8192)
    for reader in handles:
        assert reader.pread(8192, turn * 8192) == data, turn
    handles[(turn + 1) % 4].flush()
for h in handles:
    h.shutdown()
